"""Masks that somebody gives with a scan have to be masks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segpipe.bundle.open import open_bundle
from segpipe.common.nifti import Header
from segpipe.components.fast_prediction import _masks
from segpipe.errors import DataError
from segpipe.inference import LabelMap, ModelOptions
from segpipe.inference.first_stage import FirstStage
from segpipe.inference.images import read_images
from segpipe.inference.source import CaseInput, read_case
from tiny_two_stages import write_two_stages


def not_run(case: CaseInput) -> LabelMap:
    raise AssertionError("masks were given")


def fits(headers: Sequence[Header], held: int) -> None:
    """There is room for every case."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> FirstStage:
    recipe = open_bundle(write_two_stages(tmp_path_factory.mktemp("both") / "both")).recipe(ModelOptions())
    assert recipe.first_stage is not None
    return FirstStage(recipe.first_stage, recipe.channels, not_run, (fits, fits))


def files(folder: Path, second: np.ndarray) -> list[Path]:
    scan = np.arange(64, dtype=np.int16).reshape(4, 4, 4)
    for name, array in (("scan", scan), ("second", second)):
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii.gz")
    return [folder / "scan.nii.gz", folder / "second.nii.gz"]


@pytest.mark.parametrize(
    ("values", "found"), [((0, 1, 2), "2"), ((0, 255), "255"), ((-5, 0, 1), "-5"), ((0, 0.5, 1), "0.5")]
)
def test_another_scan_or_a_label_map_is_no_mask(
    stage: FirstStage, tmp_path: Path, values: tuple[float, ...], found: str
):
    other = np.resize(np.asarray(values, np.float32), (4, 4, 4))
    with pytest.raises(DataError, match="channel 1 is no mask of bright") as caught:
        stage.read(files(tmp_path, other), None, {})
    assert caught.value.found == f"a value of {found}" and str(caught.value.path).endswith("second.nii.gz")


@pytest.mark.parametrize("values", [(0, 1), (0,)])
def test_a_mask_is_taken_as_it_is_also_where_it_is_empty(stage: FirstStage, tmp_path: Path, values: tuple[int, ...]):
    mask = np.resize(np.asarray(values, np.uint8), (4, 4, 4))
    seconds: dict[str, float] = {}
    read = stage.read(files(tmp_path, mask), None, seconds)
    np.testing.assert_array_equal(read.source.array[1], mask)
    assert seconds == {}


def test_a_constant_scan_is_refused_whatever_its_header_says(tmp_path: Path):
    paths = files(tmp_path, np.zeros((4, 4, 4), np.uint8))
    empty = nib.load(paths[1])
    empty.header.set_intent("label")
    nib.save(empty, paths[1])
    images = [nib.load(path) for path in paths]
    for read in (lambda masks: read_case(paths, 2, masks=masks), lambda masks: read_images(images, 2, masks=masks)):
        with pytest.raises(DataError, match="the image is constant"):
            read(0)
        read(1)


def test_which_channels_are_masks_is_known_of_a_bundle_and_beside_its_config(tmp_path: Path):
    both = open_bundle(write_two_stages(tmp_path / "both"))
    assert (both.recipe(ModelOptions()).masks, both.of_scans.recipe(ModelOptions()).masks) == (1, 0)
    shutil.rmtree(both.root / "first_stage")
    assert open_bundle(both.root).recipe(ModelOptions()).masks == 1
    assert _masks(both.root / "configs" / "metadata.json") == 1 and _masks(tmp_path / "none.json") == 0
