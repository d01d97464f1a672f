"""DICOM in and out: find the series of a tree, refuse what would be a wrong volume, read the rest, write results back.

Reading goes headers -> grouping -> geometry (`scan`), then pixels -> volume (`read_dicom`, `load_series`); writing is
`write_dicom` and `send_results`. Others may use the names of ``__init__.pyi``.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
