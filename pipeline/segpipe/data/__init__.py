"""Data sets: manifests and splits, import of foreign layouts, check, fetch, fingerprint, and generated phantoms.

A manifest (manifest.py) is what every other command starts from; `import_dataset`, `check_dataset`, `fetch_dataset` and
`draw_split` are what the verbs of these names do.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
