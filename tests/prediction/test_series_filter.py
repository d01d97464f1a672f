"""Which series of a tree are cases, which are refused, which a rule left out, and that words name no file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dicom import make
from segpipe.dicom.model import Series
from segpipe.dicom.scanning import scan
from segpipe.errors import DataError, UsageError
from segpipe.prediction.cases import select_cases, select_series
from segpipe.prediction.options import Options
from segpipe.prediction.series_filter import SeriesFilter, make_filter
from tiny_bundle import write_scan


def tree(root: Path) -> Path:
    """An MR, a CT, a stack with a gap, an unreadable file, a text file and a NIfTI file."""
    make.write(make.series(make.Grid(slices=8), "MR", SeriesDescription="T1 axial"), root / "JaneDoe mr")
    make.write(make.series(make.Grid(slices=5), "CT", SeriesDescription="thorax"), root / "ct")
    gap = make.series(make.Grid(slices=8), "MR", SeriesDescription="T2")
    make.write(gap[:3] + gap[4:], root / "JaneDoe gap")
    (root / "lost").mkdir()
    (root / "lost" / "JaneDoe.dcm").write_bytes(bytes(128) + b"DICM" + b"junk")
    (root / "notes.txt").write_text("JaneDoe")
    write_scan(root / "n.nii.gz")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree(tmp_path_factory.mktemp("tree"))


def test_every_series_and_file_is_accounted_for(folder: Path, tmp_path: Path) -> None:
    work = select_cases([folder], {}, 1, Options(), tmp_path)
    by_id = {item.id: item for item in work.cases}
    assert by_id.pop("n").paths == (folder / "n.nii.gz",)
    assert len(by_id) == 4 and all(id.startswith("dcm-") for id in by_id)
    good = [item for item in by_id.values() if item.series is not None]
    assert sorted(item.series.modality for item in good) == ["CT", "MR"]  # type: ignore[union-attr]
    refused = {item.refusal.reason: item.refusal.detail for item in by_id.values() if item.refusal}
    assert set(refused) == {"gap", "unreadable"}
    assert "file 3 of 7 and file 4 of 7 are 6.000 mm apart" in refused["gap"]
    assert not any("Jane" in text for text in refused.values())
    assert work.passed_over == {"unreadable": 1, "not_dicom": 1} and not work.not_selected


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        ({"modality": ["CT"]}, {"modality": 2}),
        ({"modality": ["ct, mr"]}, {}),
        ({"series_description": "^t[12]"}, {"series-description": 1}),
        ({"min_slices": 6}, {"min-slices": 1}),
        ({"max_slices": 7}, {"max-slices": 1}),
        ({"modality": ["MR"], "min_slices": 8}, {"modality": 1, "min-slices": 1}),
        ({"channels": 2}, {"channels": 3}),
    ],
)
def test_rules_leave_out_by_name(folder: Path, options: dict[str, Any], left_out: dict[str, int]) -> None:
    chosen = select_series([folder], make_filter({}, options.pop("channels", 1), Options.parse(options)))
    found = [each.rule for each in chosen.not_selected]
    assert {rule: found.count(rule) for rule in found} == left_out
    assert len(chosen.cases) == 4 - len(found)  # three series and the lost folder


@pytest.mark.parametrize(
    ("stated", "expected"),
    [("CT", ("CT",)), ("MRI", ("MR",)), ("pet", ("PT",)), ("T1, T2", ()), (None, ()), (["CT"], ())],
)
def test_without_an_option_the_bundle_says_the_modality(stated: Any, expected: tuple[str, ...]) -> None:
    metadata = {"network_data_format": {"inputs": {"image": {"modality": stated}}}}
    assert make_filter(metadata, 1, Options()).modality == expected
    assert make_filter(metadata, 1, Options.parse({"modality": ["US"]})).modality == ("US",)
    assert make_filter({"network_data_format": "odd"}, 1, Options()).modality == ()


def test_what_lies_below_the_results_is_no_input(folder: Path) -> None:
    chosen = select_series([folder], SeriesFilter(), out=folder / "ct")
    assert sorted(item.series.modality for item in chosen.cases if item.series) == ["MR"]


def test_wrong_input(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a regular expression"):
        Options.parse({"series_description": "("})
    with pytest.raises(UsageError, match="neither an image nor DICOM"):
        select_cases([folder / "notes.txt"], {}, 1, Options(), tmp_path)
    with pytest.raises(DataError, match="nothing to segment") as caught:
        select_cases([folder / "ct"], {}, 1, Options(modality=("MR",)), tmp_path)
    assert "1 series left out by modality" in str(caught.value.found)


def test_notes_name_no_file(tmp_path: Path) -> None:
    images = make.series(make.Grid(slices=5), "MR")
    make.write(images, tmp_path / "JaneDoe")
    make.write(images[1:2], tmp_path / "JaneDoe" / "copy")
    (item,) = select_cases([tmp_path], {}, 1, Options(), tmp_path / "out").cases
    assert item.series is not None
    (note,) = [note for note in item.series.notes if "copies" in note]
    assert "file" in note and "of 6" in note and "Jane" not in note and "\x02" not in note


def test_broken_headers_do_not_give_two_series_one_id(tmp_path: Path) -> None:
    for name, rows in (("a", 10), ("b", 11)):
        images = make.series(make.Grid(rows=rows))
        for image in images:
            image.SeriesInstanceUID = image.StudyInstanceUID = ""
        make.write(images, tmp_path / name)
    work = select_cases([tmp_path], {}, 1, Options(), tmp_path / "out")
    assert len({item.id for item in work.cases}) == len(work.cases) >= 1


def test_a_series_survives_being_handed_to_another_process(folder: Path) -> None:
    for series in scan(folder).series:
        again = Series.from_dict(json.loads(json.dumps(series.as_dict())))
        assert again.as_dict() == series.as_dict() and "description" not in series.as_dict()
        assert again.frames == series.frames and again.files == series.files
