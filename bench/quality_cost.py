"""What quality control costs: a predicted case with a quality model in the bundle, and without, from file to file.

    python bench/quality_cost.py                                        # a small scan, some minutes
    python bench/quality_cost.py --full --network small_unet unet       # a CT of 512 x 512 x 200 voxels, 14 classes
    python bench/quality_cost.py --full --members 5                     # an ensemble in one bundle

Each run is a process of its own, which segments and writes cases as the worker of `segpipe predict` does, with and
without alternating: a crop of 96 x 96 x 72 voxels, then the scan. Imports, loading the model and converting it are not
counted. CPU and wall seconds and peak memory, medians and their ratios; exit code 1 where one is above the limit. Wall
seconds count only on an idle machine (`--wall`). The quality model is fitted to crops of 80 generated patients.

Networks are trained for a minute and find few organs. So the features of labels are those of the generated anatomy,
with stray voxels of each label all over the scan: more work than with labels of a network that was trained for long.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from segpipe.common.files import cache_folder, write_json
from segpipe.common.processes import usable_cores

CLASSES, SPACING = 14, (0.78, 0.78, 1.5)
LIMIT = 1.10
CROPS = 5  # of which the median is taken
STRAY = 40  # voxels of each label
FIGURES = ("cpu", "wall", "peak_mib")
HERE = Path(__file__)


def main() -> None:
    """Measure, print the ratios, and fail where one is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="512 x 512 x 200 voxels, not 256 x 256 x 80")
    parser.add_argument("--runtime", nargs="*", default=["torch", "openvino"])
    parser.add_argument("--network", nargs="*", default=["small_unet"], help="small_unet, or as of segpipe train")
    parser.add_argument("--members", type=int, default=1, help="networks of the bundle")
    parser.add_argument("--threads", type=int, nargs="*", default=[usable_cores()])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=50, help="of training")
    parser.add_argument("--networks", type=Path, default=cache_folder() / "bench", help="where they are kept")
    parser.add_argument("--wall", action="store_true", help="wall seconds are held against the limit too")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task = json.loads(options.task)
        {"fit": fit_model, "predict": predict}[task["what"]](task)
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # CPU seconds of a busy machine are of work, not of waiting
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = (512, 512, 200) if options.full else (256, 256, 80)
        _in_process({"what": "fit", "folder": name, "shape": shape, "network": "", **_kept(options)})
        for network in options.network:
            _in_process({"what": "fit", "folder": name, "network": network, **_kept(options)})
            for runtime in options.runtime:
                for threads in options.threads:
                    found = _both(folder, network, runtime, threads, options.repeats)
                    name = f"{network} {runtime}, {threads} threads"
                    worst = max(worst, _told(name, found, options.wall) if found else 0.0)
    print(f"the worst ratio is {worst:.3f}, the limit {LIMIT:.2f}" if worst else "nothing was measured")
    sys.exit(worst > LIMIT)


def _kept(options: argparse.Namespace) -> dict[str, Any]:
    return {"networks": str(options.networks), "epochs": options.epochs, "members": options.members}


def _both(folder: Path, network: str, runtime: str, threads: int, repeats: int) -> dict[bool, list[dict[str, Any]]]:
    """What was measured with a quality model, and without; nothing where the runtime does not take the network."""
    found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for number in range(repeats + 1):
        for judged in (True, False) if number % 2 else (False, True):
            bundle = str(folder / network / ("judged" if judged else "plain"))
            task = {"what": "predict", "folder": str(folder), "bundle": bundle, "runtime": runtime, "threads": threads}
            if number == 0:  # which converts the network
                if why_not := _in_process({**task, "crops": 0}):
                    print(f"{network} {runtime}: skipped, {why_not}")
                    return {}
                continue
            found[judged].append(_in_process({**task, "crops": CROPS}))
            print(json.dumps({"judged": judged, **found[judged][-1]}), file=sys.stderr, flush=True)
    return found


def _told(name: str, found: dict[bool, list[dict[str, Any]]], wall: bool) -> float:
    """Print medians and ratios; return the worst of those that count."""
    worst = 0.0
    for case in ("crop", "scan"):
        for figure in FIGURES:
            without, judged = (statistics.median(run[case][figure] for run in found[side]) for side in (False, True))
            ratio = judged / without
            print(f"{name}: {case}, {figure:<8} {without:8.2f} without, {judged:8.2f} with, ratio {ratio:.3f}")
            worst = max(worst, ratio if wall or figure != "wall" else 0.0)
    sys.stdout.flush()
    return worst


def _in_process(task: dict[str, Any]) -> Any:
    done = subprocess.run([sys.executable, str(HERE), "--task", json.dumps(task)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{task['what']} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def fit_model(task: dict[str, Any]) -> None:
    """Write scan and crop, or a network's bundle without and with a quality model."""
    import numpy as np
    from _organs import PIXDIM, crop, scan, trained, write

    folder, network = Path(task["folder"]), task["network"]
    if not network:
        write(folder / "scan.nii.gz", scan(77, CLASSES, task["shape"], SPACING)[0], SPACING)
        pairs = zip(task["shape"], SPACING, PIXDIM, strict=True)
        grid = tuple(math.ceil((size - 1) * edge / spaced) + 1 for size, edge, spaced in pairs)
        np.save(folder / "scan.npy", _strayed(scan(77, CLASSES, grid, PIXDIM)[1]))
        image, label = crop(77, CLASSES)
        write(folder / "crop.nii.gz", image, PIXDIM)
        np.save(folder / "crop.npy", _strayed(label))
    else:
        weights = trained(Path(task["networks"]), CLASSES, task["epochs"], network)
        plain, judged = folder / network / "plain", folder / network / "judged"
        write_bundle(plain, network, weights, task["members"])
        shutil.copytree(plain, judged)
        kept = weights.parent.parent / f"quality{task['members']}.json"
        if not kept.is_file():
            write_json(kept, _quality_model(plain))
        shutil.copy(kept, judged / "configs" / "quality.json")
    print("{}")


def _strayed(labels: Any) -> Any:
    import numpy as np

    places = np.random.default_rng(0).integers(0, labels.size, (CLASSES, STRAY))
    for value in range(1, CLASSES):
        labels.ravel()[places[value]] = value
    return labels


class _Anatomy:
    """What is measured instead of the labels that a network gives."""

    def __init__(self) -> None:
        from segpipe.bundle import segmentation

        self.labels: Any = None
        self._measured = segmentation.features_of
        segmentation.features_of = self

    def __call__(self, seen: Any, labels: Any) -> dict[str, float]:
        whole = tuple(slice(0, size) for size in seen.labels.shape)
        if self.labels[whole].shape != seen.labels.shape:
            raise SystemExit(f"labels of {self.labels.shape} for a grid of {seen.labels.shape}")
        seen.labels = self.labels[whole]
        return self._measured(seen, labels)


def write_bundle(root: Path, network: str, weights: Path, members: int) -> None:
    """Write a bundle of a trained network; an ensemble has its weights several times."""
    import yaml
    from _organs import SMALL_UNET, STEPS

    from segpipe.bundle.exporting.bundle_configs import inference_config
    from segpipe.bundle.tensors import weights_files

    fragment = HERE.parent.parent / "configs" / "network" / f"{network}.yaml"
    config = {
        **(SMALL_UNET if network == SMALL_UNET["network_name"] else yaml.safe_load(fragment.read_text())),
        "in_channels": 1,
        "deterministic_transforms": [
            {**step, "keys": ["image"]} | ({"mode": ["bilinear"]} if "mode" in step else {}) for step in STEPS
        ],
        "patch_size": [96, 96, 96],
        "out_channels": CLASSES,
        "activation": "softmax",
        "overlap": 0.5,
    }
    write_json(root / "configs" / "inference.json", inference_config(config, {}, 1, members))
    labels = {str(value): f"organ_{value}" if value else "background" for value in range(CLASSES)}
    document = {
        "name": f"organs_{network}",
        "version": "0.1.0",
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "network_data_format": {
            "inputs": {"image": {"channel_def": {"0": "CT"}}},
            "outputs": {"pred": {"channel_def": labels}},
        },
    }
    write_json(root / "configs" / "metadata.json", document)
    (root / "models").mkdir()
    for file in weights_files(members):
        shutil.copy(weights, root / file)


def _quality_model(bundle: Path, patients: int = 80) -> dict[str, Any]:
    """Fit one to crops that the bundle segments, each as it is and spoiled once."""
    import numpy as np
    from _organs import PIXDIM, crop, write

    from segpipe.bundle import LoadedBundle, open_bundle
    from segpipe.common.nifti import read_header
    from segpipe.inference import ModelOptions, Source
    from segpipe.quality import AS_IT_IS, Labelled, Row, fit, spoiled

    opened = open_bundle(bundle)
    loaded = LoadedBundle(opened.recipe(ModelOptions(device="cpu")), opened.policy, opened.is_foreign)
    anatomy, random = _Anatomy(), np.random.default_rng(0)
    rows, file = [], bundle.parent / "patient.nii.gz"
    for patient in range(100, 100 + patients):
        image, truth = crop(patient, CLASSES)
        write(file, image, PIXDIM)
        header = read_header(file)
        whole = Labelled(image[None].astype(np.float32), truth, header.affine)
        for kind, grade in ((AS_IT_IS, 0), ("noise", 1 + patient % 4)):
            case = whole if kind == AS_IT_IS else spoiled(whole, kind, grade, str(patient))
            anatomy.labels = truth
            found = loaded.segment(Source(header, case.image.copy()), measured=True)
            known = {name: random.uniform(0.5, 1) for value, name in opened.labels.items() if (truth == value).any()}
            rows.append(Row(str(patient), str(patient), kind, grade, found.features, known, dict.fromkeys(known, 1.0)))
    return fit(rows, list(opened.labels.values())[1:]).as_dict()


def predict(task: dict[str, Any]) -> None:
    """Segment and write the crop several times, then the scan; the first crop is not counted."""
    import numpy as np

    from segpipe.bundle import open_bundle
    from segpipe.inference import ModelOptions
    from segpipe.prediction.options import Outputs
    from segpipe.prediction.protocol import CaseFiles, Load, Segment
    from segpipe.prediction.worker import load, segment

    folder, opened = Path(task["folder"]), open_bundle(task["bundle"])
    options = ModelOptions(device="cpu", runtime=task["runtime"], threads=task["threads"])
    segmenter, loaded = load(Load(recipe=opened.recipe(options), policy=opened.policy, keeps_memory=True))
    if loaded.runtime != task["runtime"]:
        print(json.dumps("; ".join(loaded.runtime_reasons)))
        return
    anatomy = _Anatomy()
    labels = {name: np.load(folder / f"{name}.npy") for name in ("crop", "scan")}

    def case(name: str) -> dict[str, float]:
        anatomy.labels = labels[name]
        with tempfile.TemporaryDirectory(dir=folder) as out:
            request = Segment(
                case=CaseFiles(id=name, paths=(str(folder / f"{name}.nii.gz"),)), folder=out, outputs=Outputs()
            )
            Path("/proc/self/clear_refs").write_text("5")
            cpu, begun = time.process_time(), time.perf_counter()
            result = segment(segmenter, request)
            found = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - begun, "peak_mib": _peak_mib()}
        if (result.quality is None) != (opened.root.name == "plain"):
            raise SystemExit("judged without a quality model, or not by one")
        return {figure: round(value, 3) for figure, value in found.items()}

    case("crop")
    if not task["crops"]:
        print("{}")
        return
    crops = [case("crop") for _ in range(task["crops"])]
    found = {"crop": {figure: statistics.median(each[figure] for each in crops) for figure in FIGURES}}
    print(json.dumps({**found, "scan": case("scan")}))


def _peak_mib() -> float:
    """The most memory of this process since it was last asked to forget."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


if __name__ == "__main__":
    main()
