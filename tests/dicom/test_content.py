"""What tells a case again: other channels, slices, pixels and places are others; copies and names are not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from make import Grid, enhanced, series, write
from pydicom.dataset import Dataset

from segpipe.dicom.content import describe_series, has_other_content, has_other_slices, slices_of
from segpipe.dicom.model import Registration, Series
from segpipe.dicom.scanning import scan


def found(folder: Path) -> Series:
    (one,) = scan(folder).series
    return one


def test_channels_are_told_by_their_order_and_by_what_is_made_of_them(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b", "c")):
        write(series(seed=seed), tmp_path / name)
    first, second, third = (found(tmp_path / name) for name in ("a", "b", "c"))
    case = replace(first, further=(second, third))
    turn = Registration(((1.0, 0, 0, 4), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0)), second.files[0])
    others = [
        replace(first, further=(third, second)),
        replace(first, further=(second,)),
        first,
        replace(case, further=(replace(second, registration=turn), third)),
        replace(case, further=(second, replace(third, registration=turn))),
        replace(case, further=(replace(second, converted_to="SUVbw"), third)),
        replace(case, further=(second, replace(third, repaired=("tilt",)))),
    ]
    assert len({slices_of(each) for each in (case, *others)}) == 1 + len(others)
    before = describe_series(case)
    assert not has_other_slices(case, before) and all(has_other_slices(each, before) for each in others)


@pytest.mark.parametrize("name", ["PixelData", "RescaleSlope", "ImagePositionPatient", "PatientName"])
@pytest.mark.parametrize("is_enhanced", [False, True])
def test_content_is_pixels_and_places_wherever_they_lie(tmp_path: Path, name: str, is_enhanced: bool) -> None:
    images = [enhanced(Grid(slices=4))] if is_enhanced else series(Grid(slices=4))
    write(images, tmp_path / "in")
    before = describe_series(found(tmp_path / "in"))
    shutil.copytree(tmp_path / "in", tmp_path / "copy", copy_function=shutil.copyfile)
    copy = found(tmp_path / "copy")
    assert before["stat"] != describe_series(copy)["stat"] and not has_other_content(copy, before)
    for image in images:
        _change(image, name)
    write(images, tmp_path / "in")
    now = found(tmp_path / "in")
    assert not has_other_slices(now, before)
    assert has_other_content(now, before) == (name != "PatientName" or is_enhanced)  # of those every byte counts
    assert not has_other_content(now, {"slices": before["slices"]})  # of before content was kept


def _change(image: Dataset, name: str) -> None:
    if name == "PixelData":
        image.PixelData = image.PixelData[:-2] + b"\x07\x00"
    elif name == "RescaleSlope":
        image.RescaleSlope = "2"
    elif name == "PatientName":
        image.PatientName = "Roe^Richard"
    elif "PerFrameFunctionalGroupsSequence" in image:
        for item in image.PerFrameFunctionalGroupsSequence:
            item.PlanePositionSequence[0].ImagePositionPatient[2] += 1
    else:
        image.ImagePositionPatient[2] = float(image.ImagePositionPatient[2]) + 1


def test_a_unit_is_of_the_headers_too(tmp_path: Path) -> None:
    images = series(modality="PT", Units="BQML", PatientWeight="70")
    write(images, tmp_path)
    stored = found(tmp_path)
    converted = replace(stored, converted_to="SUVbw")
    before = describe_series(stored), describe_series(converted)
    for image in images:
        image.PatientWeight = "71"
    write(images, tmp_path)
    stored = found(tmp_path)
    assert not has_other_content(stored, before[0])
    assert has_other_content(replace(stored, converted_to="SUVbw"), before[1])
