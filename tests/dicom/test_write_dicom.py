"""DICOM beside the NIfTI of a case: all that the source can carry, and a full disk is never taken for a refusal."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import make
import numpy as np
import pytest

from segpipe.common.files import write_whole
from segpipe.dicom.codes import label_infos
from segpipe.dicom.model import Series
from segpipe.dicom.scanning import scan
from segpipe.dicom.write import all_formats as derived
from segpipe.dicom.write import stored_object as dicom_derived
from segpipe.dicom.write.all_formats import write_dicom
from segpipe.dicom.write.stored_object import AlgorithmInfo
from segpipe.errors import SegpipeError, UsageError

INFOS = label_infos({0: "background", 1: "liver"})[0]
ALGORITHM = AlgorithmInfo("tiny", "1.0.0", "0" * 64)


def write(series: Series, folder: Path, *formats: str) -> tuple[dict[str, str], dict[str, str]]:
    assert series.shape is not None
    labels = np.zeros(series.shape, np.uint8)
    labels[2:5, 3:6, 1:4] = 1
    folder.mkdir()
    return write_dicom(folder, formats, series, labels, {"liver": 0.1}, INFOS, ALGORITHM)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    folder = tmp_path_factory.mktemp("series")
    make.write(make.series(), folder)
    return scan(folder).series[0]


def test_a_report_brings_its_segmentation(series: Series, tmp_path: Path) -> None:
    assert write(series, tmp_path / "sr", "sr") == ({"seg": "seg.dcm", "sr": "sr.dcm"}, {})
    assert write(series, tmp_path / "rt", "rtstruct") == ({"rtstruct": "rtstruct.dcm"}, {})
    assert write(series, tmp_path / "none") == ({}, {})


def test_one_format_that_fails_costs_itself_and_the_report_that_needs_it(
    series: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise SegpipeError("read back, it is not the label map")

    monkeypatch.setattr(derived, "write_seg", fails)
    written, refused = write(series, tmp_path / "out", "seg", "rtstruct", "sr")
    assert written == {"rtstruct": "rtstruct.dcm"} and set(refused) == {"seg", "sr"}
    assert "read back" in refused["seg"]


@pytest.mark.parametrize("full", ["seg.dcm", "rtstruct.dcm", "sr.dcm"])
def test_a_disk_that_is_full_for_one_format_stops(
    series: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    @contextmanager
    def writes(path: str | Path) -> Iterator[Any]:
        with write_whole(path) as stream:
            yield stream
            if Path(path).name == full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dicom_derived, "write_whole", writes)
    with pytest.raises(UsageError, match="cannot write") as caught:
        write(series, tmp_path / "out", "seg", "rtstruct", "sr")
    assert caught.value.found == "No space left on device"
    assert full not in [path.name for path in (tmp_path / "out").iterdir()]
