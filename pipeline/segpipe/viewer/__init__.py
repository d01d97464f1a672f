"""The viewer: a case's volumes in three planes and 3D, with label maps and doubt over them, in a browser.

Cases become volumes (`cases`, `volumes`), these a page (`page`), which stands alone or is served on loopback
(`server`). What draws is NiiVue (BSD-2-Clause), which `make viewer` puts into ``niivue/``; without it the page shows
pictures and says so. Others may use the names of ``__init__.pyi``.
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
