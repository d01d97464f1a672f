"""What a header says of who and how was scanned, and what is left out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dicom.make import series, write
from segpipe.data import Covariates
from segpipe.dicom import covariates_of, scan


def said_by(folder: Path, **attributes: Any) -> dict[str, Any]:
    images = series(**{"modality": "MR", **attributes})
    write(images, folder)
    (found,) = scan([folder]).series
    return covariates_of(found)


def test_a_header_is_read_by_the_names_of_a_manifest(tmp_path: Path) -> None:
    found = said_by(
        tmp_path,
        PatientAge="047Y",
        PatientSex="F",
        Manufacturer="Siemens Healthineers",
        MagneticFieldStrength="3",
        BodyPartExamined="head",
        PatientPosition="HFS",
        ConvolutionKernel=["Br40f", "3"],
    )
    assert found["age_years"] == 47
    assert found["sex"] == "F"
    assert found["maker"] == "SIEMENS"
    assert found["field_strength_t"] == 3
    assert found["body_part"] == "HEAD"
    assert found["position"] == "HFS"
    assert found["kernel"] == "BR40F"
    assert Covariates(**found).known == found


@pytest.mark.parametrize(
    ("attributes", "age"),
    [
        ({"PatientAge": "018M"}, 1),
        ({"PatientAge": "104Y"}, 90),
        ({"PatientAge": "", "PatientBirthDate": "19800615", "StudyDate": "20200614"}, 39),
        ({"PatientAge": "", "PatientBirthDate": "20300101", "StudyDate": "20200614"}, None),
        ({"PatientAge": "old", "PatientBirthDate": ""}, None),
        ({"PatientAge": "", "PatientBirthDate": "19000101", "StudyDate": "20090101"}, None),
        ({"PatientAge": "", "PatientBirthDate": "19010101", "StudyDate": "20200101"}, None),
        ({"PatientAge": "", "PatientBirthDate": "19120615", "StudyDate": "20200614"}, 90),
        ({"PatientAge": "000Y", "PatientBirthDate": "", "StudyDate": "20200614"}, None),
        ({"PatientAge": "003D"}, 0),
    ],
)
def test_an_age_is_whole_years_of_what_can_be_one(tmp_path: Path, attributes: dict[str, str], age: int | None) -> None:
    assert said_by(tmp_path, **attributes).get("age_years") == age


def test_gauss_becomes_tesla_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    assert said_by(tmp_path / "a", MagneticFieldStrength="15000")["field_strength_t"] == 1.5
    assert "field_strength_t" not in said_by(tmp_path / "b", MagneticFieldStrength="-1")
    words = {"PatientSex": "unclear", "Manufacturer": "Doe", "ConvolutionKernel": "Jane", "BodyPartExamined": "DOE"}
    assert not {"sex", "maker", "kernel", "body_part"} & set(said_by(tmp_path / "c", **words))


def test_a_header_that_is_gone_says_nothing(tmp_path: Path) -> None:
    write(series(), tmp_path)
    (found,) = scan([tmp_path]).series
    for path in found.files:
        path.unlink()
    assert covariates_of(found) == {}
