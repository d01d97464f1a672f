"""Read every file of a data set and say what is wrong with it, before hours of training do."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
