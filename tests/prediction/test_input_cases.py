"""Which files are one case, and what it is called."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.data.manifest import CASE_ID, Case, Manifest, save_manifest
from segpipe.errors import DataError, UsageError
from segpipe.inference.source import read_headers
from segpipe.prediction.cases import InputCase, _of_files, find_cases, select_cases
from segpipe.prediction.options import Options


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def ids(items: list[InputCase]) -> list[str]:
    return [item.id for item in items]


def test_folder_is_searched_below_and_results_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", "deep/a.nii", "notes.txt", ".hidden/c.nii", "out/b/segmentation.nii.gz")
    items = find_cases([tmp_path], 1, Options(), out=tmp_path / "out")
    assert ids(items) == ["a", "b"]
    assert items[0].paths == (tmp_path / "deep/a.nii",)


def test_a_file_named_twice_is_one_case(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    assert ids(find_cases([tmp_path, tmp_path / "a.nii.gz"], 1, Options())) == ["a"]


def test_channel_files_are_one_case_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    touch(tmp_path, "p_0001.nii.gz", "p_0000.nii.gz", "q_0000.nii.gz")
    items = find_cases([tmp_path], 2, Options())
    assert ids(items) == ["p", "q"]
    assert [path.name for path in items[0].paths] == ["p_0000.nii.gz", "p_0001.nii.gz"]


def test_one_channel_loses_its_suffix_only_where_all_have_it(tmp_path: Path) -> None:
    assert ids(find_cases([touch(tmp_path / "1", "p_0000.nii", "q_0000.nii")], 1, Options())) == ["p", "q"]
    assert ids(find_cases([touch(tmp_path / "2", "p_0000.nii", "p_0001.nii")], 1, Options())) == ["p_0000", "p_0001"]


@given(st.sets(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,8}", fullmatch=True), min_size=1), st.integers(2, 4))
def test_grouping_keeps_every_file_once(stems: set[str], channels: int) -> None:
    files = [Path("/d") / f"{stem}_{index:04}.nii.gz" for stem in stems for index in range(channels)]
    items = _of_files(files[::-1], channels)
    assert {item.id for item in items} == stems
    assert sorted(path for item in items for path in item.paths) == sorted(files)
    assert all(list(item.paths) == sorted(item.paths) and len(item.paths) == channels for item in items)


def test_two_files_of_one_stem_are_refused_by_name_unless_pseudonymised(tmp_path: Path) -> None:
    touch(tmp_path, "x/scan.nii.gz", "y/scan.nii")
    with pytest.raises(UsageError) as caught:
        find_cases([tmp_path], 1, Options())
    assert str(tmp_path / "x/scan.nii.gz") in str(caught.value)
    assert str(tmp_path / "y/scan.nii") in str(caught.value)
    assert "--pseudonymise" in str(caught.value.hint)
    assert len(set(ids(find_cases([tmp_path], 1, Options(pseudonymise=True))))) == 2
    files = [tmp_path / "x/scan.nii.gz", tmp_path / "y/scan.nii"]
    assert len(set(ids(find_cases(files, 1, Options(pseudonymise=True))))) == 2


def test_a_pseudonym_is_the_hash_of_the_relative_path(tmp_path: Path) -> None:
    touch(tmp_path, "deep/Jane Doe.nii.gz")
    (item,) = find_cases([tmp_path], 1, Options(pseudonymise=True))
    assert item.id == "case-" + hashlib.sha256(b"deep/Jane Doe.nii.gz").hexdigest()[:12]
    assert CASE_ID.match(item.id)


@pytest.mark.parametrize("name", ["Jane Doe.nii.gz", "-a.nii", "predictions.jsonl.nii"])
def test_a_name_that_cannot_be_an_id_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a case id"):
        find_cases([touch(tmp_path, name)], 1, Options())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to segment"):
        select_cases([tmp_path], {}, 1, Options(), tmp_path / "out")
    with pytest.raises(UsageError, match="neither NIfTI nor DICOM"):
        select_cases([touch(tmp_path, "b.txt") / "b.txt"], {}, 1, Options(), tmp_path / "out")
    with pytest.raises(UsageError, match="no such file"):
        find_cases([tmp_path / "gone.nii"], 1, Options())
    with pytest.raises(UsageError, match="not a NIfTI"):
        find_cases([touch(tmp_path, "a.txt") / "a.txt"], 1, Options())


def test_a_manifest_names_its_cases_by_split(tmp_path: Path) -> None:
    manifest = Manifest(
        name="m",
        modality={"0": "MRI"},
        labels={"0": "background", "1": "x"},
        training=[Case(id="t0", image="i/t0.nii.gz", label="l/t0.nii.gz", fold=0)],
        test=[Case(id="z", image="i/other.nii.gz")],
    )
    save_manifest(manifest, tmp_path / "m.json")
    assert ids(find_cases([tmp_path / "m.json"], 1, Options())) == ["t0", "z"]
    (item,) = find_cases([tmp_path / "m.json"], 1, Options(split="test"))
    assert item == InputCase("z", (tmp_path / "i/other.nii.gz",))
    assert ids(find_cases([tmp_path / "m.json"], 1, Options(split="validation", fold=0))) == ["t0"]
    with pytest.raises(UsageError, match="stands alone"):
        find_cases([tmp_path / "m.json", tmp_path], 1, Options())
    with pytest.raises(UsageError, match="belong to a manifest"):
        find_cases([tmp_path], 1, Options(split="test"))


def test_a_missing_channel_is_never_taken_by_the_next_one(tmp_path: Path) -> None:
    touch(tmp_path, "p_0000.nii.gz", "p_0002.nii.gz", "q_0001.nii.gz")
    p, q = find_cases([tmp_path], 2, Options())
    assert [path.name for path in p.paths] == ["p_0000.nii.gz", "p_0001.nii.gz", "p_0002.nii.gz"]
    assert [path.name for path in q.paths] == ["q_0000.nii.gz", "q_0001.nii.gz"]
    with pytest.raises(UsageError, match="channel's file is missing"):
        read_headers(q.paths, 2)


def test_a_file_without_a_channel_is_a_case_and_no_channel(tmp_path: Path) -> None:
    items = find_cases([touch(tmp_path / "1", "p_0000.nii", "p_0001.nii", "q.nii")], 2, Options())
    assert [len(item.paths) for item in items] == [2, 1]
    with pytest.raises(UsageError, match="same case id"):
        find_cases([touch(tmp_path / "2", "p_0000.nii", "p.nii")], 2, Options())
    with pytest.raises(UsageError, match="same channel"):
        find_cases([touch(tmp_path / "3", "p_0000.nii", "p_0000.nii.gz")], 2, Options())


def test_names_that_are_not_utf8_have_a_pseudonym(tmp_path: Path) -> None:
    (item,) = find_cases([touch(tmp_path, os.fsdecode(b"M\xfcller.nii.gz"))], 1, Options(pseudonymise=True))
    assert item.id == "case-" + hashlib.sha256(b"M\xfcller.nii.gz").hexdigest()[:12]
