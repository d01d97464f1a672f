"""segpipe import (to be written)."""

from __future__ import annotations


def command() -> None:
    """To be written."""
    raise SystemExit(1)
