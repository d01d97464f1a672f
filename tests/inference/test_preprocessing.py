"""The closed list: what it takes, what it names as outside, and that nothing is lost on the way."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.inference.transforms import (
    SUPPORTED,
    CropForeground,
    DivisiblePad,
    DropItems,
    JoinChannels,
    Orientation,
    Preprocessing,
    Spacing,
    SpatialPad,
    SplitChannels,
    UnsupportedTransform,
    build_step,
)

KEYS = ["image", "label"]
USUAL = [
    {"_target_": "LoadImaged", "keys": KEYS, "image_only": True, "allow_missing_keys": True},
    {"_target_": "EnsureChannelFirstd", "keys": KEYS, "allow_missing_keys": True},
    {
        "_target_": "Orientationd",
        "keys": KEYS,
        "axcodes": "RAS",
        "labels": [["L", "R"], ["P", "A"], ["I", "S"]],
        "allow_missing_keys": True,
    },
    {
        "_target_": "monai.transforms.Spacingd",
        "keys": KEYS,
        "pixdim": [1, 1.5, 2.0],
        "mode": ["bilinear", "nearest"],
        "allow_missing_keys": True,
    },
    {"_target_": "CropForegroundd", "keys": KEYS, "source_key": "image", "allow_missing_keys": True},
    {"_target_": "SpatialPadd", "keys": KEYS, "spatial_size": [16, 16, 16], "allow_missing_keys": True},
    {"_target_": "DivisiblePadd", "keys": KEYS, "k": 8, "allow_missing_keys": True},
    {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True},
    {
        "_target_": "ScaleIntensityRanged",
        "keys": "image",
        "a_min": -5,
        "a_max": 5,
        "b_min": 0.0,
        "b_max": 1.0,
        "clip": True,
    },
    {"_target_": "EnsureTyped", "keys": KEYS, "allow_missing_keys": True},
]

APART = (SplitChannels, JoinChannels, DropItems)
CT_RANGE = {"_target_": "ScaleIntensityRanged", "a_min": -100, "a_max": 200, "b_min": -1.5, "b_max": 3.0, "clip": True}
BY_CASE = {"_target_": "NormalizeIntensityd", "channel_wise": True}
SINGLE = ["image_0", "image_1", "image_2"]
SPLIT = {"_target_": "SplitDimd", "keys": ["image"], "allow_missing_keys": True}
JOIN = {"_target_": "ConcatItemsd", "keys": SINGLE, "name": "image", "allow_missing_keys": True}
DROP = {"_target_": "DeleteItemsd", "keys": SINGLE}
PER_CHANNEL = [
    *USUAL[:4],
    SPLIT,
    {**CT_RANGE, "keys": ["image_0"]},
    {**CT_RANGE, "keys": ["image_2"], "a_min": 0},
    {**BY_CASE, "keys": ["image_1"], "nonzero": True},
    JOIN,
    DROP,
    USUAL[-1],
]


def test_fields_are_typed() -> None:
    parsed = Preprocessing.parse(USUAL)
    orientation, spacing, crop = parsed.find(Orientation), parsed.find(Spacing), parsed.find(CropForeground)
    assert orientation and orientation.axcodes == "RAS"
    assert spacing and spacing.pixdim == (1.0, 1.5, 2.0)
    assert crop and crop.source_key == "image"
    pad, divisible = parsed.find(SpatialPad), parsed.find(DivisiblePad)
    assert pad and pad.spatial_size == (16, 16, 16)
    assert divisible and divisible.k == 8
    assert [step.name for step in parsed.intensity] == ["NormalizeIntensityd", "ScaleIntensityRanged"]
    assert all(parsed.find(kind) for kind in SUPPORTED if kind not in APART)
    assert Preprocessing.parse(USUAL[:1]).find(Spacing) is None


def test_round_trip_is_exact() -> None:
    parsed = Preprocessing.parse(USUAL)
    assert parsed.to_config() == USUAL
    assert Preprocessing.parse(parsed.to_config()) == parsed
    assert pickle.loads(pickle.dumps(parsed)) == parsed
    assert hash(parsed) == hash(Preprocessing.parse(USUAL))


@given(chosen=st.sets(st.integers(0, len(USUAL) - 1), min_size=1), full=st.booleans())
def test_any_part_in_order_round_trips(chosen: set[int], full: bool) -> None:
    transforms = [dict(USUAL[index]) for index in sorted(chosen)]
    for transform in transforms:
        name = str(transform["_target_"]).removeprefix("monai.transforms.")
        transform["_target_"] = f"monai.transforms.{name}" if full else name
    assert Preprocessing.parse(transforms).to_config() == transforms


@given(st.permutations(range(len(USUAL))))
def test_only_the_intensity_pair_may_swap(order: list[int]) -> None:
    swapped = [7 if index == 8 else 8 if index == 7 else index for index in range(len(USUAL))]
    transforms = [USUAL[index] for index in order]
    if order in (list(range(len(USUAL))), swapped):
        Preprocessing.parse(transforms)
    else:
        with pytest.raises(UnsupportedTransform, match="order"):
            Preprocessing.parse(transforms)


@pytest.mark.parametrize(
    ("transforms", "what"),
    [
        ([{"_target_": "RandFlipd", "keys": "image"}], "RandFlipd"),
        ([{"_target_": "os.system", "command": "true"}], "os.system"),
        ([{"_target_": "other.Spacingd", "keys": "image", "pixdim": [1, 1, 1]}], "other.Spacingd"),
        ([{**USUAL[3], "diagonal": True}], "Spacingd.diagonal"),
        ([{**USUAL[3], "_disabled_": True}], "Spacingd._disabled_"),
        ([{**USUAL[3], "mode": 3}], "Spacingd.mode"),
        ([{**USUAL[3], "pixdim": "@spacing"}], "Spacingd.pixdim"),
        ([{**USUAL[3], "pixdim": [1, 1]}], "Spacingd.pixdim"),
        ([{**USUAL[3], "pixdim": [1, 1, float("nan")]}], "Spacingd"),
        ([{**USUAL[4], "select_fn": "$lambda x: x > 0"}], "CropForegroundd.select_fn"),
        ([{"_target_": "Orientationd", "keys": "image", "axcodes": "XYZ"}], "Orientationd.axcodes"),
        ([{"_target_": "Spacingd", "pixdim": [1, 1, 1]}], "Spacingd.keys"),
        ([USUAL[0], USUAL[0]], "LoadImaged"),
        (["LoadImaged"], "'LoadImaged'"),
        ([], "list"),
        ([SPLIT, {**CT_RANGE, "keys": ["image_0"]}], "ConcatItemsd"),
        ([JOIN, DROP], "SplitDimd"),
        ([SPLIT, JOIN], "DeleteItemsd"),
        ([SPLIT, {**JOIN, "keys": ["image_1", "image_0"]}, DROP], "ConcatItemsd"),
        ([SPLIT, {**JOIN, "name": "pred"}, DROP], "ConcatItemsd.name"),
        ([SPLIT, {**CT_RANGE, "keys": ["image"]}, JOIN, DROP], "SplitDimd"),
        ([SPLIT, {**CT_RANGE, "keys": ["image_3"]}, JOIN, DROP], "SplitDimd"),
        ([SPLIT, *[{**CT_RANGE, "keys": ["image_0"]}] * 2, JOIN, DROP], "ScaleIntensityRanged"),
        ([{**SPLIT, "dim": 1}, JOIN, DROP], "SplitDimd.dim"),
        ([SPLIT, JOIN, {**DROP, "keys": ["image_0"]}], "DeleteItemsd"),
        ("$@elsewhere", "list"),
    ],
)
def test_what_is_outside_is_named(transforms: object, what: str) -> None:
    with pytest.raises(UnsupportedTransform) as caught:
        Preprocessing.parse(transforms)
    assert caught.value.what == what
    assert caught.value.exit_code == 2
    assert pickle.loads(pickle.dumps(caught.value)).what == what


def test_builds_the_stock_transforms() -> None:
    import inspect

    from monai import transforms

    built = [build_step(step) for step in Preprocessing.parse(USUAL).steps]
    assert [type(one).__name__ for one in built] == [
        str(one["_target_"]).removeprefix("monai.transforms.") for one in USUAL
    ]
    for kind in SUPPORTED:  # every argument of the closed list is one of MONAI's, with MONAI's default
        parameters = inspect.signature(getattr(transforms, kind.name)).parameters
        for name, field in kind.model_fields.items():
            if name == "target":
                continue
            name = field.alias or name
            assert name in parameters, f"{kind.name}.{name}"
            if isinstance(field.default, (bool, int)):
                assert parameters[name].default == field.default, f"{kind.name}.{name}"


def test_channels_are_scaled_each_as_what_it_is() -> None:
    """MONAI's own transforms are the oracle; they leave the item ``image`` alone, with what `Invertd` goes by."""
    import numpy as np
    import torch
    from monai.transforms import Compose

    from segpipe.common.nifti import header_of_array
    from segpipe.inference.prepare import prepare
    from segpipe.inference.source import Source

    random = np.random.default_rng(3)
    scales = np.array([300.0, 7e4, 500.0], np.float32)[:, None, None, None]
    array = (random.normal(size=(3, 7, 9, 6)).astype(np.float32) * scales).clip(-1000)
    array[1, :3] = 0
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    parsed = Preprocessing.parse(PER_CHANNEL)
    assert parsed.to_config() == PER_CHANNEL
    assert parsed.why_not_streamed() is None
    steps = {step.name: parsed.channels_of(step) for step in parsed.steps}
    assert (steps["NormalizeIntensityd"], steps["Orientationd"]) == ((1,), None)
    source = Source(header_of_array((7, 9, 6), np.dtype(np.float32), affine, Path("case")), array)
    expected = Compose(parsed.build())({"image": source.tensor(), "case_id": "a"})
    assert set(expected) == {"image", "case_id"}
    assert [operation["class"] for operation in expected["image"].applied_operations] == [
        "Orientation",
        "SpatialResample",
    ]
    found, _ = prepare(source, parsed)
    torch.testing.assert_close(found, expected["image"].as_tensor(), rtol=1e-5, atol=1e-5)
    assert found[0].min() == -1.5
    assert abs(float(found[1].mean())) < abs(float(found[0].mean()))


@pytest.mark.slow
def test_import_stays_light() -> None:
    code = "import sys, segpipe.inference.transforms; sys.exit(bool({'torch', 'monai'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
