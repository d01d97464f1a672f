"""A simulated annotator: is what `segpipe next` chooses worth more than as many cases drawn at random?

On the hippocampus data (SEGPIPE_DATA), folds 1 to 4 are the scans that nobody labelled yet, fold 0 is measured on; the
test cases are not touched. Both arms begin with the same 10 labelled cases; each round a small network is trained from
scratch, and the arm gets the true labels of further cases, up to 20 and 40.

    python bench/annotate_next.py --repeats 5 --out annotate_next.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import set_track_meta
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import RandCropByPosNegLabeld
from monai.utils import set_determinism

from segpipe.cohort import next_cases
from segpipe.data import Case, load_manifest, save_manifest

ROUNDS = (10, 20, 40)
SIZE = (48, 64, 48)  # that every scan fits in
PATCH = (32, 32, 32)
MANIFEST = Path(__file__).parents[1] / "data_manifests" / "msd_task04_hippocampus.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--rounds", type=int, nargs="+", default=ROUNDS)
    parser.add_argument("--out", type=Path, default=Path("annotate_next.json"))
    options = parser.parse_args()
    data = Path(os.environ.get("SEGPIPE_DATA", "")) / "Task04_Hippocampus"
    if not data.is_dir():
        print("set SEGPIPE_DATA to a folder with Task04_Hippocampus")
        return
    manifest = load_manifest(MANIFEST)
    pool, measured = manifest.select("training", 0), manifest.select("validation", 0)
    volumes = {case.id: read(data, case) for case in [*pool, *measured]}
    found: list[dict[str, Any]] = []
    for repeat in range(options.repeats):
        order = np.random.default_rng(repeat).permutation([case.id for case in pool]).tolist()
        start = order[: options.rounds[0]]
        network = train(volumes, start, options.steps, repeat)
        first = dice(network, volumes, measured)
        for arm in ("next", "random"):
            labelled, scores, trained = list(start), [first], network
            for size in options.rounds[1:]:
                more = size - len(labelled)
                if arm == "random":
                    labelled = order[:size]
                else:
                    left = [case for case in pool if case.id not in labelled]
                    labelled += chosen(trained, volumes, manifest, data, labelled, left, more)
                trained = train(volumes, labelled, options.steps, repeat)
                scores.append(dice(trained, volumes, measured))
            found.append(
                {"repeat": repeat, "arm": arm, "dice": dict(zip(map(str, options.rounds), scores, strict=True))}
            )
            print(found[-1], flush=True)
            options.out.write_text(
                json.dumps({"steps": options.steps, "measured": len(measured), "runs": found}, indent=1)
            )
    for size in map(str, options.rounds):
        arms = {arm: [run["dice"][size] for run in found if run["arm"] == arm] for arm in ("next", "random")}
        gain = np.subtract(arms["next"], arms["random"])
        spread = f"{gain.std(ddof=1):.4f}" if len(gain) > 1 else "-"
        means = ", ".join(f"{arm} {np.mean(values):.4f}" for arm, values in arms.items())
        print(f"{size:>3} cases: {means}, difference {gain.mean():+.4f} (SD {spread}, {len(gain)} repeats)")


def read(data: Path, case: Case) -> dict[str, torch.Tensor]:
    """Return image, label and where they lie in a box that every scan fits in."""
    image = nib.load(data / case.images[0]).get_fdata(dtype=np.float32)
    label = np.asarray(nib.load(data / str(case.label)).dataobj).astype(np.int64)
    image = (image - image.mean()) / max(float(image.std()), 1e-6)
    padding = [(0, size - edge) for size, edge in zip(SIZE, image.shape, strict=True)]
    return {
        "image": torch.from_numpy(np.pad(image, padding)[None]),
        "label": torch.from_numpy(np.pad(label, padding)[None]),
        "shape": torch.tensor(image.shape),
    }


def train(volumes: dict[str, dict[str, torch.Tensor]], ids: list[str], steps: int, seed: int) -> torch.nn.Module:
    set_determinism(seed)
    network = UNet(3, 1, 3, channels=(16, 32, 64), strides=(2, 2), num_res_units=1, norm="instance")
    crop = RandCropByPosNegLabeld(["image", "label"], "label", PATCH, pos=2, neg=1, num_samples=1)
    crop.set_random_state(seed)
    draw = np.random.default_rng(seed)
    loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, steps, 0.9)
    for _ in range(steps):
        patches = [crop(volumes[ids[place]])[0] for place in draw.integers(len(ids), size=4)]
        images, labels = (torch.stack([patch[key] for patch in patches]) for key in ("image", "label"))
        optimiser.zero_grad()
        loss(network(images), labels).backward()
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def scores_of(network: torch.nn.Module, volume: dict[str, torch.Tensor]) -> torch.Tensor:
    x, y, z = volume["shape"].tolist()
    return network(volume["image"][None])[0, :, :x, :y, :z].softmax(0)


def dice(network: torch.nn.Module, volumes: dict[str, dict[str, torch.Tensor]], cases: list[Case]) -> float:
    """Return the mean Dice over cases and labels."""
    found = []
    for case in cases:
        x, y, z = volumes[case.id]["shape"].tolist()
        predicted, true = scores_of(network, volumes[case.id]).argmax(0), volumes[case.id]["label"][0, :x, :y, :z]
        for value in (1, 2):
            one, other = predicted == value, true == value
            found.append(2 * float((one & other).sum()) / max(float(one.sum() + other.sum()), 1.0))
    return round(float(np.mean(found)), 4)


def chosen(
    network: torch.nn.Module,
    volumes: dict[str, dict[str, torch.Tensor]],
    manifest: Any,
    data: Path,
    labelled: list[str],
    left: list[Case],
    count: int,
) -> list[str]:
    """Return the cases that `segpipe next` chooses of what is left, from results as `predict --entropy` writes them."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        (out / "predictions.jsonl").touch()
        lines = []
        for case in left:
            folder, affine = out / case.id, nib.load(data / case.images[0]).affine
            folder.mkdir()
            scores = scores_of(network, volumes[case.id]).numpy()
            entropy = -(scores * np.log(np.maximum(scores, 1e-9))).sum(0).astype(np.float32)
            nib.save(nib.Nifti1Image(scores.argmax(0).astype(np.uint8), affine), folder / "segmentation.nii.gz")
            nib.save(nib.Nifti1Image(entropy, affine), folder / "entropy.nii.gz")
            (folder / "result.json").write_text("{}")
            lines.append(json.dumps({"id": case.id, "paths": [str(data / case.images[0])]}) + "\n")
        (out / "mapping.jsonl").write_text("".join(lines))
        known = [case for case in manifest.training if case.id in labelled]
        save_manifest(manifest.model_copy(update={"training": known, "test": []}), out / "labelled.json")
        found = next_cases(out, count, annotated=out / "labelled.json", data=data)
        return [choice.id for choice in found.choices]


if __name__ == "__main__":
    torch.set_num_threads(1)
    set_track_meta(False)
    begun = time.monotonic()
    main()
    print(f"{time.monotonic() - begun:.0f} s")
