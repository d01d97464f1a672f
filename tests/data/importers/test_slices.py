"""Stacks of slices: what is one volume by its file names, and what is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.data.importers.slice_stacks import find_stacks, looks_like_slices
from segpipe.errors import DataError, UsageError
from tiny_slices import write_lgg


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_lgg(tmp_path / "kaggle_3m", patients=2)


def folder_of(tree: Path, number: int = 0) -> Path:
    return sorted(path for path in tree.iterdir() if path.is_dir())[number]


def only_fault(tree: Path) -> str:
    found = find_stacks(tree)
    assert len(found.faults) == 1
    assert len(found.stacks) == 1
    return next(iter(found.faults.values()))


def test_slices_are_ordered_by_number_and_ids_carry_no_date(tree: Path) -> None:
    assert looks_like_slices(tree)
    for root in (tree, tree.parent):
        found = find_stacks(root)
        assert found.is_lgg
        assert not found.faults
        assert [stack.id for stack in found.stacks] == ["TCGA_CS_4900", "TCGA_CS_4901"]
        assert [stack.patient_id for stack in found.stacks] == ["TCGA_CS_4900", "TCGA_CS_4901"]
        numbers = [int(path.stem.rpartition("_")[2]) for path in found.stacks[0].slices]
        assert numbers == list(range(2, 14))  # 2, 3, ..., 10, not 10, 11, 12, 2
        assert [f"{path.stem}_mask" for path in found.stacks[0].slices] == [p.stem for p in found.stacks[0].masks]


def test_one_folder_is_enough_and_a_second_scan_is_the_same_patient(tree: Path) -> None:
    first = folder_of(tree)
    assert [stack.id for stack in find_stacks(first).stacks] == ["TCGA_CS_4900"]
    later = tree / "TCGA_CS_4900_19991231"
    shutil.copytree(first, later)
    for path in later.iterdir():
        path.rename(later / path.name.replace(first.name, later.name))
    stacks = find_stacks(tree).stacks
    assert [stack.id for stack in stacks] == ["TCGA_CS_4900", "TCGA_CS_4900_2", "TCGA_CS_4901"]
    assert [stack.patient_id for stack in stacks][:2] == ["TCGA_CS_4900"] * 2


def test_a_hole_is_refused_and_an_early_end_is_not(tree: Path) -> None:
    folder = folder_of(tree)
    for number in (2, 13):
        for path in folder.glob(f"*_{number}[._]*"):
            path.unlink()
    assert not find_stacks(tree).faults
    for path in folder.glob("*_7[._]*"):
        path.unlink()
    fault = only_fault(tree)
    assert "missing: slice 7" in fault
    assert f"{folder.name}_6.tif" in fault


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f, n: shutil.copy(f / f"{n}_3.tif", f / f"{n}_03.tif"), ["twice", "_03.tif", "_3.tif"]),
        (lambda f, n: (f / f"{n}_5_mask.tif").unlink(), ["without a mask", "_5.tif"]),
        (lambda f, n: (f / f"{n}_5.tif").unlink(), ["without its slice", "_5_mask.tif"]),
        (lambda f, n: (f / f"{n}_5.tif").rename(f / "TCGA_XX_1_19990101_5.tif"), ["another name", "TCGA_XX_1"]),
        (lambda f, n: shutil.copy(f / f"{n}_13.tif", f / f"{n}_14a.tif"), ["no slice number", "_14a.tif"]),
    ],
)
def test_every_fault_names_its_file(tree: Path, change, words: list[str]) -> None:
    folder = folder_of(tree)
    change(folder, folder.name)
    fault = only_fault(tree)
    assert all(word in fault for word in words), fault


def test_the_same_folder_twice_is_refused(tree: Path) -> None:
    shutil.copytree(folder_of(tree), tree / "lgg-mri-segmentation" / folder_of(tree).name)
    assert "twice" in only_fault(tree)


def test_a_slice_that_cannot_be_opened_ends_no_stack_early(tree: Path) -> None:
    last = max(folder_of(tree).glob("*[0-9].tif"))
    for path in (last, last.with_name(f"{last.stem}_mask.tif")):
        path.unlink()
        path.symlink_to("not_fetched")
    with pytest.raises(DataError, match="2 entries of the folder cannot be opened") as caught:
        find_stacks(tree)
    assert f"{last.name}: a link to nothing" in str(caught.value.found)


def test_patterns(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        for kind in ("img", "seg"):
            folder = tmp_path / kind / patient
            folder.mkdir(parents=True)
            for number in (9, 10, 11):
                (folder / f"scan-{number:04}.png").touch()
    (tmp_path / "cover.png").touch()
    found = find_stacks(tmp_path, "img/{patient}/*-{slice}.png", "seg/{patient}/*-{slice}.png")
    assert [(stack.id, stack.patient_id) for stack in found.stacks] == [("p1", "p1"), ("p2", "p2")]
    assert [path.name for path in found.stacks[0].slices] == [f"scan-{n:04}.png" for n in (9, 10, 11)]
    assert found.passed_over == ["cover.png"]
    assert not found.is_lgg
    for images, masks, words in (
        ("img/{patient}/{slice}", None, "go together"),
        ("img/{patient}.png", "seg/{patient}.png", "no {slice}"),
        ("{volume}/{slice}.png", "{volume}/{slice}.png", "no field"),
        ("img/{patient}/*-{slice}.png", "seg/*/*-{slice}.png", "different fields"),
        ("*/{patient}/*-{slice}.png", "*/{patient}/*-{slice}.png", "both patterns"),
    ):
        with pytest.raises(UsageError, match=words):
            find_stacks(tmp_path, images, masks)
    with pytest.raises(DataError, match="no slices"):
        find_stacks(tmp_path, "x/{slice}.png", "y/{slice}.png")
    with pytest.raises(UsageError, match="no such folder"):
        find_stacks(tmp_path / "absent")


def test_two_stacks_of_one_name_are_never_one_volume(tmp_path: Path) -> None:
    for place, numbers in (("a_b/c", range(1, 5)), ("a/b_c", range(5, 9)), ("x/y", range(1, 5))):
        for number in numbers:
            for end in ("", "_mask"):
                (tmp_path / place).mkdir(parents=True, exist_ok=True)
                (tmp_path / place / f"{number}{end}.png").touch()
    found = find_stacks(tmp_path, "{patient}/{case}/{slice}.png", "{patient}/{case}/{slice}_mask.png")
    assert [stack.id for stack in found.stacks] == ["x_y"]
    assert found.faults == {"a_b_c": "one name twice: of a/b_c/5.png and of a_b/c/1.png; rename or remove one"}
    (tmp_path / "a/b_c").rename(tmp_path / "a/d")  # as it says
    stacks = find_stacks(tmp_path, "{patient}/{case}/{slice}.png", "{patient}/{case}/{slice}_mask.png").stacks
    assert [(stack.id, stack.patient_id, len(stack.slices)) for stack in stacks] == [
        ("a_b_c", "a_b", 4),
        ("a_d", "a", 4),
        ("x_y", "x", 4),
    ]


def test_halves_of_a_stack_in_two_folders_of_one_name_are_no_volume(tree: Path) -> None:
    folder = folder_of(tree)
    other = tree / "again" / folder.name
    other.mkdir(parents=True)
    for number in range(9, 14):
        for path in folder.glob(f"*_{number}[._]*"):
            path.rename(other / path.name)
    assert "one name twice" in only_fault(tree)


@given(numbers=st.sets(st.integers(0, 40), min_size=2), padded=st.booleans())
def test_a_stack_is_its_numbers_without_a_hole(tmp_path_factory, numbers: set[int], padded: bool) -> None:
    root = tmp_path_factory.mktemp("p")
    for number in numbers:
        for end in ("", "_mask"):
            (root / f"{number:03}{end}.png" if padded else root / f"{number}{end}.png").touch()
    found = find_stacks(root, "{slice}.png", "{slice}_mask.png")
    whole = max(numbers) - min(numbers) + 1 == len(numbers)
    assert bool(found.stacks) == whole
    assert bool(found.faults) != whole
    if whole:
        assert [int(path.stem) for path in found.stacks[0].slices] == sorted(numbers)
