"""Stock MONAI against this package: the same weights, windows and overlap, from file to file.

Each run is a process of its own, stock and ours alternating; imports, loading the model and converting it are not
counted, except for the cold start of the hippocampus cases. Wall and CPU seconds, peak memory, the share of voxels that
were interpolated, and labels that differ. The networks are trained first, by `segpipe train` on generated organs, once.

    python bench/whole_volume.py                                # a small scan, some minutes
    python bench/whole_volume.py --full                         # all works, and docs/results/performance.md
    python bench/whole_volume.py --full --work ct memory        # these alone; the page keeps its other sections
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from _organs import scan, trained, write
from _page import machine, ratio, replace_sections

from segpipe.common.files import cache_folder
from segpipe.common.processes import usable_cores
from segpipe.evaluation import dice

SPACING = (0.78, 0.78, 1.5)
HERE = Path(__file__).parent
BUNDLE = HERE.parent / "bundles" / "hippocampus_mri"
OURS = ("torch", "openvino")
BFLOAT16 = tuple(f"{side} bfloat16" for side in OURS)  # fast with AMX alone


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the sizes of docs/results/performance.md, and the page")
    parser.add_argument("--work", nargs="*", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4, help="windows in one forward pass, of both")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--networks", type=Path, default=cache_folder() / "bench", help="where they are kept")
    parser.add_argument("--epochs", type=int, default=50, help="of training")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # CPU seconds of a busy machine are of work, not of waiting
    for name in options.work:
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            found = WORKS[name](Path(folder), options)
        if found and options.full:
            load = round(os.getloadavg()[0], 1)
            date = time.strftime("%Y-%m-%d")
            measured = {name: {"rows": found, "date": date, "load": load, "machine": machine(options.threads)}}
            replace_sections(HERE.parent / "docs" / "results" / "performance.md", measured)


def ct(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A CT of 14 classes, all runtimes, trained weights; with bfloat16 as well."""
    shape = (512, 512, 200) if options.full else (256, 256, 80)
    weights = trained(options.networks, 14, options.epochs)
    return _compared(folder, shape, 14, str(weights), ("stock", *BFLOAT16, *OURS), options)


def random_weights(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The worst case: every cell is a boundary."""
    shape = (256, 256, 100) if options.full else (128, 128, 60)
    return _compared(folder, shape, 14, "random", ("stock", "torch"), options)


def many_classes(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """105 classes, as far as stock can follow."""
    shape = (256, 256, 96) if options.full else (160, 160, 60)
    weights = trained(options.networks, 105, max(1, options.epochs // 4))
    return _compared(folder, shape, 105, str(weights), ("stock", *OURS), options)


def large(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """105 classes on a scan that stock cannot do: with and without a limit."""
    shape, limit = ((512, 512, 600), 4.0) if options.full else ((256, 256, 200), 2.0)
    weights = trained(options.networks, 105, max(1, options.epochs // 4))
    _scan(folder, 105, shape)
    task = _task(folder, 105, str(weights), options)
    found = {"free": _run("openvino", task), "limited": _run("openvino", {**task, "max_memory": int(limit * 2**30)})}
    found["differ"] = _differ(found["free"]["labels"], found["limited"]["labels"])
    print(json.dumps(found), flush=True)
    return {"shape": shape, "classes": 105, "limit_gib": limit, **found}


def memory(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """How memory grows with the slices; scores come from intensities, and 14 classes."""
    counts, plane = ((200, 800), 512) if options.full else ((50, 150), 256)
    peaks = []
    for slices in counts:
        _scan(folder, 14, (plane, plane, slices))
        peaks.append(_run("torch", _task(folder, 14, "intensities", options))["peak_gib"])
    growth = (peaks[1] - peaks[0]) * 2**30 / (plane * plane * (counts[1] - counts[0]))
    found = {"slices": counts, "plane": plane, "peaks_gib": peaks, "bytes_a_voxel": round(growth, 2)}
    print(json.dumps(found), flush=True)
    return found


def hippocampus(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The shipped bundle on real scans, as whole commands, with few and with many cases."""
    root = os.environ.get("SEGPIPE_DATA")
    if not root:
        print("skipped: SEGPIPE_DATA does not name the folder of Task04_Hippocampus")
        return {}
    images = sorted(Path(root).glob("Task04_Hippocampus/imagesTr/[!.]*.nii.gz"))
    few, many = (10, 60) if options.full else (2, 6)
    found: dict[str, Any] = {"few": few, "many": many}
    _command(folder, "openvino", images[:1], options)  # converts
    for side in ("stock", *OURS) * options.repeats:
        runs = [_command(folder, side, images[:count], options) for count in (few, many)]
        case = {what: (runs[1][what] - runs[0][what]) / (many - few) for what in ("wall", "cpu")}
        found.setdefault(side, []).append({"cold": runs[1], "case": case})
        print(side, json.dumps(found[side][-1]), flush=True)
    for side in OURS:
        pairs = [(folder / "stock" / f"{_stem(p)}_seg.nii.gz", folder / side / _stem(p)) for p in images[:many]]
        differ = [_differ(one, other / "segmentation.nii.gz") for one, other in pairs]
        found[f"{side}_differ"] = [sum(each[0] for each in differ), sum(each[1] for each in differ)]
    return found


WORKS = {
    "ct": ct,
    "random": random_weights,
    "classes": many_classes,
    "large": large,
    "memory": memory,
    "hippocampus": hippocampus,
}


def _compared(
    folder: Path, shape: Any, classes: int, weights: str, sides: tuple[str, ...], options: argparse.Namespace
) -> dict[str, Any]:
    _scan(folder, classes, shape)
    task = _task(folder, classes, weights, options)
    found: dict[str, Any] = {"shape": shape, "classes": classes}
    for side in sides * options.repeats:
        found.setdefault(side, []).append(_run(side, task))
        print(side, json.dumps(found[side][-1]), flush=True)
    found["serial"] = _run(sides[-1], {**task, "serial": True})
    print("one after the other", json.dumps(found["serial"]), flush=True)
    for side in sides[1:]:
        found[f"{side}_differ"] = _differ(found["stock"][0]["labels"], found[side][0]["labels"])
        ratios = {what: ratio(found["stock"], found[side], what) for what in ("wall", "cpu", "peak_gib")}
        differ = found[f"{side}_differ"]
        print(f"{side}: stock takes {ratios} times as much; labels that differ {differ}", flush=True)
    for side in set(BFLOAT16) & set(sides):
        plain = found[side.removesuffix(" bfloat16")][0]["labels"]
        found[f"{side}_dice"] = _agreement(found[side][0]["labels"], plain, classes)
        print(f"{side}: Dice with float32 {found[f'{side}_dice']}", flush=True)
    return found


def _agreement(one: str, other: str, classes: int) -> dict[str, float]:
    """Dice of each label between two label maps, of those that one of them has."""
    first, second = (np.asarray(nib.load(path).dataobj) for path in (one, other))
    scores = {value: dice(first == value, second == value) for value in range(1, classes)}
    return {str(value): round(score, 5) for value, score in scores.items() if score is not None}


def _scan(folder: Path, classes: int, shape: tuple[int, int, int]) -> None:
    write(folder / "ct.nii.gz", scan(77, classes, shape, SPACING)[0], SPACING)


def _task(folder: Path, classes: int, weights: str, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "classes": classes,
        "weights": weights,
        "roi": [96, 96, 96],
        "overlap": 0.5,
        "batch": options.batch,
        "threads": options.threads,
    }


def _run(side: str, task: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "_sides.py"), json.dumps({**task, "side": side})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _command(folder: Path, side: str, images: list[Path], options: argparse.Namespace) -> dict[str, float]:
    """A whole command on some cases: wall and CPU seconds, those of its children included."""
    inputs, out = folder / "in", folder / side
    for place in (inputs, out):
        shutil.rmtree(place, ignore_errors=True)
    inputs.mkdir()
    for image in images:
        (inputs / image.name).symlink_to(image)
    if side == "stock":
        command = [
            "-m",
            "monai.bundle",
            "run",
            "--config_file",
            str(BUNDLE / "configs/inference.json"),
            "--bundle_root",
            str(BUNDLE),
            "--dataset_dir",
            str(inputs),
            "--output_dir",
            str(out),
        ]
    else:
        command = ["-m", "segpipe", "predict", str(BUNDLE), str(inputs), str(out), "--runtime", side]
    before, begun = _children_cpu(), time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return {"wall": round(time.perf_counter() - begun, 2), "cpu": round(_children_cpu() - before, 2)}


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _differ(one: str | Path, other: str | Path) -> tuple[int, int]:
    """Voxels whose labels differ, and all."""
    first, second = (np.asarray(nib.load(path).dataobj) for path in (one, other))
    return int(np.count_nonzero(first != second)), first.size


def _stem(path: Path) -> str:
    return path.name.removesuffix(".nii.gz")


if __name__ == "__main__":
    main()
