"""From a manifest to a trained run: planning, composing a MONAI config, and running it."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
