"""The whole way once, on generated data: from volumes to a bundle that stock MONAI runs, and a page about it."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
