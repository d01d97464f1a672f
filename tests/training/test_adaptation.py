"""Weights that are given to another network: by name along channels and labels, whatever their order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segpipe.errors import UsageError
from segpipe.training.adaptation import Names, adapt
from segpipe.training.network_cost import build_network

LABELS = ["background", "liver", "kidney", "spleen"]
SMALL_UNET = {"_target_": "UNet", "spatial_dims": 3, "channels": [4, 8], "strides": [2], "num_res_units": 1}


def config(
    labels: list[str], channels: list[str], network: dict[str, Any] | None = None, seed: int = 0, **more: Any
) -> dict[str, Any]:
    return {
        "labels": labels,
        "channels": channels,
        "activation": "softmax",
        "in_channels": len(channels),
        "out_channels": len(labels),
        "network_name": "unet",
        "network_def": {**(network or SMALL_UNET), "in_channels": "@in_channels", "out_channels": "@out_channels"},
        "seed": seed,
        **more,
    }


def state_of(settings: dict[str, Any], seed: int = 9) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn_like(tensor) for name, tensor in build_network(settings).state_dict().items()}


def test_the_same_channels_and_labels_take_everything() -> None:
    ours = config(LABELS, ["CT"])
    parent = state_of(ours)
    found = adapt(parent, Names.of(ours), ours)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in parent.items())
    assert set(found.taken) == set(parent) and not (found.adapted or found.new or found.unused)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.permutations(["background", "liver", "kidney", "new"]),
    st.permutations(["CT", "PET"]),
    st.lists(st.sampled_from(["PET", "CT", "T1"]), min_size=1, max_size=3, unique=True),
)
def test_each_entry_is_where_its_name_is(labels: list[str], theirs: list[str], channels: list[str]) -> None:
    before, ours = config(LABELS, theirs), config(labels, channels)
    parent = state_of(before)
    found = adapt(parent, Names.of(before), ours)
    fresh = adapt({**parent}, Names((), (), "softmax"), ours).state  # nothing has a name in common
    first, transposed, head = (
        "model.0.conv.unit0.conv.weight",
        "model.2.0.conv.weight",
        "model.2.1.conv.unit0.conv.bias",
    )
    for here, channel in enumerate(channels):
        expected = parent[first][:, theirs.index(channel)] if channel in theirs else fresh[first][:, here]
        assert torch.equal(found.state[first][:, here], expected)
    for here, label in enumerate(labels):
        there = LABELS.index(label) if label in LABELS else None
        assert torch.equal(found.state[head][here], fresh[head][here] if there is None else parent[head][there])
        expected = fresh[transposed][:, here] if there is None else parent[transposed][:, there]
        assert torch.equal(found.state[transposed][:, here], expected)
    square = "model.2.1.conv.unit0.conv.weight"  # from outputs to outputs: both must have a name
    for row, one in enumerate(labels):
        for column, other in enumerate(labels):
            both = one in LABELS and other in LABELS
            expected = parent[square][LABELS.index(one), LABELS.index(other)] if both else fresh[square][row, column]
            assert torch.equal(found.state[square][row, column], expected)
    inner = "model.1.submodule.conv.unit0.conv.weight"
    assert torch.equal(found.state[inner], parent[inner]) and inner in found.taken


def test_swapped_labels_are_adapted_although_every_shape_is_equal() -> None:
    before, ours = config(LABELS, ["CT"]), config([LABELS[0], LABELS[2], LABELS[1], LABELS[3]], ["CT"])
    parent = state_of(before)
    found = adapt(parent, Names.of(before), ours)
    bias = "model.2.1.conv.unit0.conv.bias"
    assert bias in found.adapted and torch.equal(found.state[bias], parent[bias][[0, 2, 1, 3]])


@pytest.mark.parametrize(
    "network",
    [
        {
            "_target_": "DynUNet",
            "spatial_dims": 3,
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [4, 8, 8],
            "deep_supervision": True,
        },
        {"_target_": "BasicUNet", "spatial_dims": 3, "features": [4, 4, 4, 4, 4, 4]},
        {"_target_": "SegResNet", "spatial_dims": 3, "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    ],
)
def test_heads_of_other_networks_follow_as_well(network: dict[str, Any]) -> None:
    before, ours = config(LABELS, ["CT"], network), config([*LABELS[:2], "new"], ["CT"], network)
    parent = state_of(before)
    found = adapt(parent, Names.of(before), ours)
    assert found.adapted and not found.new
    assert found.outputs == ("background", "liver") and found.inputs == ("CT",)
    for name in found.adapted:
        assert torch.equal(found.state[name][:2], parent[name][:2])
        assert not torch.equal(found.state[name][2:], parent[name][2:3])
    assert set(found.adapted) | set(found.taken) == set(parent)


def test_scores_under_another_activation_mean_something_else() -> None:
    before, ours = config(["background", "liver"], ["CT"]), config(["background", "liver"], ["CT"], out_channels=1)
    ours["activation"] = "sigmoid"
    found = adapt(state_of(before), Names.of(before), ours)
    assert Names.of(ours).outputs == ("liver",)
    assert found.outputs == () and "model.2.1.conv.unit0.conv.bias" in found.new


def test_what_begins_anew_comes_from_the_seed_alone() -> None:
    before = config(LABELS, ["CT"])
    parent = state_of(before)
    fresh = [
        adapt(parent, Names.of(before), config(["background", "x"], ["CT"], seed=seed)).state for seed in (1, 1, 2)
    ]
    head = "model.2.1.conv.unit0.conv.weight"
    assert torch.equal(fresh[0][head], fresh[1][head]) and not torch.equal(fresh[0][head], fresh[2][head])


def test_another_network_is_refused_and_one_that_ignores_the_channels_too() -> None:
    before = config(LABELS, ["CT"])
    other = config(LABELS, ["CT"], {"_target_": "BasicUNet", "spatial_dims": 3, "features": [4, 4, 4, 4, 4, 4]})
    with pytest.raises(UsageError, match="no weights of the parent fit"):
        adapt(state_of(before), Names.of(before), other)
    fixed = config(LABELS, ["CT"])
    fixed["network_def"]["out_channels"] = 4
    with pytest.raises(UsageError, match="does not follow out_channels"):
        adapt(state_of(before), Names.of(before), fixed)
