"""Spoiled images: reproducible, worse by grade, and their truth goes where the anatomy goes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from segpipe.quality import GRADES, KINDS_OF_CORRUPTION, Labelled, spoiled


def case() -> Labelled:
    random = np.random.default_rng(0)
    truth = np.zeros((30, 26, 22), np.uint8)
    truth[8:16, 9:15, 5:11] = 1
    image = gaussian_filter(random.normal(size=truth.shape), 1.5) * 300 + 400.0 * truth + 500
    return Labelled(image[None].astype(np.float32), truth, np.diag([1.0, 1.2, 1.5, 1.0]))


@pytest.mark.parametrize("kind", sorted(KINDS_OF_CORRUPTION))
def test_each_kind_spoils_the_more_the_higher_its_grade_and_is_the_same_again(kind: str) -> None:
    before = case()
    kept = before.image.copy()
    for grade in GRADES:
        after, again = spoiled(before, kind, grade, "seed"), spoiled(before, kind, grade, "seed")
        np.testing.assert_array_equal(after.image, again.image)
        np.testing.assert_array_equal(after.affine, again.affine)
        assert after.image.shape[1:] == after.truth.shape
        assert np.isfinite(after.image).all()
        assert after.image.dtype == np.float32
        changed = after.image.shape != before.image.shape or not np.array_equal(after.image, before.image)
        assert changed or not np.allclose(after.affine, before.affine)
    np.testing.assert_array_equal(before.image, kept)


@pytest.mark.parametrize("kind", ["noise", "blur", "ghosts"])
def test_the_image_is_farther_from_itself_by_grade(kind: str) -> None:
    before = case()
    apart = [float(np.abs(spoiled(before, kind, grade, "s").image - before.image).mean()) for grade in GRADES]
    assert apart == sorted(apart)


@pytest.mark.parametrize("kind", ["crop", "orientation"])
def test_the_truth_moves_with_the_image(kind: str) -> None:
    """Where the truth is, the image is still bright."""
    before = case()
    for grade in GRADES:
        after = spoiled(before, kind, grade, "seed")
        if after.truth.any() and not after.truth.all():
            inside, outside = after.image[0][after.truth == 1].mean(), after.image[0][after.truth == 0].mean()
            assert inside > outside + 200


def test_a_cut_image_lies_where_it_was() -> None:
    before = case()
    after = spoiled(before, "crop", 2, "seed")
    size = np.array(after.truth.shape)
    shift = np.linalg.solve(before.affine, after.affine @ [0, 0, 0, 1])[:3].round().astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(shift, size, strict=True))
    np.testing.assert_array_equal(before.image[(0, *box)], after.image[0])
    np.testing.assert_array_equal(before.truth[box], after.truth)


def test_upside_down_is_along_the_body_whatever_the_axes() -> None:
    before = case()
    lying = Labelled(
        before.image.transpose(0, 3, 1, 2), before.truth.transpose(2, 0, 1), before.affine[:, [2, 0, 1, 3]]
    )
    after = spoiled(lying, "orientation", 1, "seed")
    np.testing.assert_array_equal(after.truth, lying.truth[::-1])


def test_channels_are_spoiled_alike() -> None:
    before = case()
    double = Labelled(np.concatenate([before.image, before.image]), before.truth, before.affine)
    after = spoiled(double, "void", 3, "seed")
    np.testing.assert_array_equal(after.image[0], after.image[1])
