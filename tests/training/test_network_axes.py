"""Strides and kernels that follow voxels which are coarser along one axis."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.cli.app import run
from segpipe.data.manifest import Case, Manifest, save_manifest
from segpipe.data.phantom import write_nifti
from segpipe.training.config_checks import check_network, padded_patch
from segpipe.training.fragments import known_fragments, read_fragment
from segpipe.training.network_axes import is_anisotropic, network_by_axis

VOLUMETRIC = [name for name in known_fragments("network") if not name.endswith("_2d")]
PROSTATE = ((0.625, 0.625, 3.6), (320, 320, 20))  # MSD Task05, as nnU-Net's first table has it


def planned(name: str, spacing: Any, shape: Any) -> dict[str, Any]:
    rule = network_by_axis(read_fragment("network", name)[0], spacing, shape)
    assert rule is not None
    return dict(rule.value)


def test_thick_slices_are_halved_and_convolved_over_later() -> None:
    unet = planned("unet", *PROSTATE)
    assert unet["network_def"]["strides"] == [[2, 2, 1], [2, 2, 1], [2, 2, 2]]
    assert unet["patch_divisor"] == [8, 8, 2]
    assert unet["network_def"]["channels"] == read_fragment("network", "unet")[0]["network_def"]["channels"]
    fine = planned("unet_fine", *PROSTATE)
    assert fine["network_def"]["strides"] == [[1, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 2]]
    dynunet = planned("dynunet", *PROSTATE)["network_def"]
    assert dynunet["strides"] == [[1, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 2]]
    assert dynunet["upsample_kernel_size"] == dynunet["strides"][1:]
    # 5.8 times as coarse, then 2.9, then 1.4: the first two levels see single slices
    assert dynunet["kernel_size"] == [[3, 3, 1], [3, 3, 1], [3, 3, 3], [3, 3, 3]]


def test_sagittal_slices_are_thick_along_the_first_axis() -> None:
    assert planned("unet", (4.0, 1.0, 1.0), (16, 200, 200))["patch_divisor"] == [2, 8, 8]


@pytest.mark.parametrize("name", ["basic_unet", "unetpp", "segresnet", "swin_unetr", "unet_resnet18", "attention_unet"])
def test_a_class_that_takes_no_strides_an_axis_stays_as_it_is(name: str) -> None:
    assert network_by_axis(read_fragment("network", name)[0], *PROSTATE) is None


def test_even_voxels_and_a_fragment_with_strides_of_its_own_stay_as_they_are() -> None:
    unet = read_fragment("network", "unet")[0]
    assert network_by_axis(unet, (1.0, 1.0, 1.9), PROSTATE[1]) is None
    own = {**unet, "network_def": {**unet["network_def"], "strides": [[2, 2, 1], [2, 2, 2], [2, 2, 2]]}}
    assert network_by_axis(own, *PROSTATE) is None


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([name for name in VOLUMETRIC if "unet" in name and name[:2] in ("un", "dy", "re")]),
    st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 3.0, 5.0, 8.0])] * 3),
    st.tuples(*[st.integers(6, 90)] * 3),
)
def test_any_such_network_takes_its_padded_patch(name: str, spacing: Any, shape: Any) -> None:
    rule = network_by_axis(read_fragment("network", name)[0], spacing, shape)
    if rule is None:
        assert not is_anisotropic(spacing) or name.startswith(("unetpp", "unet_resnet"))
        return
    fragment = rule.value
    patch = padded_patch(shape, fragment["patch_divisor"])
    assert all(math.prod(level[axis] for level in fragment["network_def"]["strides"]) for axis in range(3))
    check_network({**fragment, "in_channels": 2, "out_channels": 3, "patch_size": patch})


@pytest.fixture
def thick_slices(tmp_path: Path) -> Path:
    """Three cases of 8 slices, 6 mm thick, of 1 mm pixels."""
    cases = []
    for index in range(3):
        rng = np.random.default_rng(index)
        label = np.zeros((40, 40, 8), np.uint8)
        label[10:22, 8:24, 2:6] = 1
        affine = np.diag([1.0, 1.0, 6.0, 1.0])
        image = (rng.normal(9, 2, label.shape) + 6 * label).astype(np.float32)
        write_nifti(tmp_path / f"i{index}.nii.gz", image, affine)
        write_nifti(tmp_path / f"l{index}.nii.gz", label, affine)
        cases.append(Case(id=f"c{index}", image=f"i{index}.nii.gz", label=f"l{index}.nii.gz", fold=index))
    labels = {"0": "background", "1": "organ"}
    save_manifest(Manifest(name="thick", modality={"0": "MRI"}, labels=labels, training=cases), tmp_path / "m.json")
    return tmp_path / "m.json"


def test_the_planned_network_is_what_the_printed_command_trains(thick_slices: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(thick_slices.parent)
    assert run(["plan", "m.json", "-o", "task.yaml", "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["network"] == "task.network.yaml"
    assert "--augment in_plane" in printed.err
    fragment = yaml.safe_load(Path("task.network.yaml").read_text())
    assert fragment["patch_divisor"] == [8, 8, 2]
    assert yaml.safe_load(Path("task.yaml").read_text())["patch_size"] == [40, 40, 8]
    words = document["next"].split()[1:]
    assert words[words.index("--network") + 1] == "task.network.yaml"
    assert run([*words, "--augment", "in_plane", "--threads", "1", "--dry-run"]) == 0
    capsys.readouterr()
    assert run(["plan", "m.json", "-o", "task.yaml", "--overwrite", "--network", "segresnet", "--json"]) == 0
    printed = capsys.readouterr()
    assert "--network unet and dynunet follow them" in printed.err
    assert json.loads(printed.out)["network"] is None and not Path("task.network.yaml").exists()


@pytest.mark.slow
def test_a_plan_within_a_budget_measures_the_network_that_it_writes(thick_slices: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(thick_slices.parent)
    assert run(["plan", "m.json", "-o", "task.yaml", "--network", "dynunet", "--budget", "30s", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rules = {rule["name"]: rule["value"] for rule in document["rules"]}
    divisor = rules["network"]["patch_divisor"]
    assert all(size % each == 0 for size, each in zip(rules["patch_size"], divisor, strict=True))
    assert run([*document["next"].split()[1:], "--dry-run"]) == 0
