"""Many results together: distributions, outliers and drift over runs or months, statistics and surfaces of labels."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
