"""Train a composed config: dry run, run, resume, and the same with several seeds."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
