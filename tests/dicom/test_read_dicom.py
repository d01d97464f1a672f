"""read_dicom: the one volume of a folder, or why there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from make import Grid, position, series, tilted, write

from segpipe.dicom import load, read_dicom, scan
from segpipe.errors import DataError, UsageError


def test_a_folder_or_one_of_its_files(tmp_path: Path) -> None:
    images = series(Grid(spacing=(1.5, 0.7)), modality="MR")
    paths = write(images, tmp_path)
    for path in (str(tmp_path), tmp_path, paths[2]):
        volume = read_dicom(path)
        assert volume.modality == "MR" and volume.array.shape == (10, 12, 6) and volume.notes == ()
        assert volume.spacing_mm == pytest.approx((0.7, 1.5, 3.0))
        assert repr(volume).startswith(f"Volume({volume.series.case_id}, MR, shape=(10, 12, 6)")
        assert (volume.affine_ras @ [4, 7, 2, 1])[:3] * [-1, -1, 1] == pytest.approx(position(images[2], 4, 7))


def test_one_of_several_by_name(tmp_path: Path) -> None:
    for seed in range(2):
        write(series(seed=seed), tmp_path / str(seed))
    with pytest.raises(DataError, match="not one DICOM series") as caught:
        read_dicom(tmp_path)
    for volume in load(tmp_path):
        assert volume.series.case_id in str(caught.value.found)
        for name in (volume.series.case_id, volume.series.series_uid):
            np.testing.assert_array_equal(read_dicom(tmp_path, series=name).array, volume.array)
    with pytest.raises(DataError, match="not one DICOM series"):
        read_dicom(tmp_path, series="dcm-000000000000")
    with pytest.raises(DataError, match="none has that id") as caught:
        read_dicom(tmp_path, series="nope")
    assert all(member.case_id in str(caught.value.expected) for member in scan(tmp_path).series)


def test_a_later_current_folder_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(series(), tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    assert all(file.is_absolute() for file in read_dicom("in").series.files)


def test_a_refused_series_is_refused_for_the_reason_of_the_scan(tmp_path: Path) -> None:
    write(tilted(), tmp_path)
    with pytest.raises(DataError, match="refused: gantry_tilt") as caught:
        read_dicom(tmp_path)
    assert caught.value.found == scan(tmp_path).series[0].detail
    assert read_dicom(tmp_path, repair="tilt").repaired == ("tilt",)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not one DICOM series"):
        read_dicom(tmp_path)
    with pytest.raises(UsageError, match="no such file or folder"):
        read_dicom(tmp_path / "nowhere")
    for path in (None, 7, ""):
        with pytest.raises(UsageError, match="not a path"):
            read_dicom(path)  # type: ignore[arg-type]
    for name, ending in (("scan.nrrd", ".nrrd"), ("scan", "without an ending")):
        (tmp_path / name).write_text("NRRD0004")
        with pytest.raises(UsageError, match="neither a DICOM folder nor") as caught:
            read_dicom(tmp_path / name)
        assert ending in str(caught.value.found) and "NIfTI" in str(caught.value.expected)
    with pytest.raises(UsageError, match="no such repair"):
        read_dicom(tmp_path, repair="twist")
