"""The static checks of a bundle: nothing of it is instantiated, evaluated or imported here."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
