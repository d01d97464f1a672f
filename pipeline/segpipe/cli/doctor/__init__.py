"""What a report of a bug needs to say of the machine and the software, and what is amiss with them."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
