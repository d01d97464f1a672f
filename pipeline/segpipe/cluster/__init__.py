"""Commands as jobs of a cluster: what is submitted, followed, and submitted again where it died."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
