"""Prediction of many cases with one bundle: a light parent, and a worker process that holds the model."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
