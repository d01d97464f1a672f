"""DICOM cases in the viewer: read again as they were for the prediction, whatever that took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom import make
from dicom.registered import STUDY, item, reg, rigid
from segpipe.dicom import join_channels, load_channels, load_series, parse_channels, scan
from segpipe.dicom.captures import admitted
from segpipe.dicom.registration import open_registrations
from segpipe.viewer import ViewedCase
from segpipe.viewer.volumes import read_case

GRID = make.Grid(rows=8, columns=9, slices=7, spacing=(2.0, 2.0), step=2.0)


def write_registered(folder: Path) -> ViewedCase:
    """CT and PET of two frames of reference, and the object that moves one onto the other."""
    frames = {"CT": generate_uid(), "PT": generate_uid()}
    for seed, (modality, frame) in enumerate(frames.items()):
        own = {"StudyInstanceUID": STUDY, "FrameOfReferenceUID": frame, "SeriesInstanceUID": f"1.2.3.{seed}"}
        units = {"Units": "BQML"} if modality == "PT" else {}
        make.write(make.series(GRID, modality, seed=seed, **own, **units), folder / modality)
    link = item(frames["PT"], rigid(0.0, (4.0, 0.0, 0.0)))
    make.write([reg(frames["CT"], link)], folder / "REG")
    tree = scan(folder)
    (case,) = join_channels(
        tree.series, parse_channels(["CT", "PET"]), None, open_registrations(tree.passed_over)
    ).cases
    assert case.state == "loaded" and case.further[0].registration is not None
    return ViewedCase(case.case_id, case.all_files)


def test_a_channel_lies_where_a_registration_object_moved_it(tmp_path: Path) -> None:
    case = write_registered(tmp_path)
    tree = scan(tmp_path)
    (joined,) = join_channels(
        tree.series, parse_channels(["CT", "PET"]), None, open_registrations(tree.passed_over)
    ).cases
    seen = load_channels(joined)
    shown = read_case(case)
    assert [(volume.name, volume.unit) for volume in shown.volumes] == [("CT", "HU"), ("PT", "BQML")]
    for volume, channel in zip(shown.volumes, seen, strict=True):
        np.testing.assert_allclose(volume.values, channel.array, atol=1e-3)
    unmoved = load_series(joined.further[0]).array
    assert not np.allclose(shown.volumes[1].values, unmoved)
    assert any("moved by the rigid matrix of a registration object" in note for note in shown.notes)


def test_a_channel_whose_registration_object_is_gone_is_left_out(tmp_path: Path) -> None:
    case = write_registered(tmp_path)
    files = tuple(path for path in case.images if path.parent.name != "REG")
    shown = read_case(ViewedCase(case.id, files))
    assert [volume.name for volume in shown.volumes] == ["CT"]
    assert (
        "channel PT is left out: it lies in another frame of reference, and what registered it is gone" in shown.notes
    )


def uneven() -> list[Dataset]:
    images = make.series(make.Grid(slices=8))
    for number, image in enumerate(images):
        image.ImagePositionPatient[2] = float(image.ImagePositionPatient[2]) + 0.25 * number**1.5
    return images


def captured() -> list[Dataset]:
    images = make.series()
    for image in images:
        image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    return images


@pytest.mark.parametrize("images", [uneven(), make.tilted(), captured()], ids=["spacing", "tilt", "capture"])
def test_a_series_that_somebody_asked_for_is_shown(tmp_path: Path, images: list[Dataset]) -> None:
    make.write(images, tmp_path)
    (series,) = scan(tmp_path).series
    assert series.state == "refused"
    shown = read_case(ViewedCase(series.case_id, series.files))
    (taken,) = admitted([series], ("tilt", "spacing"), [series.case_id] if series.is_capture else [])
    assert shown.pictures_only is None
    np.testing.assert_allclose(shown.volumes[0].values, load_series(taken).array)
