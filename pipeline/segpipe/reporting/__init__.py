"""Pictures and pages: draws what it is given and knows nothing of runs, bundles or paths."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
