"""Which files are one case, and what it is called."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from dicom.make import series, write
from segpipe.common.folder_walk import ImageFolder, find_images
from segpipe.common.result_folder import MAPPING, append_line
from segpipe.data.manifest import CASE_ID, Case, Manifest, save_manifest
from segpipe.errors import DataError, UsageError
from segpipe.inference.source import read_headers
from segpipe.prediction import file_cases
from segpipe.prediction.cases import select_cases
from segpipe.prediction.file_cases import InputCase, _of_files, find_cases
from segpipe.prediction.options import Options
from segpipe.prediction.places import Places
from segpipe.prediction.resume import _has_changed, describe_source


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


def test_an_image_in_two_files_is_read_and_known_again_by_both(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    for name in ("p.hdr", "d.mhd", "n.nhdr", "m.mha"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
    cases = {case.id: case for case in find_cases([tmp_path], 1, Options())}
    assert {id: [path.name for path in case.files] for id, case in cases.items()} == {
        "p": ["p.hdr", "p.img"],
        "d": ["d.mhd", "d.raw"],
        "n": ["n.nhdr", "n.raw"],
        "m": ["m.mha"],
    }
    readable = Places.of(tmp_path / "out", [], cases.values(), "cpu").readable
    assert {str(tmp_path / name) for name in ("p.img", "d.raw", "n.raw")} <= set(readable)
    for id, voxels in (("p", "p.img"), ("d", "d.raw"), ("n", "n.raw")):
        before = {"paths": [str(path) for path in cases[id].paths], **describe_source(cases[id])}
        assert not _has_changed(cases[id], before)
        (tmp_path / voxels).write_bytes((tmp_path / voxels).read_bytes()[:-1] + b"\x01")
        assert _has_changed(cases[id], before)


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


def test_files_of_one_name_have_ids_of_their_own_whatever_their_order(tmp_path: Path) -> None:
    touch(tmp_path, "x/scan.nii.gz", "y/scan.nii", "y/scan.nii.gz", "z/other.nii")
    items = find_cases([tmp_path], 1, Options())
    expected = {
        f"scan-{hashlib.sha256(name.encode()).hexdigest()[:8]}": tmp_path / name
        for name in ("x/scan.nii.gz", "y/scan.nii", "y/scan.nii.gz")
    }
    assert {item.id: item.paths[0] for item in items} == {**expected, "other": tmp_path / "z/other.nii"}
    files = [item.paths[0] for item in items]
    for order in (files, files[::-1]):
        assert find_cases(order, 1, Options()) == items
    (tmp_path / "z/other.nii").rename(tmp_path / f"z/{next(iter(expected))}.nii")  # as another is called by now
    assert len(set(ids(find_cases([tmp_path], 1, Options())))) == 4


def test_a_pseudonym_is_the_hash_of_the_relative_path(tmp_path: Path) -> None:
    touch(tmp_path, "deep/Jane Doe.nii.gz")
    (item,) = find_cases([tmp_path], 1, Options(pseudonymise=True))
    assert item.id == "case-" + hashlib.sha256(b"deep/Jane Doe.nii.gz").hexdigest()[:12]
    assert CASE_ID.match(item.id)


ODD = [
    "Jane Doe.nii.gz",
    "Größe.nii",
    "-a.nii",
    "--out.nii.gz",
    "report.html.nii.gz",
    "Summary.JSON.nii",
    "predictions.jsonl.nii",
    "a\nb\x1b[31m.nii",
    "CON.nii",
    "lpt1.x.nii",
    "dot..nii",
    "~replaced.nii.gz",
    "x" * 200 + ".nii.gz",
]


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_cannot_be_an_id_has_one_of_its_path_and_the_others_keep_theirs(tmp_path: Path, name: str) -> None:
    items = find_cases([touch(tmp_path, f"sub/{name}", "plain.nii.gz")], 1, Options())
    assert {item.id: item.paths[0] for item in items} == {
        "plain": tmp_path / "plain.nii.gz",
        f"case-{hashlib.sha256(f'sub/{name}'.encode()).hexdigest()[:12]}": tmp_path / "sub" / name,
    }
    assert all(CASE_ID.match(item.id) for item in items)


def test_entries_that_cannot_be_opened_are_cases_and_hidden_ones_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "._a.nii", ".cache/b.nii.gz", "elsewhere/c.NII.GZ")
    (tmp_path / "in").mkdir()
    for name, target in (("gone.nii.gz", "nothing"), ("circle.nii", "circle.nii"), ("link.nii", "../a.nii")):
        (tmp_path / "in" / name).symlink_to(target)
    os.mkfifo(tmp_path / "in/pipe.nii")
    (tmp_path / "in/folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/folder/loop").symlink_to(tmp_path)
    selected = select_cases([tmp_path], {}, 1, Options(), tmp_path / "out")
    assert ids(selected.cases) == ["a", "c", "circle", "gone", "link", "pipe"]
    assert selected.passed_over == {"hidden image": 2}


def test_an_input_folder_is_looked_through_once(tmp_path: Path, monkeypatch) -> None:
    touch(tmp_path, "scans/a.nii", "b.nii")
    looked: list[Path] = []

    def find(folder: Path, *rest: object) -> ImageFolder:
        looked.append(folder)
        return find_images(folder, *rest)

    monkeypatch.setattr(file_cases, "find_images", find)
    selected = select_cases([tmp_path / "scans", tmp_path / "b.nii"], {}, 1, Options(), tmp_path / "out")
    assert ids(selected.cases) == ["a", "b"] and looked == [tmp_path / "scans"]


def test_a_folder_that_cannot_be_listed_is_a_refused_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.nii", "locked/b.nii", "c.txt")
    listed = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for only in (None, "dicom", "nifti"):
        cases = select_cases([tmp_path], {}, 1, Options(only=only), tmp_path / "out").cases
        refused = [case for case in cases if case.refusal is not None]
        assert ids(cases) == [*(["a"] if only != "dicom" else []), *ids(refused)]
        (case,) = refused
        assert case.id == f"case-{hashlib.sha256(b'locked').hexdigest()[:12]}"
        assert case.refusal is not None
        assert "cannot be listed" in case.refusal.detail


def test_only_one_kind_of_input(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "readme.txt")
    write(series(), tmp_path / "dicom")
    both = select_cases([tmp_path], {}, 1, Options(), tmp_path / "out")
    assert len(both.cases) == 2
    nifti = select_cases([tmp_path], {}, 1, Options(only="nifti"), tmp_path / "out")
    assert (ids(nifti.cases), nifti.passed_over) == (["a"], {"other file (--only nifti)": 7})
    dicom = select_cases([tmp_path], {}, 1, Options(only="dicom"), tmp_path / "out")
    assert ids(dicom.cases) == [id for id in ids(both.cases) if id != "a"]
    assert dicom.passed_over == {"image (--only dicom)": 1, "not_dicom": 1}
    with pytest.raises(UsageError, match="no such kind"):
        Options.parse({"only": "dcm"})


def test_a_file_called_as_a_series_has_an_id_of_its_own(tmp_path: Path) -> None:
    write(series(), tmp_path)
    (dicom,) = select_cases([tmp_path], {}, 1, Options(), tmp_path / "out").cases
    touch(tmp_path, f"{dicom.id}.nii.gz")
    first, second = select_cases([tmp_path], {}, 1, Options(), tmp_path / "out").cases
    assert (first.id, first.is_dicom) == (dicom.id, True)
    assert second.id.startswith(f"{dicom.id}-")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to segment"):
        select_cases([tmp_path], {}, 1, Options(), tmp_path / "out")
    with pytest.raises(UsageError, match="neither an image nor DICOM"):
        select_cases([touch(tmp_path, "b.txt") / "b.txt"], {}, 1, Options(), tmp_path / "out")
    with pytest.raises(UsageError, match="no such file"):
        find_cases([tmp_path / "gone.nii"], 1, Options())
    with pytest.raises(UsageError, match="not a file of an image"):
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
    for split in (None, "test", "all"):
        with pytest.raises(UsageError, match="--fold chooses among training cases") as caught:
            find_cases([tmp_path / "m.json"], 1, Options(split=split, fold=0))
        assert "--split validation --fold 0" in str(caught.value.hint)
    for options in (
        Options(modality=("CT",)),
        Options(series=("1.2",)),
        Options(repair=("tilt",)),
        Options(only="dicom"),
    ):
        with pytest.raises(UsageError, match="goes with files and folders"):
            find_cases([tmp_path / "m.json"], 1, options)
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
    both = find_cases([touch(tmp_path / "2", "p_0000.nii", "p.nii")], 2, Options())
    assert sorted(len(item.paths) for item in both) == [1, 1]
    assert len({item.id for item in both}) == 2
    (twice, whole) = find_cases([touch(tmp_path / "3", "p_0000.nii", "p_0000.nii.gz", "q.nii")], 2, Options())
    assert (twice.id, whole.id, whole.refusal, twice.is_dicom) == ("p", "q", None, False)
    assert twice.refusal is not None
    assert twice.refusal.detail == "2 files are channel 0; keep one"


def test_names_that_are_not_utf8_have_a_pseudonym(tmp_path: Path) -> None:
    (item,) = find_cases([touch(tmp_path, os.fsdecode(b"M\xfcller.nii.gz"))], 1, Options(pseudonymise=True))
    assert item.id == "case-" + hashlib.sha256(b"M\xfcller.nii.gz").hexdigest()[:12]


@pytest.mark.parametrize("options", [Options(series=("1.2.3",)), Options(secondary_capture=("1.2.3",))])
def test_a_series_that_is_named_is_not_passed_over_where_there_is_no_dicom(tmp_path: Path, options: Options) -> None:
    touch(tmp_path, "a.nii.gz")
    with pytest.raises(UsageError, match="no such series") as caught:
        select_cases([tmp_path], {}, 1, options, tmp_path / "out")
    assert caught.value.found == "1.2.3"


def test_a_file_that_has_a_result_keeps_its_id_whatever_arrives_beside_it(tmp_path: Path) -> None:
    data, out = tmp_path / "in", tmp_path / "out"

    def finish(*names: str) -> dict[str, str]:
        """Return the ids of files by name, and leave results of them."""
        touch(data, *names)
        found = {case.paths[0].relative_to(data).as_posix(): case for case in find_cases([data], 1, Options(), out)}
        for case in found.values():
            (out / case.id).mkdir(parents=True, exist_ok=True)
            append_line(out / MAPPING, {"id": case.id, "paths": [str(path) for path in case.paths]})
            (out / case.id / "result.json").write_text("{}")
        return {name: case.id for name, case in found.items()}

    assert finish("A/scan.nii.gz") == {"A/scan.nii.gz": "scan"}
    both = finish("B/scan.nii.gz")
    assert both["A/scan.nii.gz"] == "scan" and both["B/scan.nii.gz"].startswith("scan-")
    assert finish() == both
    assert finish("C/p_0000.nii.gz")["C/p_0000.nii.gz"] == "p_0000"
    three = finish("C/p_0000.nii.gz", "D/scan.nii.gz")
    assert {**three, **both} == three and len(set(three.values())) == 4


def test_the_suffix_of_a_single_channel_stays_off_when_other_files_arrive(tmp_path: Path) -> None:
    data, out = tmp_path / "in", tmp_path / "out"
    touch(data, "p_0000.nii.gz")
    (case,) = find_cases([data], 1, Options(), out)
    assert case.id == "p"
    (out / "p").mkdir(parents=True)
    (out / "p/result.json").write_text("{}")
    (out / "mapping.jsonl").write_text(json.dumps({"id": "p", "paths": [str(case.paths[0])]}) + "\n")
    touch(data, "p.nii.gz", "q.nii.gz")
    found = {case.paths[0].name: case.id for case in find_cases([data], 1, Options(), out)}
    assert (found["p_0000.nii.gz"], found["q.nii.gz"]) == ("p", "q") and found["p.nii.gz"].startswith("p-")
    apart = {case.paths[0].name: case.id for case in find_cases([data], 1, Options(pseudonymise=True), out)}
    assert all(id.startswith("case-") for id in apart.values())
