"""A set of predictions against the truth: every case, every label, and what they say together."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
