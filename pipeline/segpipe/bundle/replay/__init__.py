"""The dynamic half of verifying a bundle: its golden case replayed in an isolated process."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
