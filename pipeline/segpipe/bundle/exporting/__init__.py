"""From a run folder to a MONAI bundle that stock MONAI runs without this package."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
