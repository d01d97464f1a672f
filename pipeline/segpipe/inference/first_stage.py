"""The first of two stages: its label map of a case becomes the last channels of the second, a mask of each label."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from segpipe.common.console import digits
from segpipe.dicom import Series
from segpipe.errors import DataError
from segpipe.inference.output import LabelMap
from segpipe.inference.recipe import Recipe
from segpipe.inference.source import CaseInput, ReadCase, Source, preview_of, read_case


@dataclass(frozen=True)
class FirstStage:
    """What gives a case the channels that the second stage has and a scan has not.

    Attributes:
        recipe: of the first stage.
        channels: of the second stage.
        segment: gives the label map of a case by the first stage.
    """

    recipe: Recipe
    channels: int
    segment: Callable[[CaseInput], LabelMap]

    def read(self, case: CaseInput, read: ReadCase | None, seconds: dict[str, float]) -> ReadCase:
        """Return the images of a case with its masks; as they are, where they have all channels already.

        Args:
            case: its scans, or its scans and masks.
            read: the same, where they were read before.
            seconds: the time of the first stage is added.

        Raises:
            SegpipeError: the scans cannot be used, what is given as a mask is none, or the first stage fails.
        """
        if _channels_of(case) == self.channels:
            read = read or read_case(case, self.channels, masks=self.channels - self.recipe.channels)
            self._require_masks(read)
            return read
        read = read or read_case(case, self.recipe.channels)
        start, scans = time.perf_counter(), read.source
        found = self.segment(replace(scans))  # which it lets go; the voxels stay here
        if found.regions:
            raise DataError("the first stage gives regions that overlap", expected="one label map")
        values = [value for value in sorted(self.recipe.labels) if value]
        masks = np.stack([found.labels == value for value in values]).astype(scans.array.dtype)
        joined = replace(scans, array=np.concatenate([scans.array, masks]))
        seconds["first_stage"] = round(time.perf_counter() - start, 3)
        return ReadCase([read.headers[0]] * self.channels, joined, preview_of(joined))

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
