"""Stock MONAI against this package on a generated volume: the same weights, windows and overlap, file to file.

Each run is a process of its own, stock and ours alternating; imports are not counted. Prints wall and CPU seconds,
peak memory, the share of voxels that were interpolated, and where labels differ.

    python bench/whole_volume.py --shape 512 512 200 --classes 14 --repeats 2
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PIXDIM = (1.5, 1.5, 2.0)
SPACING = (0.78, 0.78, 1.5)


def main() -> None:
    arguments = _arguments()
    if arguments.child:
        print(json.dumps(_child(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = folder
        _make(Path(folder), arguments)
        kinds = ["ours"] if arguments.only_ours else ["stock", "ours"]
        results = [(kind, _run(kind, arguments)) for _ in range(arguments.repeats) for kind in kinds]
        for kind, result in results:
            print(kind, json.dumps(result))
        if not arguments.only_ours:
            _compare(Path(folder), results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 200))
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--roi", type=int, nargs=3, default=(96, 96, 96))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--noise", type=float, default=12, help="of the image; less makes fewer boundaries")
    parser.add_argument("--oblique", action="store_true")
    parser.add_argument(
        "--no-network", action="store_true", help="scores from intensities: all but the network"
    )
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--max-memory", type=float, help="GiB, for ours")
    parser.add_argument("--child")
    parser.add_argument("--folder")
    return parser.parse_args()


def _make(folder: Path, arguments: argparse.Namespace) -> None:
    """A CT-like volume of soft blobs in a body, and a bundle's worth of config."""
    import nibabel as nib
    import numpy as np
    from scipy.ndimage import gaussian_filter, zoom

    rng = np.random.default_rng(0)
    coarse = gaussian_filter(rng.normal(size=[max(4, n // 8) for n in arguments.shape]), 1.2) * 2500
    volume = np.empty(arguments.shape, np.int16)
    fine = zoom(coarse, [n / c for n, c in zip(arguments.shape, coarse.shape, strict=True)], order=1)
    volume[:] = fine[: arguments.shape[0], : arguments.shape[1], : arguments.shape[2]]
    volume += rng.normal(0, arguments.noise, arguments.shape).astype(np.int16)
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    if arguments.oblique:
        from scipy.spatial.transform import Rotation

        affine[:3, :3] = Rotation.from_euler("xyz", [7, -5, 11], degrees=True).as_matrix() @ affine[:3, :3]
    nib.save(nib.Nifti1Image(volume, affine), folder / "ct.nii.gz")


def _network(classes: int, arguments: argparse.Namespace) -> Any:
    import torch
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    if arguments.no_network:
        levels = torch.linspace(-1, 2, classes).reshape(1, -1, 1, 1, 1)
        return lambda windows: -40 * (windows - levels) ** 2
    network = UNet(3, 1, classes, (8, 16, 32, 64), (2, 2, 2), num_res_units=0).eval()
    return network


def _steps() -> list[dict[str, Any]]:
    return [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": list(PIXDIM), "mode": "bilinear"},
        {
            "_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -500, "a_max": 500, "b_min": 0.0,
            "b_max": 1.0, "clip": True,
        },
        {"_target_": "EnsureTyped", "keys": "image"},
    ]  # fmt: skip


def _run(kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--child", kind, "--folder", arguments.folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _child(arguments: argparse.Namespace) -> dict[str, Any]:
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    work = _stock if arguments.child == "stock" else _ours
    network = _network(arguments.classes, arguments)
    go = work(network, arguments)
    wall, cpu, before = (
        time.perf_counter(),
        time.process_time(),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )
    with torch.inference_mode():
        stages = go()
    return {
        "wall": round(time.perf_counter() - wall, 2),
        "cpu": round(time.process_time() - cpu, 2),
        "before_gib": round(before / 2**20, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "stages": stages,
    }


def _stock(network: Any, arguments: argparse.Namespace) -> Any:
    import numpy as np
    from monai.data import decollate_batch
    from monai.data.utils import list_data_collate
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd, SaveImaged

    from pipeline.inference.preprocessing import Preprocessing

    folder = Path(arguments.folder)
    pre = Compose(Preprocessing.parse(_steps()).build())
    post = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", transform=pre, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
            SaveImaged(
                "pred", output_dir=folder / "stock", output_postfix="seg", output_dtype=np.uint8, resample=False,
                separate_folder=False, print_log=False,
            ),
        ]
    )  # fmt: skip
    inferer = SlidingWindowInferer(arguments.roi, 1, 0.5, "gaussian")

    def go() -> dict[str, float]:
        start = time.process_time()
        batch = list_data_collate([pre({"image": str(folder / "ct.nii.gz")})])
        ready = time.process_time()
        scores = inferer(batch["image"], network)
        computed = time.process_time()
        post(decollate_batch({**batch, "pred": scores})[0])
        end = time.process_time()
        return {"prepare": ready - start, "network": computed - ready, "restore": end - computed}

    return go


def _ours(network: Any, arguments: argparse.Namespace) -> Any:
    import torch

    from pipeline.inference.output import write_labels
    from pipeline.inference.preprocessing import Preprocessing
    from pipeline.inference.source import read_source
    from pipeline.inference.streaming import segment_source
    from pipeline.inference.windows import Windowing

    folder = Path(arguments.folder)
    windowing = Windowing(tuple(arguments.roi), 0.5, 1, "gaussian", "softmax")

    def go() -> dict[str, float]:
        seconds: dict[str, float] = {}
        begun = time.process_time()
        source = read_source([folder / "ct.nii.gz"], 1)
        seconds["read_cpu"] = time.process_time() - begun
        labels = segment_source(
            source, Preprocessing.parse(_steps()), windowing, network, torch.device("cpu"), seconds
        )
        begun = time.process_time()
        write_labels(folder / "ours.nii.gz", labels, source.header)
        seconds["write_cpu"] = time.process_time() - begun
        return seconds

    return go


def _compare(folder: Path, results: list[tuple[str, dict[str, Any]]]) -> None:
    import nibabel as nib
    import numpy as np

    stock, ours = (
        np.asarray(nib.load(folder / name).dataobj) for name in ("stock/ct_seg.nii.gz", "ours.nii.gz")
    )
    print("labels that differ:", int(np.count_nonzero(stock != ours)), "of", stock.size)
    for what in ("wall", "cpu", "peak_gib"):
        by_kind = {
            kind: min(result[what] for k, result in results if k == kind) for kind in ("stock", "ours")
        }
        print(what, by_kind, "ratio", round(by_kind["stock"] / by_kind["ours"], 2))


if __name__ == "__main__":
    main()
