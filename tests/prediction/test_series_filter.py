"""Which series of a tree are cases, which are refused, which a rule left out, and that words name no file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import generate_uid

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


def test_a_number_of_slices_that_is_not_known_leaves_nothing_out(tmp_path: Path) -> None:
    """A multi-frame file that is cut short counts as its header does, a mosaic not at all."""
    for name, slices in (("cut", 8), ("few", 4)):
        make.write([make.enhanced(make.Grid(slices=slices))], tmp_path / name)
    (path,) = (tmp_path / "cut").iterdir()
    path.write_bytes(path.read_bytes()[:-99])
    make.write(make.series(make.Grid(slices=1), "MR", ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]), tmp_path / "tiles")
    make.write(make.series(make.Grid(slices=1), "MR"), tmp_path / "one")
    chosen = select_series([tmp_path], make_filter({}, 1, Options.parse({"min_slices": 6})))
    assert sorted(str(case.refusal and case.refusal.reason) for case in chosen.cases) == ["mosaic", "truncated"]
    assert [each.rule for each in chosen.not_selected] == ["min-slices"] * 2
    chosen = select_series([tmp_path / "cut"], make_filter({}, 1, Options.parse({"max_slices": 6})))
    assert [each.rule for each in chosen.not_selected] == ["max-slices"]


def test_unreadable_slices_beside_a_scout_are_a_refused_case(tmp_path: Path) -> None:
    scout = make.series(make.Grid(slices=3), "MR", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    make.write(scout, tmp_path / "study", "scout")
    make.write(make.series(make.Grid(slices=5), "MR"), tmp_path / "whole")
    for number in range(4):
        for folder in ("study", "whole"):
            (tmp_path / folder / f"JaneDoe_{number}.dcm").write_bytes(bytes(128) + b"DICM" + b"junk")
    chosen = select_series([tmp_path], make_filter({}, 1, Options()))
    (lost,) = [case for case in chosen.cases if case.refusal]
    assert lost.refusal is not None and lost.refusal.reason == "unreadable"
    assert {path.parent.name for path in lost.paths} == {"study"} and len(lost.paths) == 4
    assert "4 file(s) of a folder cannot be read" in lost.refusal.detail
    (case,) = [case for case in chosen.cases if case.series is not None]
    assert case.series is not None
    assert any("4 unreadable file(s) in the same folder" in note for note in case.series.notes)


def test_naming_one_of_several_series_of_a_channel_leaves_the_other_channels(tmp_path: Path) -> None:
    """What the refusal of an ambiguous channel advises."""
    for study in ("a", "b"):
        here = {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid()}
        for seed, (name, modality) in enumerate((("CT", "CT"), ("soft", "CT"), ("PET", "PT"))):
            units = {"Units": "BQML"} if modality == "PT" else {}
            make.write(make.series(make.Grid(), modality, seed=seed, **here, **units), tmp_path / study / name)
    metadata = {"network_data_format": {"inputs": {"image": {"channel_def": {"0": "CT", "1": "PET"}}}}}
    chosen = select_series([tmp_path], make_filter(metadata, 2, Options()))
    details = [case.refusal.detail for case in chosen.cases if case.refusal]
    assert len(details) == 2 and all("Name those to take with --series" in detail for detail in details)
    (ct,) = scan(tmp_path / "a/soft").series
    for name in (ct.case_id, ct.series_uid):
        chosen = select_series([tmp_path], make_filter(metadata, 2, Options.parse({"series": name})))
        (case,) = chosen.cases
        assert case.series is not None
        assert [channel.modality for channel in case.series.channels] == ["CT", "PT"]
        assert case.id == ct.case_id and {each.rule for each in chosen.not_selected} == {"series"}
        assert len(chosen.not_selected) == 4  # the other CT, and all of the other study


@pytest.mark.parametrize("option", [{"min_slices": 6}, {"modality": "MR"}, {"repair": "tilt"}, {"derived": "all"}])
def test_options_for_series_are_refused_where_there_is_none(tmp_path: Path, option: dict[str, Any]) -> None:
    write_scan(tmp_path / "n.nii.gz")
    (tmp_path / "notes.txt").write_text("x")
    (name,) = option
    for more in ({}, {"only": "nifti"}):
        with pytest.raises(UsageError, match="options for DICOM series") as caught:
            select_cases([tmp_path], {}, 1, Options.parse({**option, **more}), tmp_path / "out")
        assert caught.value.found == f"--{name.replace('_', '-')}"
    make.write(make.series(modality="MR"), tmp_path / "mr")
    cases = select_cases([tmp_path], {}, 1, Options.parse(option), tmp_path / "out").cases
    assert any(case.series is None for case in cases)
