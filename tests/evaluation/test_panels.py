"""Image, truth and prediction of a case come in one orientation, or not at all."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from segpipe.data.manifest import Case
from segpipe.errors import DataError, UsageError
from segpipe.evaluation.case_evaluation import CaseResult
from segpipe.evaluation.evaluation_page import read_panel, worst_cases
from segpipe.evaluation.measure.case_measures import LabelMeasure

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(5, 6, 7)).astype(np.float32)
TRUTH = RNG.integers(0, 3, (5, 6, 7)).astype(np.uint8)
PREDICTION = RNG.integers(0, 3, (5, 6, 7)).astype(np.uint8)
CASE = Case(id="a", image="a.nii.gz", label="a_label.nii.gz")


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE, codes: str = "RAS") -> None:
    path.parent.mkdir(exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    nib.save(image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(codes))), path)


def store(root: Path, codes: str = "RAS", affine: np.ndarray = AFFINE) -> None:
    for name, values in (("a", IMAGE), ("a_label", TRUTH), ("p/a", PREDICTION)):
        save(root / f"{name}.nii.gz", values, affine, codes)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR", "SRA", "ILP"])
def test_however_it_is_stored_it_is_drawn_the_same(tmp_path: Path, codes: str) -> None:
    store(tmp_path, codes)
    panel = read_panel(CASE, tmp_path, tmp_path / "p", {1: "x"}, "Dice 0.5")
    assert (panel.case_id, panel.caption, panel.labels) == ("a", "Dice 0.5", {1: "x"})
    assert np.array_equal(panel.image, IMAGE) and np.array_equal(panel.truth, TRUTH)
    assert np.array_equal(panel.prediction, PREDICTION)
    assert panel.spacing_mm == pytest.approx((1, 2, 3))


def test_near_a_tilt_of_45_degrees_all_three_turn_the_same_way(tmp_path: Path) -> None:
    """Headers that differ by less than the tolerance may have other nearest axes; voxels must stay on voxels."""
    store(tmp_path)
    for name, degrees in (("a", 44.999), ("a_label", 45.001), ("p/a", 44.999)):
        angle = np.deg2rad(degrees)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        values = {"a": IMAGE, "a_label": TRUTH, "p/a": PREDICTION}[name]
        nib.save(nib.Nifti1Image(values, turn @ AFFINE), tmp_path / f"{name}.nii.gz")
    panel = read_panel(CASE, tmp_path, tmp_path / "p", {}, "")
    assert sorted(zip(panel.image.ravel(), panel.truth.ravel(), panel.prediction.ravel(), strict=True)) == sorted(
        zip(IMAGE.ravel(), TRUTH.ravel(), PREDICTION.ravel(), strict=True)
    )


def test_of_several_channels_the_first_is_taken(tmp_path: Path) -> None:
    store(tmp_path)
    nib.save(nib.Nifti1Image(np.stack([IMAGE, IMAGE * 0], axis=-1), AFFINE), tmp_path / "a.nii.gz")
    assert np.array_equal(read_panel(CASE, tmp_path, tmp_path / "p", {}, "").image, IMAGE)
    files = CASE.model_copy(update={"image": ["a_label.nii.gz", "a.nii.gz"]})
    assert np.array_equal(read_panel(files, tmp_path, tmp_path / "p", {}, "").image, TRUTH)


@pytest.mark.parametrize(("name", "what"), [("a", "image"), ("p/a", "prediction")])
def test_what_is_on_another_grid_is_not_drawn(tmp_path: Path, name: str, what: str) -> None:
    store(tmp_path)
    save(tmp_path / f"{name}.nii.gz", PREDICTION, np.diag([1.0, 2.0, 3.1, 1.0]))
    with pytest.raises(DataError, match=f"the {what} is not on the grid"):
        read_panel(CASE, tmp_path, tmp_path / "p", {}, "")


def test_what_is_not_there(tmp_path: Path) -> None:
    store(tmp_path)
    (tmp_path / "a.nii.gz").unlink()
    with pytest.raises(UsageError, match="no such file"):
        read_panel(CASE, tmp_path, tmp_path / "p", {}, "")
    (tmp_path / "p/a.nii.gz").unlink()
    with pytest.raises(DataError, match="no prediction"):
        read_panel(CASE, tmp_path, tmp_path / "p", {}, "")


def test_the_worst_cases_are_those_that_can_be_looked_at() -> None:
    def result(id: str, dice: float | None, failure: str | None = None) -> CaseResult:
        return CaseResult(id, id, [LabelMeasure(label=1, name="x", dice=dice)], failure)

    results = [result("b", 0.5), result("a", 0.5), result("c", 0.1), result("d", None), result("e", 0.0, "broken")]
    assert [each.id for each in worst_cases(results, 2)] == ["c", "a"]
    assert [each.id for each in worst_cases(results, 9)] == ["c", "a", "b"]
    assert worst_cases(results, 0) == []
