"""What mirrors left and right is found by what it does to a probe, whatever it is called and wrapped in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from segpipe.errors import UsageError
from segpipe.training.fragments import compose_config
from segpipe.training.mirroring import mirrored_in_training, turns_in_training
from tiny_data import TASK

NAMES = {"network": "unet", "loss": "dice_ce", "augment": "none", "runtime": "cpu"}
BOTH = {"keys": ["image", "label"]}
NEAREST = {**BOTH, "mode": ["bilinear", "nearest"]}
NOISE = {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.5}
NEGATIVE = [[-2.1, -1.9], [0, 0], [0, 0]]  # scales of -1.1 to -0.9 along x


def flip(axis: Any, prob: float = 0.1) -> dict[str, Any]:
    return {"_target_": "RandFlipd", **BOTH, "prob": prob, "spatial_axis": axis}


def wrapped(name: str, *transforms: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    return {"_target_": name, "transforms": list(transforms), **arguments}


SWAPPING: dict[str, dict[str, Any]] = {
    "negative axis": flip(-3),
    "list of axes": flip([0, 1]),
    "all axes": flip(None),
    "rare": flip(0, 0.01),
    "axis by chance": {"_target_": "RandAxisFlipd", **BOTH, "prob": 0.1},
    "quarter turns": {"_target_": "RandRotate90d", **BOTH, "prob": 0.1, "spatial_axes": [0, 2]},
    "half a turn": {"_target_": "RandRotated", **NEAREST, "prob": 0.2, "range_z": 3.14},
    "negative scale": {"_target_": "RandAffined", **NEAREST, "prob": 0.1, "scale_range": NEGATIVE},
    "lazy": {"_target_": "RandAffined", **NEAREST, "prob": 0.1, "scale_range": NEGATIVE, "lazy": True},
    "always": {"_target_": "Flipd", **BOTH, "spatial_axis": 0},
    "one of": wrapped("OneOf", flip(0), NOISE, weights=[0.01, 0.99]),
    "some of": wrapped("SomeOf", NOISE, flip(-3), num_transforms=1),
    "in any order": wrapped("RandomOrder", wrapped("Compose", NOISE, flip(0))),
    "a function": {"_target_": "RandLambdad", **BOTH, "prob": 0.2, "func": "$lambda volume: volume.flip(1)"},
}
KEEPING: dict[str, dict[str, Any]] = {
    "front to back": flip(1),
    "last axis": flip(-1),
    "quarter turns about x": {"_target_": "RandRotate90d", **BOTH, "prob": 0.1, "spatial_axes": [1, 2]},
    "small turns": {"_target_": "RandRotated", **NEAREST, "prob": 0.5, "range_x": 0.5, "range_y": 0.5, "range_z": 0.5},
    "shear and scale": {"_target_": "RandAffined", **NEAREST, "prob": 0.5, "shear_range": 0.2, "scale_range": 0.4},
    "one of": wrapped("OneOf", flip(1), NOISE),
}


def config(tmp_path: Path, *transforms: dict[str, Any], labels: str = "kidney_L, kidney_R, liver") -> dict[str, Any]:
    """A config with crops, then these transforms."""
    (tmp_path / "task.yaml").write_text(TASK.replace("liver, kidney, lesion", labels))
    crop = {"_target_": "RandSpatialCropd", **BOTH, "roi_size": "@patch_size", "random_size": False}
    (tmp_path / "augment.yaml").write_text(yaml.safe_dump({"random_transforms": [crop, *transforms]}))
    places = {name: str(tmp_path / f"{name}.yaml") for name in ("task", "augment")}
    return compose_config({**NAMES, **places}).config


@pytest.mark.parametrize("transform", SWAPPING.values(), ids=SWAPPING)
def test_what_swaps_sides_is_refused_where_labels_have_some(transform: dict[str, Any], tmp_path: Path) -> None:
    config(tmp_path, transform, labels="liver, kidney, lesion")
    with pytest.raises(UsageError, match="mirroring left and right") as caught:
        config(tmp_path, transform)
    assert "labels kidney_L, kidney_R" in str(caught.value.found)


@pytest.mark.parametrize("transform", KEEPING.values(), ids=KEEPING)
def test_what_keeps_the_sides_composes(transform: dict[str, Any], tmp_path: Path) -> None:
    assert not turns_in_training(config(tmp_path, transform)).swaps_sides(0)


def test_two_that_keep_the_sides_each_may_swap_them_together(tmp_path: Path) -> None:
    turn = {"_target_": "RandRotate90d", **BOTH, "prob": 0.5, "max_k": 1, "spatial_axes": [0, 1]}
    config(tmp_path, turn)
    config(tmp_path, flip(1))
    with pytest.raises(UsageError, match="mirroring"):  # turned, and turned and mirrored: both sides where was front
        config(tmp_path, turn, flip(1))


def test_left_and_right_are_where_the_orientation_says(tmp_path: Path) -> None:
    (tmp_path / "sided.yaml").write_text(TASK.replace("liver, kidney", "Rein_gauche, Rein_droit").replace("RAS", "SAR"))
    (tmp_path / "augment.yaml").write_text(yaml.safe_dump({"random_transforms": [flip(2)]}))
    names = {**NAMES, "task": str(tmp_path / "sided.yaml")}
    compose_config({**names, "augment": "mirror"})  # mirrors along the first axis, which is feet to head
    with pytest.raises(UsageError, match="mirroring"):
        compose_config({**names, "augment": str(tmp_path / "augment.yaml")})


@pytest.mark.parametrize(
    ("transforms", "axes"),
    [
        ([], []),
        ([NOISE], []),
        ([flip(0)], ["x"]),
        ([flip(-1), flip(1, 0.02)], ["y", "z"]),
        ([flip([0, 1])], []),  # windows mirrored along one of them alone were never seen
        ([SWAPPING["axis by chance"]], ["x", "y", "z"]),
        ([SWAPPING["negative scale"]], ["x"]),
        ([SWAPPING["one of"]], ["x"]),
        ([SWAPPING["quarter turns"]], []),
        ([{"_target_": "Flipd", "keys": ["image", "label"], "spatial_axis": 1}], ["y"]),
    ],
    ids=str,
)
def test_the_axes_that_are_mirrored_are_known(
    transforms: list[dict[str, Any]], axes: list[str], tmp_path: Path
) -> None:
    assert mirrored_in_training(config(tmp_path, *transforms, labels="liver, kidney, lesion")) == axes


def test_shipped_fragments_say_what_they_mirror(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(TASK)
    for augment, axes in (("light", []), ("none", []), ("mirror", ["x"])):
        composed = compose_config({**NAMES, "task": str(tmp_path / "task.yaml"), "augment": augment})
        assert mirrored_in_training(composed.config) == axes


def test_what_is_drawn_is_tried_once_and_again_where_what_it_refers_to_is_another(tmp_path: Path) -> None:
    made = config(tmp_path, labels="liver, kidney, lesion")
    once = turns_in_training(made)
    assert turns_in_training({**made, "network_def": {"_target_": "UNet"}, "batch_size": 7, "loss": {}}) is once
    along = {**made, "random_transforms": [flip("@seed"), NOISE]}
    for seed, axis in ((0, "x"), (1, "y")):
        assert mirrored_in_training({**along, "seed": seed}) == [axis]
    step = {"_target_": "$@train::which", "prob": 0.5, "spatial_axis": 2, **BOTH}
    train = {**made["train"], "which": "$monai.transforms.RandFlipd"}
    assert mirrored_in_training({**made, "train": train, "random_transforms": [step]}) == ["z"]


def test_large_patches_take_no_longer_and_crops_by_label_work(tmp_path: Path) -> None:
    crop = {"_target_": "RandCropByLabelClassesd", **BOTH, "label_key": "label", "spatial_size": [512, 512, 512]}
    crop |= {"num_classes": 4, "ratios": [1, 1, 1, 1], "num_samples": 4}
    pad = {"_target_": "SpatialPadd", **BOTH, "spatial_size": [512, 512, 512]}
    made = config(tmp_path, labels="liver, kidney, lesion")
    assert mirrored_in_training({**made, "random_transforms": [pad, crop, flip(0)]}) == ["x"]


def test_what_fails_on_the_probe_is_refused_where_labels_have_sides(tmp_path: Path) -> None:
    odd = {"_target_": "RandWeightedCropd", **BOTH, "w_key": "weights", "spatial_size": [8, 8, 8]}
    assert mirrored_in_training(config(tmp_path, odd, labels="liver, kidney, lesion")) is None
    with pytest.raises(UsageError, match="cannot be told") as caught:
        config(tmp_path, odd)
    assert "KeyError" in str(caught.value.found)


@pytest.mark.realdata
def test_mirroring_hidden_in_the_field_sample_is_found(tmp_path: Path) -> None:
    sample = Path(os.environ["SEGPIPE_DATA"]) / "field/datasets/aug_nested.yaml"
    (tmp_path / "task.yaml").write_text(TASK.replace("liver, kidney", "LeftLung, RightLung"))
    names = {**NAMES, "task": str(tmp_path / "task.yaml"), "augment": str(sample)}
    with pytest.raises(UsageError, match="mirroring"):
        compose_config(names)


def of_batch(tmp_path: Path, *transforms: dict[str, Any], labels: str = "kidney_L, kidney_R, liver") -> dict[str, Any]:
    """A config whose transforms of the batch are these."""
    (tmp_path / "task.yaml").write_text(TASK.replace("liver, kidney, lesion", labels))
    crop = {"_target_": "RandSpatialCropd", **BOTH, "roi_size": "@patch_size", "random_size": False}
    fragment = {"random_transforms": [crop], "batch_transforms": list(transforms)}
    (tmp_path / "augment.yaml").write_text(yaml.safe_dump(fragment))
    places = {name: str(tmp_path / f"{name}.yaml") for name in ("task", "augment")}
    return compose_config({**NAMES, **places}).config


def test_transforms_of_the_batch_are_tried_as_well(tmp_path: Path) -> None:
    mirror = {"_target_": "segpipe.components.BatchMirror", "axes": [0], "prob": 0.1}
    affine = {"_target_": "segpipe.components.BatchAffine", "prob": 0.2, "degrees": 30}
    noise = {"_target_": "segpipe.components.BatchNoise"}
    assert mirrored_in_training(of_batch(tmp_path, affine, noise)) == []
    for swapping in (mirror, {**affine, "degrees": 180}):
        with pytest.raises(UsageError, match="mirroring left and right"):
            of_batch(tmp_path, swapping)
    assert mirrored_in_training(of_batch(tmp_path, noise, mirror, labels="liver, kidney, lesion")) == ["x"]
    assert mirrored_in_training(of_batch(tmp_path, {**mirror, "axes": [1, 2]})) == ["y", "z"]
    with pytest.raises(UsageError, match="axs"):
        of_batch(tmp_path, {**mirror, "axs": [1]})


def test_the_recipes_of_nnunet_keep_the_sides_but_for_the_one_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(TASK)
    names = {**NAMES, "task": str(tmp_path / "task.yaml")}
    assert mirrored_in_training(compose_config({**names, "augment": "nnunet"}).config) == []
    assert mirrored_in_training(compose_config({**names, "augment": "nnunet_mirror"}).config) == ["x", "y", "z"]
