"""Which channels of an image are masks: they may be constant, where a scan may not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile


def is_mask(channel: str) -> bool:
    """Return whether a channel's name says that its values are 0 and 1: ``mask``, or ``mask of`` something."""
    return channel.casefold().split(" ")[0] == "mask"


def masks_of(channels: Sequence[str]) -> int:
    """Return how many of the last channels are masks.

    >>> masks_of(["CT", "mask of liver", "mask of spleen"]), masks_of(["mask", "CT"])
    (2, 0)
    """
    return sum(1 for _ in takewhile(is_mask, reversed(channels)))
