"""Fragments and overrides become one MONAI config; what MONAI would pass in silence is refused here."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
