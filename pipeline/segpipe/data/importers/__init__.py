"""Foreign layouts become a manifest: find the cases, tell the patients apart, hash what was seen."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
