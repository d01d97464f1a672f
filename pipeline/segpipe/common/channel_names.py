"""Names of the channels of an image, and which are masks: these may be constant, where a scan may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any


def channel_names(metadata: Mapping[str, Any]) -> list[str]:
    """Return the names that a bundle's metadata give the channels of its images, empty where they give none."""
    stated: Any = metadata
    for key in ("network_data_format", "inputs", "image", "channel_def"):
        stated = stated.get(key) if isinstance(stated, Mapping) else None
    if not isinstance(stated, Mapping):
        return []
    return [str(name) for _, name in sorted(stated.items(), key=lambda item: (len(str(item[0])), str(item[0])))]


def is_mask(channel: str) -> bool:
    """Return whether a channel's name says that its values are 0 and 1: ``mask``, or ``mask of`` something."""
    return channel.casefold().split(" ")[0] == "mask"


def masks_of(channels: Sequence[str]) -> int:
    """Return how many of the last channels are masks.

    >>> masks_of(["CT", "mask of liver", "mask of spleen"]), masks_of(["mask", "CT"])
    (2, 0)
    """
    return sum(1 for _ in takewhile(is_mask, reversed(channels)))


def masks_in_file(index: int, files: int, masks: int) -> int:
    """Return how many of the last channels of a file are masks.

    Args:
        index: of the file among those of its case: one a channel, or one with all channels.
        files: of the case.
        masks: of the case, its last channels.

    >>> [masks_in_file(index, 3, 2) for index in range(3)], masks_in_file(0, 1, 2)
    ([0, 2, 2], 2)
    """
    return masks if files == 1 or index >= files - masks else 0
