"""Where volumes are mostly air, a plan cuts them to what is above 0: when, to what, and that a training takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from test_plan import GB, UNET, manifest_for

from segpipe.cli.app import run
from segpipe.data.fingerprint import Fingerprint, Intensity
from segpipe.data.manifest import Case, Manifest, save_manifest
from segpipe.inference.transforms import CropForeground, Preprocessing
from segpipe.training.planning import apply_rules
from segpipe.training.planning_rules import crop, resampled_shape
from tiny_fingerprint import made_fingerprint

INSIDE = Intensity(mean=80, std=40, percentiles=(-20, 0, 80, 150, 220))


def scans(*boxes_mm: tuple[float, float, float] | None) -> Fingerprint:
    """Cases of 100 mm along each axis, and what of them is above 0."""
    made = made_fingerprint(*[((50, 50, 25), (2.0, 2.0, 4.0))] * len(boxes_mm), modality="CT", foreground=INSIDE)
    cases = [case.model_copy(update={"positive_box_mm": box}) for case, box in zip(made.cases, boxes_mm, strict=True)]
    return made.model_copy(update={"cases": cases})


@pytest.mark.parametrize(
    ("boxes", "cut"),
    [
        ([(80.0, 60.0, 100.0)] * 3, True),
        ([(100.0, 75.1, 100.0)] * 3, False),
        ([(50.0, 50.0, 50.0), (100.0,) * 3, (100.0,) * 3], False),
        ([(50.0, 50.0, 50.0), (50.0,) * 3, None], False),
        ([None, None], False),
    ],
)
def test_what_is_cut(boxes: list[Any], cut: bool) -> None:
    assert crop(scans(*boxes)).value is cut


def test_a_patch_is_that_of_what_is_left() -> None:
    seen = scans(*[(80.0, 60.0, 100.0)] * 3)
    assert resampled_shape(seen, [2.0, 2.0, 4.0]) == (40, 30, 25)
    plan = apply_rules(seen, manifest_for(seen), UNET, 2 * GB, 8 * GB, 2)
    assert plan.task["patch_size"] == [40, 32, 32]
    steps = Preprocessing.parse(plan.task["deterministic_transforms"])
    cut = steps.find(CropForeground)
    assert cut is not None and cut.margin == 2 and cut.allow_smaller and steps.why_not_streamed() is None
    assert "48% of a case" in plan.rules["crop"].why
    assert "holds 48% of a case" in " ".join(plan.text.replace("#", "").split())
    whole = apply_rules(scans(*[(100.0,) * 3] * 3), manifest_for(seen), UNET, 2 * GB, 8 * GB, 2)
    assert Preprocessing.parse(whole.task["deterministic_transforms"]).find(CropForeground) is None


@pytest.mark.slow
def test_a_training_sees_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = []
    for number in range(2):
        image, label = np.full((40, 40, 20), -1000, np.int16), np.zeros((40, 40, 20), np.uint8)
        image[8:24, 10:26, 2:18] = np.random.default_rng(number).integers(1, 90, (16, 16, 16))
        label[12:20, 14:20, 6:12] = 1
        for name, values in (("image", image), ("label", label)):
            nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{number}_{name}.nii.gz")
        cases.append(Case(id=str(number), image=f"{number}_image.nii.gz", label=f"{number}_label.nii.gz", fold=number))
    labels = {"0": "background", "1": "organ"}
    save_manifest(Manifest(name="air", modality={"0": "CT"}, labels=labels, training=cases), tmp_path / "manifest.json")
    task, manifest = str(tmp_path / "task.yaml"), str(tmp_path / "manifest.json")
    assert run(["plan", manifest, "-o", task, "--json"]) == 0
    rules = {rule["name"]: rule["value"] for rule in json.loads(capsys.readouterr().out)["rules"]}
    assert rules["crop"] is True and rules["patch_size"] == [16, 16, 16]
    assert run(["train", manifest, "--task", task, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dry_run"]["validation_scores_shape"] == [1, 2, 20, 20, 20]
