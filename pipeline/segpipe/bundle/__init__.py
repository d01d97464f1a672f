"""Bundles, MONAI's folder format for a trained model: opened, vetted, verified, written, packed and signed."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
