"""Pictures and pages: every figure is a function from plain values to the bytes of a PNG or GIF.

It draws what it is given and knows nothing of bundles; only here are matplotlib and jinja2 imported. charts draws
numbers; planes, failure_gallery, animation and case_overlay draw scans; html and cases_page write pages.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
