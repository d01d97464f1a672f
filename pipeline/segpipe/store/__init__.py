"""Prepared cases on disk: what the deterministic transforms give, once a case, of which a training reads patches.

The data set that fills and reads a store is a component (`segpipe.components.prepared_cases`); this is its folder and
its files, without MONAI and torch.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
