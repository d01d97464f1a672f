"""DICOM in and out: find series, judge their geometry, read them as volumes, and write results back."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
