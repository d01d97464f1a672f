"""Packages that others import wherever they are installed, left out where nothing of them is used."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# MONAI imports them for a handler, a search and pictures that no listed name leads to
BESIDE_MONAI = ("matplotlib", "mlflow", "optuna")


@contextmanager
def left_out(names: Iterable[str]) -> Iterator[None]:
    """Let what is imported within find these packages not installed, unless they are loaded; afterwards they are again.

    Args:
        names: of whole packages.
    """
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in names if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            modules.pop(name, None)
