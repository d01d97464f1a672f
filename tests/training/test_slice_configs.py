"""Configs and plans of networks of slices: a patch of one voxel, turned within it, along the axis that is thick."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_budget_rules import scans

from segpipe.cli.app import run
from segpipe.data.fingerprint import take_fingerprint
from segpipe.data.manifest import load_manifest
from segpipe.training.budget_rules import larger, resolutions
from segpipe.training.fragments import Composed, Fragment, compose_config, read_fragment
from segpipe.training.planning import Wishes, plan_from, profile_of_slices
from segpipe.training.planning_rules import profile_of

GB = 10**9


def composed(task: dict[str, Any], network: str = "unet_2d", augment: str = "light") -> Composed:
    fragments = {"task": Fragment(task, "made"), "network": network, "loss": "dice_ce", "runtime": "cpu"}
    return compose_config({**fragments, "augment": augment})


@pytest.fixture(scope="module")
def task(tiny_manifest: Path) -> dict[str, Any]:
    return read_fragment("task", str(tiny_manifest.parent / "task.yaml"))[0]


def with_spacing(task: dict[str, Any], pixdim: list[float]) -> dict[str, Any]:
    spacing = {"_target_": "Spacingd", "keys": ["image", "label"], "pixdim": pixdim, "mode": ["bilinear", "nearest"]}
    steps = task["deterministic_transforms"]
    return {**task, "deterministic_transforms": [*steps[:3], spacing, *steps[3:]]}


@pytest.mark.parametrize(("pixdim", "axis"), [([0.8, 0.8, 6.0], 2), ([5.0, 0.8, 0.8], 0), ([1.0, 7.0, 1.0], 1)])
def test_a_patch_of_a_volume_becomes_one_of_a_slice(task: dict[str, Any], pixdim: list[float], axis: int) -> None:
    made = composed(with_spacing(task, pixdim))
    assert [size == 1 for size in made.config["patch_size"]] == [place == axis for place in range(3)]
    assert made.config["patch_divisor"] == [1 if place == axis else 8 for place in range(3)]
    affine = next(step for step in made.config["random_transforms"] if step["_target_"] == "RandAffined")
    assert affine["rotate_range"] == [0.26 if place == axis else 0.0 for place in range(3)]
    assert affine["scale_range"] == [0.0 if place == axis else 0.15 for place in range(3)]
    assert any("single slices" in note for note in made.notes)
    batch = composed(with_spacing(task, pixdim), augment="nnunet").config["batch_transforms"]
    assert [step.get("sliced_axis") for step in batch] == [axis] + [None] * (len(batch) - 1)


def test_a_slice_that_was_planned_stays_and_volumes_are_left_alone(task: dict[str, Any]) -> None:
    planned = composed(with_spacing({**task, "patch_size": [32, 1, 24]}, [0.8, 0.8, 6.0]))
    assert planned.config["patch_size"] == [32, 1, 24], "not the coarsest: somebody chose it"
    assert not any("single slices" in note for note in planned.notes)
    assert composed(task, "unet").config["patch_size"] == task["patch_size"]


def test_a_network_of_slices_is_planned_on_whole_slices(tiny_manifest: Path) -> None:
    manifest = load_manifest(tiny_manifest)
    seen = take_fingerprint(manifest, tiny_manifest.parent)
    thick = [
        case.model_copy(update={"spacing_mm": (0.8, 0.8, 6.0), "shape": (200, 180, 40), "positive_box_mm": None})
        for case in seen.cases
    ]
    plan = plan_from(
        seen.model_copy(update={"cases": thick}), manifest, tiny_manifest.parent, Wishes("unet_2d", memory_bytes=GB)
    )
    assert plan.task["patch_size"] == [200, 184, 1]
    assert plan.rules["spacing_mm"].value == [0.8, 0.8, 6.0]
    assert 4 <= plan.settings["batch_size"] <= 16
    assert plan.network is None
    assert not any("single slices" in note for note in plan.notes)
    volumes = plan_from(
        seen.model_copy(update={"cases": thick}), manifest, tiny_manifest.parent, Wishes("unet", memory_bytes=GB)
    )
    assert any("--network unet,unet_2d" in note for note in volumes.notes)


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(16, 600), st.integers(16, 600), st.integers(2, 80)), st.floats(5, 10))
def test_within_a_budget_patches_stay_slices(shape: tuple[int, int, int], thick: float) -> None:
    spacing = (0.7, 0.8, thick)
    box = tuple(size * edge / 2 for size, edge in zip(shape, spacing, strict=True))
    profile = profile_of_slices(profile_of("unet_2d", 8), spacing)
    for place in resolutions(scans(shape, spacing, box), list(spacing), profile, GB):
        for bigger in [place, *larger(place, profile, GB)]:
            assert bigger.patch[2] == 1
            assert all(size % 8 == 0 for size in bigger.patch[:2])
            assert 4 <= bigger.batch <= 16
            assert bigger.batch * math.prod(bigger.patch) * profile.bytes_per_voxel <= GB


def test_info_says_what_a_step_of_slices_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "networks", "--network", "unet_2d", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["networks"][0]
    assert found["patch_size"] == [64, 64, 1]
    assert np.prod(found["patch_size"]) == 4096 and found["heads"] == 1
