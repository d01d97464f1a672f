"""What can be said of one result without its truth, and what follows: `Assessment`, then `ok`, `look` or `hold`.

An assessment compares a case with those that a model was calibrated on; `decisions` turns it, by rules that a site can
set, into a decision with its reasons in words. Neither is a clinical verification.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
