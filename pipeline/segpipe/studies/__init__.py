"""Studies over whole runs: variants compared under equal conditions, and a bundle's training reproduced."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
