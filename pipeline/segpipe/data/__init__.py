"""Data sets: manifests, splits, import, check, fetch, fingerprint, and generated phantoms."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
