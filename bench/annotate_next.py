"""A simulated annotator: is what `segpipe next` chooses worth more than as many cases drawn at random?

On the training cases of the hippocampus data (SEGPIPE_DATA): a fold a repeat is measured on, the other four are the
scans that nobody labelled yet; the test cases are not touched. Both arms begin with the same 10 labelled cases, and the
network that was trained on these; in each round an arm gets the true labels of further cases, up to 20 and 40, and a
network is trained from scratch, as long and from the same seed in both. The interval is Student's, of the differences
of the repeats.

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
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from scipy.stats import t as student
from torch import Tensor

from segpipe.cohort import next_cases
from segpipe.data import Case, Manifest, load_manifest, save_manifest

ROUNDS = (10, 20, 40)
ARMS = ("next", "random")
FOLDS = 5
SIZE = (48, 64, 48)  # that every scan fits in
PATCH = (32, 48, 32)  # nearly a whole scan
BATCH = 2
CHANNELS_LAST = torch.channels_last_3d
MANIFEST = Path(__file__).parents[1] / "data_manifests" / "msd_task04_hippocampus.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, nargs="+", default=ROUNDS)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first repeat: its fold, cases to begin with, weights, crops"
    )
    parser.add_argument("--out", type=Path, default=Path("annotate_next.json"))
    options = parser.parse_args()
    data = Path(os.environ.get("SEGPIPE_DATA", "")) / "Task04_Hippocampus"
    if not data.is_dir():
        print("set SEGPIPE_DATA to a folder with Task04_Hippocampus")
        return
    manifest = load_manifest(MANIFEST)
    volumes = {case.id: read(data, case) for case in manifest.training}
    found: list[dict[str, Any]] = []
    for repeat in range(options.repeats):
        seed = options.seed + repeat
        fold = seed % FOLDS
        pool, measured = manifest.select("training", fold), manifest.select("validation", fold)
        order = np.random.default_rng(seed).permutation([case.id for case in pool]).tolist()
        start = order[: options.rounds[0]]
        network = train(volumes, start, options.steps, seed)
        first = dice(network, volumes, measured)
        for arm in ARMS:
            labelled, scores, trained = list(start), [first], network
            for size in options.rounds[1:]:
                more = size - len(labelled)
                if arm == "random":
                    labelled = order[:size]
                else:
                    left = [case for case in pool if case.id not in labelled]
                    labelled += chosen(trained, volumes, manifest, data, labelled, left, more)
                trained = train(volumes, labelled, options.steps, seed)
                scores.append(dice(trained, volumes, measured))
            values = dict(zip(map(str, options.rounds), scores, strict=True))
            found.append({"repeat": repeat, "seed": seed, "fold": fold, "arm": arm, "dice": values, "cases": labelled})
            print(json.dumps({key: value for key, value in found[-1].items() if key != "cases"}), flush=True)
            options.out.write_text(json.dumps({"steps": options.steps, "runs": found}, indent=1))
    for size in map(str, options.rounds):
        print(summary(size, {arm: [run["dice"][size] for run in found if run["arm"] == arm] for arm in ARMS}))


def summary(size: str, arms: dict[str, list[float]]) -> str:
    """Return the means of both arms, and their mean difference with its 95 % interval over the repeats."""
    gain = np.subtract(arms["next"], arms["random"])
    half = student.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.nan
    means = ", ".join(f"{arm} {np.mean(values):.4f}" for arm, values in arms.items())
    between = f"[{gain.mean() - half:+.4f}, {gain.mean() + half:+.4f}]"
    return f"{size:>3} cases: {means}, difference {gain.mean():+.4f} {between}, {len(gain)} repeats"


def read(data: Path, case: Case) -> dict[str, Tensor]:
    """Return image, label and where they lie in a box that every scan fits in."""
    image = nib.load(data / case.images[0]).get_fdata(dtype=np.float32)
    label = np.asarray(nib.load(data / str(case.label)).dataobj).astype(np.int64)
    image = (image - image.mean()) / max(float(image.std()), 1e-6)
    padding = [(0, size - edge) for size, edge in zip(SIZE, image.shape, strict=True)]
    return {
        "image": torch.from_numpy(np.pad(image, padding)),
        "label": torch.from_numpy(np.pad(label, padding)),
        "shape": torch.tensor(image.shape),
    }


def train(volumes: dict[str, dict[str, Tensor]], ids: list[str], steps: int, seed: int) -> torch.nn.Module:
    """Return a network trained from scratch, in bfloat16; each case is seen as often as the others, but for one."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    act = ("leakyrelu", {"negative_slope": 0.1, "inplace": True})
    network = UNet(3, 1, 3, channels=(32, 64, 128), strides=(2, 2), num_res_units=1, norm="batch", act=act)
    network = network.to(memory_format=CHANNELS_LAST)
    loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    optimiser = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps, pct_start=0.1)
    names = sorted(ids)
    rounds = -(-steps * BATCH // len(names))
    order = np.concatenate([draw.permutation(len(names)) for _ in range(rounds)])
    for step in range(steps):
        drawn = [patch(volumes[names[place]], draw) for place in order[step * BATCH : (step + 1) * BATCH]]
        images, labels = (torch.stack(parts)[:, None] for parts in zip(*drawn, strict=True))
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images.contiguous(memory_format=CHANNELS_LAST))
        loss(logits.float(), labels).backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def patch(volume: dict[str, Tensor], draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return a part of image and label: anywhere, mirrored left to right or not, brighter or darker, noisy."""
    room = [max(int(edge) - size, 0) for edge, size in zip(volume["shape"], PATCH, strict=True)]
    corner = [int(draw.integers(each + 1)) for each in room]
    part = tuple(slice(begin, begin + size) for begin, size in zip(corner, PATCH, strict=True))
    image, label = volume["image"][part], volume["label"][part]
    if draw.random() < 0.5:
        image, label = image.flip(0), label.flip(0)
    image = image * float(draw.uniform(0.8, 1.25)) + float(draw.uniform(-0.2, 0.2))
    return image + float(draw.uniform(0, 0.15)) * torch.randn(image.shape), label


@torch.inference_mode()
def scores_of(network: torch.nn.Module, volume: dict[str, Tensor]) -> Tensor:
    x, y, z = volume["shape"].tolist()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(volume["image"][None, None].contiguous(memory_format=CHANNELS_LAST))
    return logits[0, :, :x, :y, :z].float().softmax(0)


def dice(network: torch.nn.Module, volumes: dict[str, dict[str, Tensor]], cases: list[Case]) -> float:
    """Return the mean Dice over cases and labels."""
    found = []
    for case in cases:
        x, y, z = volumes[case.id]["shape"].tolist()
        predicted, true = scores_of(network, volumes[case.id]).argmax(0), volumes[case.id]["label"][:x, :y, :z]
        for value in (1, 2):
            one, other = predicted == value, true == value
            found.append(2 * float((one & other).sum()) / max(float(one.sum() + other.sum()), 1.0))
    return round(float(np.mean(found)), 4)


def chosen(
    network: torch.nn.Module,
    volumes: dict[str, dict[str, Tensor]],
    manifest: Manifest,
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
    main()
    print(f"{time.process_time():.0f} CPU s")
