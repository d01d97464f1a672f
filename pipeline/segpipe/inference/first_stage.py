"""The first of two stages: its label map of a case becomes the last channels of the second, a mask of each label."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from segpipe.common.console import digits
from segpipe.common.nifti import Header
from segpipe.dicom import Series
from segpipe.errors import DataError
from segpipe.inference.memory_estimate import source_bytes
from segpipe.inference.output import LabelMap
from segpipe.inference.recipe import Recipe
from segpipe.inference.source import CaseInput, ReadCase, Source, held_bytes, preview_of, read_case, read_headers


@dataclass(frozen=True)
class FirstStage:
    """What gives a case the channels that the second stage has and a scan has not.

    Attributes:
        recipe: of the first stage.
        channels: of the second stage.
        segment: gives the label map of a case by the first stage.
        fits: refuse a case that the memory is too small for, by its headers and by the bytes of it that are held
            already: the first stage, and the second one.
    """

    recipe: Recipe
    channels: int
    segment: Callable[[CaseInput], LabelMap]
    fits: tuple[Callable[[Sequence[Header], int], object], Callable[[Sequence[Header], int], object]]

    def read(self, case: CaseInput, read: ReadCase | None, seconds: dict[str, float]) -> ReadCase:
        """Return the images of a case with its masks; as they are, where they have all channels already.

        Whether both stages fit into memory is told from the headers, before any voxel is read.

        Args:
            case: its scans, or its scans and masks.
            read: the same, where they were read before.
            seconds: the time of the first stage is added.

        Raises:
            SegpipeError: the scans cannot be used, what is given as a mask is none, or the first stage fails.
            RefusedError: a stage needs more memory than it may take.
        """
        given = _channels_of(case) == self.channels
        channels = self.channels if given else self.recipe.channels
        if read is None:
            headers = read_headers(case, channels)
            self._require_room(headers, held_bytes(case), given)
            read = read_case(case, channels, headers, self.channels - self.recipe.channels if given else 0)
        if given:
            self._require_masks(read)
            return read
        start, scans = time.perf_counter(), read.source
        found = self.segment(replace(scans, kept=True))
        if found.regions:
            raise DataError("the first stage gives regions that overlap", expected="one label map")
        values = [value for value in sorted(self.recipe.labels) if value]
        masks = np.stack([found.labels == value for value in values]).astype(scans.array.dtype)
        joined = replace(scans, array=np.concatenate([scans.array, masks]))
        seconds["first_stage"] = round(time.perf_counter() - start, 3)
        return ReadCase(read_headers(joined, self.channels), joined, preview_of(joined))

    def _require_room(self, headers: Sequence[Header], held: int, given: bool) -> None:
        """Refuse a case that one of the stages does not fit into memory with.

        Raises:
            RefusedError: with the numbers.
        """
        first, second = self.fits
        if given:
            second(headers, held)
            return
        first(headers, held - source_bytes(headers))  # its scans are kept for the second stage
        scan = replace(headers[0], shape=headers[0].shape[:3])
        second([scan] * self.channels, held)

    def _require_masks(self, read: ReadCase) -> None:
        """Refuse a further scan, or a label map, in the place of a mask.

        Raises:
            DataError: a mask has other values than 0 and 1.
        """
        names = [name for value, name in sorted(self.recipe.labels.items()) if value]
        for channel, name in enumerate(names, self.recipe.channels):
            mask = read.source.array[channel]
            odd = mask[(mask != 0) & (mask != 1)]
            if odd.size:
                raise DataError(
                    f"channel {channel} is no mask of {name}",
                    path=read.headers[min(channel, len(read.headers) - 1)].path,
                    found=f"a value of {digits(float(odd[0]))}",
                    expected=f"0 and 1, on the grid of the scan, in the last {len(names)} of {self.channels} channels",
                    hint=f"leave the masks out: the first stage makes them of {self.recipe.channels} scan(s)",
                )


def _channels_of(case: CaseInput) -> int:
    if isinstance(case, Source):
        return len(case.array)
    return len(case.channels if isinstance(case, Series) else case)
