"""Nothing is silently wrong: each trap is refused for its reason, or its values are those of pydicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from traps import TRAPS

from segpipe.dicom.model import Volume
from segpipe.dicom.privacy import no_header_text
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load_series
from segpipe.errors import DataError


def outcome(folder: Path) -> tuple[list[str | None], str, list[Volume]]:
    """Return the reason of each series (None where it loads), all that was said, and the volumes."""
    reasons: list[str | None] = []
    words, volumes = "", []
    for one in scan(folder).series:
        words += one.detail + " ".join(one.notes)
        reasons.append(one.reason)
        if one.reason is None:
            try:
                volumes.append(load_series(one))
                words += " ".join(volumes[-1].notes)
            except DataError as error:
                reasons[-1] = error.reason
                words += str(error)
    return reasons, words, volumes


def assert_right(volume: Volume) -> None:
    """Compare with the pixels as pydicom decodes them, wherever HighBit says they are."""
    for place, frame in enumerate(volume.series.frames):
        with no_header_text():
            image = dcmread(frame.path)
            bits, image.BitsStored = image.BitsStored, image.BitsAllocated  # as pydicom does not know HighBit
            stored = image.pixel_array.reshape(-1, image.Rows, image.Columns)[frame.number]
            if bits < image.BitsAllocated:
                stored = stored >> (image.HighBit + 1 - bits) & ((1 << bits) - 1)
        values = stored * float(image.get("RescaleSlope") or 1) + float(image.get("RescaleIntercept") or 0)
        np.testing.assert_array_equal(volume.array[:, :, place], values.T)


@pytest.mark.parametrize("name", TRAPS)
def test_no_trap_is_silently_wrong(name: str, tmp_path: Path) -> None:
    trap = TRAPS[name]
    trap.make(tmp_path / "series")
    reasons, words, volumes = outcome(tmp_path)
    assert reasons == [trap.reason] * trap.volumes, words
    for part in trap.words:
        assert part in words
    for volume in volumes:
        assert_right(volume)
