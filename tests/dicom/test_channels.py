"""Series as channels of a case: joined only where the headers say that they lie in one space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import make
import numpy as np
import pytest
from pydicom.uid import generate_uid

from segpipe.dicom.channels import channels_by_name, join_channels, parse_channels
from segpipe.dicom.model import Series
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load_channels, load_series
from segpipe.errors import UsageError

CT = make.Grid(rows=16, columns=20, slices=8, spacing=(1.0, 1.0), step=2.0, origin=(-10.0, -8.0, 0.0))
PET = make.Grid(rows=6, columns=7, slices=5, spacing=(4.0, 4.0), step=4.0, origin=(-13.0, -12.0, -1.0))
CT_PET = parse_channels(["CT", "PET"])


def one_space() -> dict[str, Any]:
    return {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid()}


def scanned(folder: Path, *parts: tuple[str, make.Grid, dict[str, Any]]) -> list[Series]:
    for number, (modality, grid, attributes) in enumerate(parts):
        make.write(make.series(grid, modality, seed=number, **attributes), folder / str(number))
    return list(scan(folder).series)


def joined(folder: Path, *parts: tuple[str, make.Grid, dict[str, Any]], rules: Any = CT_PET) -> list[Series]:
    return join_channels(scanned(folder, *parts), rules).cases


def test_ct_and_pet_of_one_frame_of_reference_are_one_case(tmp_path: Path) -> None:
    here, other = one_space(), one_space()
    series = scanned(tmp_path, ("PT", PET, here), ("CT", CT, here), ("CT", CT, other), ("MR", CT, here))
    found = join_channels(series, CT_PET)
    case, lonely = sorted(found.cases, key=lambda one: one.reason or "")
    assert [channel.modality for channel in case.channels] == ["CT", "PT"]
    assert case.state == "loaded" and case.shape == (20, 16, 8)
    assert case.notes == ()
    short = make.Grid(rows=6, columns=7, slices=3, spacing=(4.0, 4.0), step=4.0, origin=(-13.0, -12.0, -1.0))
    part, *_ = joined(tmp_path / "short", ("CT", CT, here), ("PT", short, here))
    assert part.notes == ("channel PET does not cover 38 % of the first channel: there it has its smallest value",)
    assert len(case.all_files) == 13
    assert (lonely.reason, lonely.detail) == (
        "channels",
        "its study has no channel PET (PT) that is taken, expected one in its frame of reference.",
    )
    assert [one.modality for one in found.others] == ["MR"]
    again = Series.from_dict(case.as_dict())
    assert [channel.case_id for channel in again.channels] == [channel.case_id for channel in case.channels]
    ct, pet = load_channels(again)
    np.testing.assert_array_equal(ct.array, load_series(case).array)
    assert pet.array.shape == ct.array.shape and pet.array.dtype == np.float32
    # the voxel (7, 6, 5) of the CT is at LPS (-3, -2, 10): column 2.5, row 2.5, slice 2.75 of the PET
    corner = load_series(case.further[0]).array[2:4, 2:4, 2:4].astype(float)
    assert pet.array[7, 6, 5] == pytest.approx(corner.mean(axis=(0, 1)) @ [0.25, 0.75], rel=1e-5)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"FrameOfReferenceUID": "1.2.3"}, "lies in another frame of reference, expected the same"),
        ({"StudyInstanceUID": "1.2.3"}, "its study has no channel PET"),
    ],
)
def test_another_space_or_study_is_never_joined(tmp_path: Path, changed: dict[str, str], words: str) -> None:
    here = one_space()
    (case,) = joined(tmp_path, ("CT", CT, here), ("PT", PET, {**here, **changed}))
    assert case.reason == "channels" and words in case.detail and case.further == ()


def test_series_without_a_frame_of_reference_are_never_joined(tmp_path: Path) -> None:
    here = {**one_space(), "FrameOfReferenceUID": ""}
    (case,) = joined(tmp_path, ("CT", CT, here), ("PT", PET, here))
    assert case.reason == "channels" and "another frame of reference" in case.detail


def test_a_choice_among_several_is_left_to_the_user(tmp_path: Path) -> None:
    here = one_space()
    parts = (
        ("CT", CT, here),
        ("PT", PET, {**here, "SeriesDescription": "PET AC"}),
        ("PT", PET, {**here, "SeriesDescription": "PET uncorrected"}),
    )
    (case,) = joined(tmp_path, *parts)
    assert case.reason == "channels" and "2 series of its study" in case.detail
    assert "uncorrected" not in case.detail  # descriptions are free text
    rules = parse_channels(["CT", "PET=PT:ac$"])
    (case,) = join_channels(list(scan(tmp_path).series), rules).cases
    assert case.state == "loaded" and case.further[0].description == "PET AC"
    both = joined(tmp_path / "more", ("CT", CT, here), ("CT", CT, here), ("PT", PET, here))
    assert [one.reason for one in both] == ["channels"] and "the channel CT" in both[0].detail
    one_for_two = joined(tmp_path / "both", *parts[:2], rules=parse_channels(["CT", "A=PT:AC", "B=PT:PET A"]))
    assert "one series fits several channels" in one_for_two[0].detail


def test_scouts_and_what_was_computed_are_no_channels_beside_originals(tmp_path: Path) -> None:
    here = one_space()
    one_slice = make.Grid(rows=16, columns=20, slices=1)
    projection = {"ImageType": ["DERIVED", "SECONDARY", "MIP"], "SeriesDescription": "mip"}
    parts = (
        ("CT", CT, here),
        ("CT", one_slice, here),
        ("CT", one_slice, {**here, "FrameOfReferenceUID": "1.2.3"}),
        ("PT", PET, here),
        ("PT", PET, {**here, **projection}),
    )
    found = join_channels(scanned(tmp_path, *parts), CT_PET)
    (case,) = found.cases
    assert case.state == "loaded", case.detail
    assert case.further[0].derived == () and len(found.others) == 3
    (case,) = join_channels(list(scan(tmp_path).series), parse_channels(["CT", "PET=PT:mip"])).cases
    assert case.further[0].derived == ("projection",)


def test_a_refused_or_distant_channel_refuses_its_case(tmp_path: Path) -> None:
    here = one_space()
    images = make.series(PET, "PT", **here)
    make.write([image for number, image in enumerate(images) if number != 2], tmp_path / "a/pet")
    (case,) = joined(tmp_path / "a", ("CT", CT, here))
    assert case.reason == "gap" and case.detail.startswith("its channel PET is refused: ")
    far = make.Grid(rows=6, columns=7, slices=5, origin=(900.0, 0.0, 0.0))
    (case,) = joined(tmp_path / "b", ("CT", CT, here), ("PT", far, here))
    assert case.reason == "channels" and "lies beside the first channel" in case.detail


def test_rules() -> None:
    t1, t2 = parse_channels(["T1=MRI:^t1", "T2=mr:t2"])
    assert (t1.name, t1.modality, t2.name, t2.modality) == ("T1", "MR", "T2", "MR")
    names = channels_by_name(["CT", "pet"])
    assert names is not None and [rule.modality for rule in names] == ["CT", "PT"]
    assert channels_by_name(["CT", "FLAIR"]) is None and channels_by_name([]) is None
    for wrong in (["XX"], ["=CT"], ["A=XX"], ["CT", "CT"], ["A=MR:("]):
        with pytest.raises(UsageError):
            parse_channels(wrong)
