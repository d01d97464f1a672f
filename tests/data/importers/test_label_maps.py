"""A label map that is stored with other axes than its image is put on the image's grid, and nothing else is."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.data.manifest import load_manifest
from segpipe.errors import BAD_DATA, OK

COS, SIN = np.cos(0.2), np.sin(0.2)
TILTED = np.array([[1.1 * COS, -1.3 * SIN, 0, -12], [1.1 * SIN, 1.3 * COS, 0, 7.5], [0, 0, 2.5, 3], [0, 0, 0, 1]])
SHAPE = (9, 8, 6)


def volumes(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image, and a label map without any symmetry."""
    rng = np.random.default_rng(number)
    label = np.zeros(SHAPE, np.uint8)
    label[1:4, 2:4, 1], label[6, 5:, 2:] = 1, 2
    return rng.integers(0, 900, SHAPE).astype(np.int16), label


def stored(array: np.ndarray, affine: np.ndarray, codes: str) -> nib.Nifti1Image:
    """The same volume with axes in another order and direction."""
    image = nib.Nifti1Image(array, affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    return image.as_reoriented(turn)


def write_set(root: Path, *codes: str, affine: np.ndarray = TILTED) -> list[str]:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, axes in enumerate(codes):
        image, label = volumes(number)
        nib.save(nib.Nifti1Image(image, affine), root / f"images/case_{number}.nii.gz")
        nib.save(stored(label, affine, axes), root / f"labels/case_{number}.nii.gz")
    return ["import", "--images", str(root / "images"), "--labels", str(root / "labels")]


AXES = ["".join(codes) for order in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*order)]


@pytest.mark.slow
def test_all_ways_to_store_axes_give_the_same_label_map(tmp_path: Path) -> None:
    assert len(AXES) == 48
    assert run(write_set(tmp_path, *AXES)) == OK
    manifest = load_manifest(tmp_path / "manifest.json")
    for number, axes in enumerate(AXES):
        case = next(case for case in manifest.training if case.id == f"case_{number}")
        assert case.label_turned == (None if axes == "RAS" else f"{axes} to RAS")
        made, image = (nib.load(tmp_path / path) for path in (str(case.label), case.images[0]))
        np.testing.assert_array_equal(np.asarray(made.dataobj), volumes(number)[1])
        np.testing.assert_allclose(made.affine, image.affine, atol=1e-5)
    assert run(["check", str(tmp_path / "manifest.json")]) == OK


def test_values_and_axes_go_together(tmp_path: Path) -> None:
    words = write_set(tmp_path, "PSL", "RAS")
    assert run([*words, "--label-values", "1=2,2=1"]) == OK
    for number in range(2):
        made = np.asarray(nib.load(tmp_path / f"labels_for_segpipe/case_{number}.nii.gz").dataobj)
        label = volumes(number)[1]
        np.testing.assert_array_equal(made, np.choose(label, [0, 2, 1]))


def grown(label: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.pad(np.asarray(label.dataobj), ((0, 1), (0, 0), (0, 0))), label.affine)


def shifted(label: nib.Nifti1Image) -> nib.Nifti1Image:
    affine = label.affine.copy()
    affine[:3, 3] += 0.3
    return nib.Nifti1Image(np.asarray(label.dataobj), affine)


@pytest.mark.parametrize("spoil", [grown, shifted])
def test_another_space_is_left_to_check(spoil: object, tmp_path: Path) -> None:
    words = write_set(tmp_path, "LAS", "RAS")
    path = tmp_path / "labels/case_0.nii.gz"
    nib.save(spoil(nib.load(path)), path)
    assert run(words) == OK
    assert not (tmp_path / "labels_for_segpipe").exists()
    assert run(["check", str(tmp_path / "manifest.json")]) == BAD_DATA


def test_a_header_that_says_no_side_is_not_believed(tmp_path: Path) -> None:
    centred = np.diag([-1.0, 1, 1, 1])  # what readers take such a header for
    centred[:3, 3] = (np.array(SHAPE) - 1) / 2 * (1, -1, -1)
    right = centred.copy()
    right[0] *= -1
    words = write_set(tmp_path, "LAS", affine=right)
    label = nib.load(tmp_path / "labels/case_0.nii.gz")
    np.testing.assert_allclose(label.affine, centred)
    assert run(words) == OK
    assert load_manifest(tmp_path / "manifest.json").training[0].label_turned == "LAS to RAS"
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), None), tmp_path / "labels/case_0.nii.gz")
    assert run([*words, "--overwrite"]) == OK
    assert load_manifest(tmp_path / "manifest.json").training[0].label_turned is None
    assert run(["check", str(tmp_path / "manifest.json")]) == BAD_DATA


def test_label_maps_may_lie_elsewhere(tmp_path: Path) -> None:
    words = write_set(tmp_path / "data", "LAS")
    assert run([*words, "--converted", str(tmp_path / "made"), "-o", str(tmp_path / "m.json")]) == OK
    case = load_manifest(tmp_path / "m.json").training[0]
    assert (case.label, case.images) == ("made/case_0.nii.gz", ["data/images/case_0.nii.gz"])
    assert run(["check", str(tmp_path / "m.json"), "--data", str(tmp_path)]) == OK
