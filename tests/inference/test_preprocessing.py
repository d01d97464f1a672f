"""The closed list: what it takes, what it names as outside, and that nothing is lost on the way."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.inference.transforms import (
    SUPPORTED,
    CropForeground,
    DivisiblePad,
    Orientation,
    Preprocessing,
    Spacing,
    SpatialPad,
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
    assert all(parsed.find(kind) for kind in SUPPORTED)
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
            assert name in parameters, f"{kind.name}.{name}"
            if isinstance(field.default, (bool, int)):
                assert parameters[name].default == field.default, f"{kind.name}.{name}"


@pytest.mark.slow
def test_import_stays_light() -> None:
    code = "import sys, segpipe.inference.transforms; sys.exit(bool({'torch', 'monai'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
