"""What images were computed from others is told by their headers' words and codes, and ordinary ones are left alone."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from make import Grid, enhanced, plant, series, write
from pydicom.dataset import Dataset

from segpipe.cli.app import run
from segpipe.dicom.derived import KINDS, kind_of_words
from segpipe.dicom.scanning import scan

WORDS = {
    "localizer": ["ORIGINAL\\PRIMARY\\LOCALIZER", "ORIGINAL\\PRIMARY\\SCOUT_AP", "DERIVED\\SECONDARY\\AXIAL\\TOPOGRAM"],
    "projection": [
        "DERIVED\\SECONDARY\\MIP",
        "DERIVED\\SECONDARY\\OTHER\\CSA MIP",
        "DERIVED\\PRIMARY\\MIP_SAG",
        "ORIGINAL\\PRIMARY\\PROJECTION IMAGE\\COLLAPSE",
        "DERIVED\\PRIMARY\\ANGIO\\MAX_IP",
        "DERIVED\\PRIMARY\\MNIP",
        "DERIVED\\PRIMARY\\VOLUME\\MINIMUM",
    ],
    "reformatted": [
        "DERIVED\\SECONDARY\\REFORMATTED\\AVERAGE",
        "DERIVED\\SECONDARY\\MPR",
        "DERIVED\\SECONDARY\\OTHER\\CSA MPR\\\\CSAPARALLEL",
        "DERIVED\\PRIMARY\\VOLUME\\RESAMPLED",
        "derived\\secondary\\Curved MPR",
    ],
    "subtraction": [
        "DERIVED\\PRIMARY\\M\\SUB",
        "DERIVED\\SECONDARY\\SUBTRACTION",
        "ORIGINAL\\PRIMARY\\MODULUS SUBTRACT",
    ],
    "map": [
        "DERIVED\\PRIMARY\\DIFFUSION\\ADC",
        "DERIVED\\PRIMARY\\DIFFUSION\\FA\\ND\\NORM",
        "ORIGINAL\\PRIMARY\\T1 MAP\\T1\\UNSPECIFIED",
        "DERIVED\\PRIMARY\\DIFFUSION\\DIFFUSION_ANISO",
        "DERIVED\\PRIMARY\\PERFUSION\\RCBV",
        "DERIVED\\PRIMARY\\M\\T2_STAR_MAP",
        "DERIVED\\SECONDARY\\T2MAP",
        "ORIGINAL\\PRIMARY\\VELOCITY MAP",
    ],
    "computed": [
        "DERIVED\\PRIMARY\\VOLUME\\MEAN",
        "DERIVED\\SECONDARY\\IMAGE ADDITION",
        "DERIVED\\PRIMARY\\DIFFUSION\\CALC_BVALUE",
        "DERIVED\\SECONDARY\\OTHER\\SYNTHETIC",
    ],
}
SPECTRAL = [
    "DERIVED\\PRIMARY\\AXIAL\\VMI",
    "DERIVED\\SECONDARY\\AXIAL\\MONO_40KEV",
    "ORIGINAL\\PRIMARY\\AXIAL\\MonoE 70keV",
    "DERIVED\\PRIMARY\\AXIAL\\VNC",
    "DERIVED\\SECONDARY\\AXIAL\\VIRTUAL NON CONTRAST",
    "DERIVED\\PRIMARY\\AXIAL\\MAT_SPECIFIC",
    "DERIVED\\PRIMARY\\AXIAL\\IODINE",
    "DERIVED\\PRIMARY\\AXIAL\\ELECTRON_DENSITY",
]
ORDINARY = [
    "ORIGINAL\\PRIMARY\\AXIAL",
    "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SPI DUAL",
    "ORIGINAL\\PRIMARY\\AXIAL\\HELIX",
    "DERIVED\\PRIMARY\\AXIAL",
    "DERIVED\\SECONDARY",
    "DERIVED\\SECONDARY\\AXIAL",
    "ORIGINAL\\PRIMARY\\M\\ND\\NORM",
    "ORIGINAL\\PRIMARY\\M_FFE\\M\\FFE",
    "ORIGINAL\\PRIMARY\\M_SE\\M\\SE",
    "DERIVED\\PRIMARY\\M\\DIS2D\\NORM\\MFSPLIT",
    "ORIGINAL\\PRIMARY\\DIXON\\WATER",
    "ORIGINAL\\PRIMARY\\T1\\NONE",
    "ORIGINAL\\PRIMARY\\T2_STAR\\NONE",
    "ORIGINAL\\PRIMARY\\VOLUME\\NONE",
    "ORIGINAL\\PRIMARY\\DIFFUSION\\NONE\\ND",
    "ORIGINAL\\PRIMARY\\OTHER",
    "ORIGINAL\\PRIMARY",
    "",
]


def test_words_of_image_types() -> None:
    for kind, words in WORDS.items():
        for word in words:
            assert kind_of_words(word, "", "MR") == kind, word
    for word in SPECTRAL:
        assert kind_of_words(word, "", "CT") == "spectral", word
    for word in ORDINARY:
        assert {kind_of_words(word, "NONE", modality) for modality in ("CT", "MR", "PT")} == {None}, word
    assert kind_of_words("ORIGINAL\\PRIMARY\\VOLUME", "MAX_IP") == "projection"
    assert kind_of_words("DERIVED\\PRIMARY\\MONOCHROME", "", "CT") is None
    assert set(WORDS) | {"spectral"} == set(KINDS)


def code(value: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", "MARKER"
    return [item]


def one(images: list[Dataset], folder: Path) -> tuple[str, ...]:
    write(images, folder)
    (found,) = scan(folder).series
    assert found.state == "loaded"
    assert all(kind in " ".join(found.notes) for kind in found.derived)
    return found.derived


def test_codes_techniques_and_frame_types(tmp_path: Path) -> None:
    assert one(series(DerivationCodeSequence=code("113072")), tmp_path / "a") == ("reformatted",)
    assert one(series(DerivationCodeSequence=code("113041")), tmp_path / "b") == ("map",)
    assert one(series(DerivationCodeSequence=code("113040")), tmp_path / "lossy") == ()
    assert one(series(MonoenergeticEnergyEquivalent=70.0), tmp_path / "c") == ("spectral",)
    assert one(series(DerivationDescription="MIP of the ADC map"), tmp_path / "free text") == ()
    image = enhanced()
    kind = Dataset()
    kind.FrameType, kind.VolumeBasedCalculationTechnique = ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"], "NONE"
    image.SharedFunctionalGroupsSequence[0].MRImageFrameTypeSequence = [kind]
    assert one([image], tmp_path / "d") == ("map",)
    image = enhanced()
    image.VolumeBasedCalculationTechnique = "MIN_IP"
    assert one([image], tmp_path / "e") == ("projection",)
    image = enhanced()
    derivation = Dataset()
    derivation.DerivationCodeSequence = code("113062")
    image.PerFrameFunctionalGroupsSequence[2].DerivationImageSequence = [derivation]
    assert one([image], tmp_path / "one frame of it") == ("subtraction",)


def test_scan_names_them_and_quotes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = series(ImageType=["DERIVED", "SECONDARY", "MIP", "JANEDOE"])
    for image in images:
        plant(image)
    write(images, tmp_path)
    assert run(["scan", str(tmp_path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["series"]
    assert found["derived"] == ["projection"] and found["state"] == "loaded"
    assert run(["scan", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "projection" in out and "JANEDOE" not in out


def chosen(folder: Path, **options: Any) -> tuple[list[str], dict[str, int]]:
    from segpipe.prediction.cases import select_series
    from segpipe.prediction.options import Options
    from segpipe.prediction.series_filter import make_filter

    found = select_series([folder], make_filter({}, 1, Options.parse(options)))
    return [case.id for case in found.cases], Counter(left_out.rule for left_out in found.not_selected)


def test_prediction_takes_them_only_where_a_rule_asks(tmp_path: Path) -> None:
    write(series(), tmp_path / "native")
    write(series(ImageType=["DERIVED", "SECONDARY", "MPR"]), tmp_path / "mpr")
    write(series(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), tmp_path / "scout")
    write(series(Grid(slices=1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), tmp_path / "topogram")
    ids = {one.derived: one.case_id for one in scan(tmp_path).series if one.state == "loaded"}
    left_out = {"derived: localizer": 2, "derived: reformatted": 1}
    assert chosen(tmp_path) == ([ids[()]], left_out)
    taken, others = chosen(tmp_path, derived="reformatted")
    assert set(taken) == {ids[()], ids[("reformatted",)]} and others == {"derived: localizer": 2}
    assert chosen(tmp_path, series=ids[("reformatted",)]) == ([ids[("reformatted",)]], {"series": 3})
    assert len(chosen(tmp_path, derived=["all"])[0]) == 4


@pytest.mark.realdata
def test_real_series_are_as_scanned() -> None:
    """Many of them say DERIVED: MR and PET of an anonymised set, CT of a library's examples."""
    root = Path(os.environ["SEGPIPE_DATA"])
    folders = [root / "dicom", root / "ibsi_STS_003", *sorted((root / "ibsi_sts").glob("*"))[:2]]
    found = [one for folder in folders for one in scan(folder).series]
    assert len(found) > 12 and not [one.case_id for one in found if one.derived]
