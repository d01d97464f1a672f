"""A patch is padded to what the network takes, or the network is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from segpipe.cli.app import run
from segpipe.errors import UsageError
from segpipe.training.config_checks import check_network, padded_patch
from segpipe.training.fragments import read_fragment
from tiny_data import train_arguments

SIZES = st.tuples(*[st.integers(1, 200)] * 3)


@given(SIZES, st.sampled_from([1, 2, 8, 16, 32]))
def test_padding_is_the_least_that_leaves_two_voxels_at_the_bottom(size: tuple[int, ...], divisor: int) -> None:
    padded = padded_patch(size, divisor)
    assert all(big % divisor == 0 and big >= small for big, small in zip(padded, size, strict=True))
    assert max(padded) >= 2 * divisor
    assert padded_patch(padded, divisor) == padded
    grown = [axis for axis in range(3) if padded[axis] - size[axis] >= divisor]
    assert not grown or (max(size) <= divisor and grown == [max(range(3), key=lambda axis: size[axis])])


def config(name: str, patch: list[int], **changes: Any) -> dict[str, Any]:
    fragment, _ = read_fragment("network", name)
    definition = {**fragment["network_def"], **changes}
    return {**fragment, "network_def": definition, "in_channels": 1, "out_channels": 2, "patch_size": patch}


@pytest.mark.parametrize(
    ("faulty", "words"),
    [
        (config("unet_resnet18", [64, 48, 64]), "64x48x64"),
        (config("swin_unetr", [64, 48, 64]), "divisible"),
        (config("resunet", [24, 32, 32]), "24x32x32"),
        (config("unetpp", [24, 24, 24]), "more than 1 spatial element"),
        (config("attention_unet", [8, 8, 8]), "more than 1"),
        (config("segresnet", [16, 16, 16], in_channels=3), "1 channels"),
        (config("basic_unet", [32, 32, 32], out_channels=7), "(1, 7, 32, 32, 32)"),
        (config("unet", [32, 32, 32], strides=[2, 2]), "strides"),
        (config("unetpp", [32, 32, 32], _target_="BasicUNetPlusPlus"), "4 heads"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(faulty: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_network(faulty)
    assert words in str(caught.value)


def test_a_network_that_gives_what_it_gets_passes() -> None:
    identity = {"network_def": {"_target_": "torch.nn.Identity"}}
    check_network({**identity, "in_channels": 2, "out_channels": 2, "patch_size": [4, 4, 4]})


def test_the_patch_of_another_networks_plan_is_padded_and_it_is_said(
    tiny_manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tiny_manifest.parent / "task.yaml"
    assert run(["train", str(tiny_manifest), "--task", str(task), "--network", "resunet", "--explain", "--json"]) == 0
    printed = capsys.readouterr()
    document = yaml.safe_load(printed.out)
    assert document["config"]["patch_size"] == [32, 16, 16]
    assert document["origins"]["patch_size"] == "task.yaml, padded for resunet to multiples of 16"
    assert "padded to [32, 16, 16]" in printed.err
    assert document["config"]["validate"]["inferer"]["roi_size"] == "@patch_size"


def test_a_patch_that_is_too_small_is_refused_before_anything_starts(
    tiny_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = train_arguments(tiny_manifest, tmp_path / "run", "--network", "unetpp", small=False)
    assert run(words) == 2
    assert "does not take the patch" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run([*words, "--set", "patch_size=[0,16,16]"]) == 2
    assert "patch_size" in capsys.readouterr().err
