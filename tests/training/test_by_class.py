"""The fragment `by_class`: each label is in the middle of a patch equally often, however small it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from segpipe.training.fragments import read_fragment


def test_a_small_label_is_drawn_as_often_as_a_large_one(tmp_path: Path) -> None:
    steps = read_fragment("augment", "by_class")[0]["random_transforms"]
    names = ("ClassesToIndicesd", "RandCropByLabelClassesd")
    crop = {"_target_": "Compose", "transforms": [step for step in steps if step["_target_"] in names]}
    parser = ConfigParser({"crop": crop, "patch_size": [9, 9, 9], "labels": ["background", "a", "b", "c"]})
    draw = parser.get_parsed_content("crop").set_random_state(seed=0)
    label = torch.zeros((1, 40, 40, 40))
    label[0, 5:25, 5:25, 5:25] = 1
    label[0, 30:33, 30:33, 30:33] = 2  # 27 voxels beside 8,000; label 3 is not in this case
    case = {"image": MetaTensor(label.clone()), "label": MetaTensor(label)}
    centres = Counter(int(draw(case)[0]["label"][0, 4, 4, 4]) for _ in range(600))
    assert set(centres) == {0, 1, 2}
    assert all(150 < count < 250 for count in centres.values())
