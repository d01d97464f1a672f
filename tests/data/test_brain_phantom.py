"""Generated brains: nested labels, contrasts of a glioma, and one channel on a grid of its own in the same space."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from segpipe.common.nifti import read_header
from segpipe.common.resampling import covered, resample
from segpipe.data import BRAIN_LABELS, BRAIN_REGIONS, make_brain_phantom

CASES = [make_brain_phantom(seed) for seed in range(4)]


def test_one_seed_gives_one_case_and_another_seed_another() -> None:
    again, other = make_brain_phantom(0), CASES[1]
    for name, image in CASES[0].images.items():
        np.testing.assert_array_equal(image, again.images[name])
        assert not np.array_equal(image, other.images[name])
    np.testing.assert_array_equal(CASES[0].label, again.label)


@pytest.mark.parametrize("case", CASES)
def test_the_regions_are_nested_and_each_is_one_part(case) -> None:  # type: ignore[no-untyped-def]
    assert set(np.unique(case.label)) == set(BRAIN_LABELS)
    masks = [np.isin(case.label, values) for values in BRAIN_REGIONS.values()]
    assert masks[0].sum() > masks[1].sum() > masks[2].sum() > 300
    assert not (masks[1] & ~masks[0]).any() and not (masks[2] & ~masks[1]).any()
    necrosis = case.label == 1
    assert not (ndimage.binary_dilation(necrosis) & ~masks[1]).any()  # the rim encloses it


@pytest.mark.parametrize("case", CASES)
def test_contrasts_are_those_of_the_sequences(case) -> None:  # type: ignore[no-untyped-def]
    """The rim is brighter after gadolinium, oedema in T2 than in T1, and in FLAIR, on its grid, than the brain."""
    inside = {value: ndimage.binary_erosion(case.label == value) for value in (1, 2, 3)}
    means = {
        (name, value): float(case.images[name][mask].mean())
        for name in ("T1Gd", "T1", "T2")
        for value, mask in inside.items()
        if mask.any()
    }
    rim = case.label == 3
    assert case.images["T1Gd"][rim].mean() > 1.3 * case.images["T1"][rim].mean()
    assert means["T2", 2] > 1.3 * means["T1", 2] and means["T1Gd", 1] < means["T2", 1]
    affine, shape = case.affines["T1Gd"], case.label.shape
    flair = resample(case.images["FLAIR"], case.affines["FLAIR"], shape, affine)
    there = covered(case.images["FLAIR"].shape, case.affines["FLAIR"], shape, affine)
    brain = there & (case.images["T1"] > 300) & (case.label == 0)
    assert flair[inside[2] & there].mean() > 1.2 * flair[brain].mean()


def test_flair_lies_on_a_grid_of_its_own_and_covers_the_tumour() -> None:
    for case in CASES:
        own, first = case.affines["FLAIR"], case.affines["T1Gd"]
        np.testing.assert_array_equal(case.affines["T1"], first)
        edges = np.linalg.norm(own[:3, :3], axis=0), np.linalg.norm(first[:3, :3], axis=0)
        np.testing.assert_allclose(edges[0] / edges[1], [1, 1, 3], rtol=1e-5)
        assert not np.allclose(own[:3, 2] / 3, first[:3, 2], atol=1e-3)  # tilted
        there = covered(case.images["FLAIR"].shape, own, case.label.shape, first)
        assert there[case.label > 0].all()


def test_files_are_named_as_the_channels_of_a_case(tmp_path: Path) -> None:
    case = CASES[2]
    case.write("brain", tmp_path / "images", tmp_path / "labels")
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == [f"brain_000{index}.nii.gz" for index in range(4)]
    header = read_header(tmp_path / "images" / "brain_0003.nii.gz")
    np.testing.assert_allclose(header.affine, case.affines["FLAIR"], atol=1e-4)
    label = nib.load(tmp_path / "labels" / "brain.nii.gz")
    np.testing.assert_array_equal(np.asarray(label.dataobj), case.label)
