"""Which cases to trust: what can be said of one result without its truth, and what follows.

A quality model knows the cases that a model was made with; of a new case it gives an `Assessment`, which `decide`
turns, by rules that a site can set, into `ok`, `look` or `hold` with reasons in words. None of it is a clinical
verification.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
