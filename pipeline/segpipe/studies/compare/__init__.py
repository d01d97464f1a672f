"""Which network and which loss work best on the data at hand: runs under equal conditions, and one report."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
