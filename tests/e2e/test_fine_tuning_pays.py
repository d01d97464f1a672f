"""A bundle of many phantoms, four scans of one's own: beginning with it beats beginning by chance at equal steps."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.common.files import sha256_of, write_json
from segpipe.data.manifest import Manifest
from segpipe.data.phantom import make_phantom
from tiny_data import TASK
from tiny_folds import read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = ["network_def#channels=[8,16]", "network_def#strides=[2]", "patch_divisor=2", "batch_size=2"]
LABELS = ["background", "liver", "kidney", "lesion"]


def write_scans(folder: Path, numbers: range, validated: int, contrast: float = 1.0) -> None:
    """Phantoms, the first of which are validated; with another contrast they are of another scanner."""
    cases = []
    for place, number in enumerate(numbers):
        image, label = (f"{part}/p{number}.nii.gz" for part in ("images", "labels"))
        for path in (image, label):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        make_phantom(number, shape=(20, 18, 16), spacing_mm=(3.0, 3.0, 3.5)).write(folder / image, folder / label)
        read_back = nib.load(folder / image)
        noise = np.random.default_rng(number).normal(0, 8, read_back.shape)
        voxels = np.asarray(read_back.dataobj) * contrast + noise * (contrast != 1)
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), read_back.affine), folder / image)
        hashes = {path: sha256_of(folder / path) for path in (image, label)}
        fold = int(place >= validated)
        cases.append({"id": f"p{number}", "image": image, "label": label, "fold": fold, "sha256": hashes})
    labels = {str(value): name for value, name in enumerate(LABELS)}
    document = {"name": folder.name, "modality": {"0": "MRI"}, "labels": labels, "training": cases}
    write_json(folder / "manifest.json", Manifest.model_validate(document).dump())
    (folder / "task.yaml").write_text(TASK)


def mean_dice(name: str) -> float:
    """Mean Dice of what a bundle predicted, over cases and labels, counted by hand."""
    found = []
    for number in range(50, 56):
        truth = np.asarray(nib.load(f"mine/labels/p{number}.nii.gz").dataobj)
        labels = np.asarray(nib.load(f"predicted/{name}/p{number}/segmentation.nii.gz").dataobj)
        pairs = [(truth == value, labels == value) for value in range(1, len(LABELS)) if (truth == value).any()]
        found.append(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))
    return float(np.mean(found))


def test_four_scans_and_a_bundle_beat_four_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_scans(Path("many"), range(10), 2)
    write_scans(Path("mine"), range(50, 60), 6, contrast=1.7)  # six are validated, four are trained on
    words = [word for item in (*SMALL, "val_interval=5") for word in ("--set", item)]
    quick = ["--threads", "1", "--set", "learning_rate=0.01"]
    first = ["train", "many/manifest.json", "--task", "many/task.yaml", "--out", "runs/many", "--epochs", "40"]
    assert run([*first, *quick, *words]) == 0
    assert run(["export", "runs/many", "organs"]) == 0

    few = ["--epochs", "5", *quick]
    tuned = ["train", "mine/manifest.json", "--from", "organs", *few, "--set", "batch_size=2", "--out", "runs/tuned"]
    assert run(tuned) == 0
    chance = ["train", "mine/manifest.json", "--task", "mine/task.yaml", *few, *words, "--out", "runs/chance"]
    assert run(chance) == 0
    dice = {name: read(Path("runs") / name / "run.json")["best"]["val_mean_dice"] for name in ("tuned", "chance")}
    steps = {name: sum(1 for _ in (Path("runs") / name / "history.csv").open()) for name in dice}
    assert steps["tuned"] == steps["chance"] == 6  # five epochs of two steps, and the head
    assert dice["tuned"] > dice["chance"] + 0.15, dice

    assert run(["export", "runs/tuned", "tuned"]) == 0 and run(["export", "runs/chance", "chance"]) == 0
    cases = ["--split", "validation", "--fold", "0"]
    for name in ("chance", "tuned"):
        assert run(["predict", name, "mine/manifest.json", f"predicted/{name}", *cases]) == 0
    measure = ["evaluate", "mine/manifest.json", "--no-figures", "--json", *cases]
    assert run([*measure, "predicted/chance", "--out", "metrics/chance"]) == 0
    capsys.readouterr()
    assert run([*measure, "predicted/tuned", "--out", "metrics/tuned", "--against", "metrics/chance"]) == 0
    against = json.loads(capsys.readouterr().out)["against"]
    assert (against["cases"], against["patients"]) == (6, 6) and against["difference"]["low"] > 0, against
    gain = mean_dice("tuned") - mean_dice("chance")
    assert against["difference"]["mean"] == pytest.approx(gain) and gain > 0.15

    (tmp_path / "task.yaml").write_text(TASK.replace("axcodes: RAS", "axcodes: LAS"))
    capsys.readouterr()
    assert run(["train", "mine/manifest.json", "--from", "organs", "--task", "task.yaml", "--out", "runs/other"]) == 5
    assert "orientation: here LAS, organs RAS" in capsys.readouterr().err

    assert run(["reproduce", "tuned", "--data", "mine", "--parent", "organs"]) == 0
    assert read(Path("tuned-reproduced/reproduction.json"))["verdict"] == "bit-identical"
    assert not Path("runs/other").exists()
