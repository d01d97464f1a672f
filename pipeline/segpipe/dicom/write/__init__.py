"""A label map as DICOM: SEG, RTSTRUCT and structured report, on the slices of its series."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
