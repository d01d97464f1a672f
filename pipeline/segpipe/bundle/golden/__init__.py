"""The golden case of a bundle: a small generated image, and what the bundle makes of it."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
