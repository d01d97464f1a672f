"""Which voxels are no measurements, and which are only bright."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segpipe.common.outliers import find_outliers, refuse_outliers
from segpipe.data.check.case_check import examine
from segpipe.data.manifest import Case, Manifest
from segpipe.errors import DataError
from segpipe.inference.source import judge_voxels

RANDOM = np.random.default_rng(0)
BRAIN = RANDOM.normal(100, 20, (30, 30, 30)).astype(np.float32)


def with_voxels(value: float, count: int = 1, image: NDArray[np.float32] = BRAIN) -> NDArray[np.float32]:
    changed = image.copy()
    changed.reshape(-1)[RANDOM.choice(changed.size, count, replace=False)] = value
    return changed


@pytest.mark.parametrize("value", [1e30, -3.4e38, 3.4028235e38, 1e12, -1e7, 65_000.0])
@pytest.mark.parametrize("count", [1, 5])
def test_single_voxels_far_away_are_counted(value: float, count: int) -> None:
    found = find_outliers(with_voxels(value, count))
    assert found is not None
    assert found.count == count
    assert found.farthest == pytest.approx(value, rel=1e-6)
    assert (found.low, found.high) == pytest.approx(np.percentile(BRAIN, [0.5, 99.5]), abs=2)
    with pytest.raises(DataError, match="cannot be measurements"):
        judge_voxels(with_voxels(value, count), Path("x.nii"))


@pytest.mark.parametrize("share", [0.002, 0.02, 0.4])
def test_many_impossible_voxels_are_found_as_well(share: float) -> None:
    count = int(share * BRAIN.size)
    found = find_outliers(with_voxels(1e30, count))
    assert found is not None
    assert found.count == count


@pytest.mark.parametrize("value", [-3.4e38, -2147483648.0, 1e30])
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_the_impossible_voxels_are_named_not_the_others(value: float, share: float) -> None:
    found = find_outliers(with_voxels(value, int(share * BRAIN.size)))
    assert found is not None
    assert found.farthest == pytest.approx(value, rel=1e-6)
    assert found.count == int(share * BRAIN.size)
    assert (found.low, found.high) == pytest.approx(np.percentile(BRAIN, [0.5, 99.5]), abs=3)


def bladder() -> NDArray[np.float32]:
    body = RANDOM.exponential(0.5, (60, 60, 60)).astype(np.float32)
    body[20:24, 20:24, 20:24] = 150  # hotter than 99.5 % by 56 times their range
    return body


def masked() -> NDArray[np.float32]:
    image = np.zeros((60, 60, 60), np.float32)
    image[30:36, 30:36, 30:50] = RANDOM.normal(1000, 100, (6, 6, 20))  # 0.3 % of the voxels
    return image


LEGITIMATE = {
    "bladder": bladder(),
    "masked": masked(),
    "metal": np.where(RANDOM.random((40, 40, 40)) < 1e-3, 30_000, RANDOM.integers(-1000, 1500, (40, 40, 40))),
    "padding": np.where(RANDOM.random((40, 40, 40)) < 0.3, -32768, RANDOM.integers(-1000, 1500, (40, 40, 40))),
    "binary": (RANDOM.random((20, 20, 20)) < 0.001).astype(np.uint8),
    "one voxel": np.eye(1, 8000, 77, dtype=np.uint8).reshape(20, 20, 20),
    "activity in Bq": bladder() * 1e5,
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_what_is_hot_for_a_reason_is_no_outlier(name: str) -> None:
    assert find_outliers(LEGITIMATE[name]) is None


def test_an_outlier_in_a_masked_image_is_found() -> None:
    image = masked()
    image[31, 31, 31] = 1e6
    found = find_outliers(image)
    assert found is not None
    assert found.count == 1


@settings(max_examples=30)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3), value=st.sampled_from([150.0, 3000.0, 1e5, 4e5]))
def test_scaling_changes_nothing(scale: float, shift: float, value: float) -> None:
    image = with_voxels(value).astype(np.float64)
    assert (find_outliers(image) is None) == (find_outliers(image * scale + shift) is None) == (value < 1e4)


def test_what_is_advised_helps() -> None:
    image = with_voxels(1e30)
    with pytest.raises(DataError) as caught:
        refuse_outliers(image)
    assert "clip the image to the range of the others" in str(caught.value.hint)
    found = find_outliers(image)
    assert found is not None
    refuse_outliers(np.clip(image, found.low, found.high))


def test_check_names_case_channel_and_number(tmp_path: Path) -> None:
    image = np.stack([BRAIN, with_voxels(-3.4e38, 3)], -1)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "a.nii.gz")
    modality, labels = {"0": "T1", "1": "T2"}, {"0": "background", "1": "x"}
    facts = examine(Case(id="a", image="a.nii.gz"), tmp_path, Manifest(name="d", modality=modality, labels=labels))
    (finding,) = facts.findings
    assert (finding.kind, finding.case_id, finding.severity) == ("outlying_voxels", "a", "error")
    assert "3 voxel(s) up to -3.4e+38" in finding.found


@pytest.mark.realdata
def test_the_sample_from_the_field_and_real_scans() -> None:
    import os

    from segpipe.common.nifti import read_header, read_voxels

    data = Path(os.environ["SEGPIPE_DATA"])
    found = find_outliers(read_voxels(read_header(data / "field/nifti/huge_outlier.nii.gz")))
    assert found is not None
    assert found.count == 1
    for path in sorted((data / "Task04_Hippocampus/imagesTr").glob("hippocampus_0[0-4]*.nii.gz")):
        assert find_outliers(read_voxels(read_header(path))) is None
