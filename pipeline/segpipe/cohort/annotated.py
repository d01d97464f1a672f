"""Whether a case is annotated already, whatever it is called and however its channels are packed into files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.cohort.descriptors import first_series
from segpipe.common.image_names import is_image
from segpipe.common.same_image import Channel, SameImage, Voxels, channel_of_array
from segpipe.errors import SegpipeError

if TYPE_CHECKING:
    from segpipe.dicom import Series


class Annotated:
    """The cases that are annotated.

    Args:
        cases: id and images of each: a file a channel, one file with all of them, or the files of a DICOM series.
    """

    def __init__(self, cases: Sequence[tuple[str, Sequence[Path]]]) -> None:
        self._image = SameImage()
        self._ids = {id for id, _ in cases}
        self._files = {_resolved(images) for _, images in cases}
        self._channels = [channels for _, images in cases if (channels := self._channels_of(images))]

    def has(self, id: str, images: Sequence[Path]) -> bool:
        """Return whether a case is one of them.

        It is by its id, its files or its channels. One channel is enough, since a case that shares some with another
        cannot be taken as a correction; but not one that is of one value everywhere, or that several annotated cases
        have, such as an atlas.

        Args:
            id: of the case.
            images: of the case; where they cannot be read they are like no other.
        """
        return id in self._ids or self._has_image(images)

    def has_id_alone(self, id: str, images: Sequence[Path]) -> bool:
        """Return whether a case has the id of one of them and other images; the id of a series says what it holds."""
        return id in self._ids and bool(images) and is_image(images[0]) and not self._has_image(images)

    def _has_image(self, images: Sequence[Path]) -> bool:
        if not images:
            return False
        if _resolved(images) in self._files:
            return True
        own = self._channels_of(images)
        return any(self._is_same(own, others) for others in self._channels)

    def _is_same(self, own: Sequence[Channel], others: Sequence[Channel]) -> bool:
        try:
            if len(own) == len(others) and all(map(Channel.is_same, own, others)):
                return True
            shared = [one for one in own if any(map(one.is_same, others)) and not one.is_flat]
            return any(sum(any(map(one.is_same, each)) for each in self._channels) == 1 for one in shared)
        except (SegpipeError, OSError):  # said where the image is described
            return False

    def _channels_of(self, images: Sequence[Path]) -> list[Channel]:
        try:
            if images and is_image(images[0]):
                return [channel for path in _resolved(images) for channel in self._image.channels(path)]
            series = first_series(images)
            return [Channel(tuple(sorted(series.shape or ())), lambda: _voxels_of(series))]
        except (SegpipeError, OSError):
            return []


def _voxels_of(series: Series) -> Voxels:
    from segpipe.dicom import load_series

    volume = load_series(series)
    return channel_of_array(volume.array, volume.affine_ras).read()


def _resolved(images: Sequence[Path]) -> tuple[Path, ...]:
    return tuple(path.resolve() for path in images)
