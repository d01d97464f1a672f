"""Clean-up rules as stock transforms, against connected components by SciPy."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from segpipe.errors import DataError, UsageError
from segpipe.inference.cleanup import LabelRule, cleanup_transforms, read_rules

AFFINE = np.diag([2.0, 1.0, 0.5, 1.0])  # 1 mm3 a voxel


def expected(labels: np.ndarray, rules: dict[int, LabelRule]) -> np.ndarray:
    """The rules by hand, on label maps whose components have different sizes."""
    cleaned = labels.copy()
    for value, rule in rules.items():
        components, _ = ndimage.label(labels == value, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        keep = sizes > 0
        if rule.keep_largest:
            keep &= sizes == sizes.max()
        keep &= sizes >= (rule.min_volume_ml or 0) * 1000
        cleaned[(labels == value) & ~keep[components]] = 0
    return cleaned


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    array = np.zeros((14, 12, 10), np.uint8)
    array[1:5, 1:5, 1:5], array[5, 5, 5] = 1, 1  # joined by a corner
    array[9:11, 1:3, 1:3], array[12, 1, 1] = 1, 1
    array[1:4, 8:11, 1:4], array[8:10, 8:10, 7:9], array[5, 4, 5] = 2, 2, 2
    array[12, 9, 2:5] = 3
    return array


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {1: LabelRule(True)},
        {1: LabelRule(True), 2: LabelRule(True)},
        {1: LabelRule(False, 0.005)},
        {1: LabelRule(False, 0.005), 2: LabelRule(True, 0.5), 3: LabelRule(False, 0.004)},
    ],
)
def test_transforms_do_what_the_rules_say(labels: np.ndarray, rules: dict[int, LabelRule]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from monai.bundle import ConfigParser
        from monai.data import MetaTensor

        steps = cleanup_transforms(rules, n_labels=4)
        compose = ConfigParser({"c": {"_target_": "Compose", "transforms": steps}}).get_parsed_content("c")
        image = MetaTensor(torch.from_numpy(labels[None].copy()), affine=torch.from_numpy(AFFINE))
        found = compose({"pred": image})["pred"]
    assert found.shape == (1, *labels.shape) and np.array_equal(found.affine.numpy(), AFFINE)
    assert np.array_equal(found[0].numpy(), expected(labels, rules))
    json.dumps(steps)


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {2: LabelRule(True)},
        {1: LabelRule(True), 3: LabelRule(False, 0.004)},
        {1: LabelRule(True, 0.005), 2: LabelRule(False, 0.003), 3: LabelRule(True)},
    ],
)
def test_masks_of_regions_are_cleaned_each_by_itself(labels: np.ndarray, rules: dict[int, LabelRule]) -> None:
    """Regions overlap: a component is one of its mask, whatever the others have there."""
    import torch
    from monai.bundle import ConfigParser
    from monai.data import MetaTensor

    masks = np.stack([labels > 0, labels == 2, labels != 2]).astype(np.uint8)
    masks[2, 0] = 0
    steps = cleanup_transforms(rules, n_labels=3, regions=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compose = ConfigParser({"c": {"_target_": "Compose", "transforms": steps}}).get_parsed_content("c")
        found = compose({"pred": MetaTensor(torch.from_numpy(masks.copy()), affine=torch.from_numpy(AFFINE))})["pred"]
    assert found.shape == masks.shape and np.array_equal(found.affine.numpy(), AFFINE)
    for number, mask in enumerate(masks, 1):
        alone = {1: rules[number]} if number in rules else {}
        assert np.array_equal(found[number - 1].numpy(), expected(mask, alone)), number
    assert bool(steps) == bool(rules)


def test_no_rule_is_no_transform() -> None:
    assert cleanup_transforms({1: LabelRule()}, 2) == []
    assert cleanup_transforms({1: LabelRule()}, 2, regions=2) == []
    assert not LabelRule() and LabelRule(True) and LabelRule(False, 0.1)


def test_read_rules(tmp_path: Path) -> None:
    path = tmp_path / "postprocessing.json"
    path.write_text('{"schema_version": 1, "rules": {"2": {"keep_largest": false, "min_volume_ml": 0.2}}}')
    assert read_rules(path) == {2: LabelRule(False, 0.2)}
    with pytest.raises(UsageError):
        read_rules(tmp_path / "none.json")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"schema_version": 2, "rules": {}}',
        '{"schema_version": 1, "rules": {"a": {}}}',
        '{"schema_version": 1, "rules": {"1": {"largest": true}}}',
        '{"schema_version": 1, "rules": {"1": {"keep_largest": 3}}}',
        '{"schema_version": 1, "rules": {"1": {"min_volume_ml": "x"}}}',
    ],
)
def test_refuses_what_is_not_rules(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.json"
    path.write_text(text)
    with pytest.raises(DataError, match="post-processing rules"):
        read_rules(path)
