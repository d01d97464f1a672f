"""One run of stock MONAI or of this package, in a process of its own: prints seconds, memory and what was found."""

from __future__ import annotations

import json
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _organs import CHANNELS, STEPS
from monai.data import decollate_batch
from monai.data.utils import list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd, SaveImaged

from segpipe.common.memory import keep_freed_memory
from segpipe.inference import engine as streaming
from segpipe.inference.memory_estimate import Probe
from segpipe.inference.output import write_labels
from segpipe.inference.precision import ChosenPrecision
from segpipe.inference.runtimes import choose_runtime
from segpipe.inference.sliding_window import Windowing
from segpipe.inference.transforms import Preprocessing, build_step
from segpipe.inference.weights import Model

Work = Callable[[], dict[str, Any]]


def main() -> None:
    """Read what to do from the command line, as JSON."""
    task: dict[str, Any] = json.loads(sys.argv[1])
    warnings.filterwarnings("ignore")
    torch.set_num_threads(task["threads"])
    go = _stock(task) if task["side"] == "stock" else _ours(task)
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        found = go()
    found |= {
        "wall": round(time.perf_counter() - wall, 2),
        "cpu": round(time.process_time() - cpu, 2),
        "peak_gib": round(_peak_kib() / 2**20, 2),
    }
    print(json.dumps(found))


def _peak_kib() -> int:
    """The most memory of this process; getrusage would count what its parent had when it was started."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _network(task: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    if task["weights"] == "intensities":
        return _Levels(task["classes"])
    network = UNet(3, 1, task["classes"], CHANNELS, (2, 2, 2), num_res_units=0).eval()
    if task["weights"] != "random":
        network.load_state_dict(torch.load(task["weights"], weights_only=True))
    return network


class _Levels(torch.nn.Module):
    """Scores from intensities: what is left of a prediction when the network costs nothing."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.levels = torch.linspace(-0.2, 1, classes).reshape(1, -1, 1, 1, 1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return (windows - self.levels).square_().mul_(-40)


def _preprocessing() -> Preprocessing:
    return Preprocessing.parse([{**step, "keys": ["image"]} | _only_image(step) for step in STEPS])


def _only_image(step: dict[str, Any]) -> dict[str, Any]:
    return {"mode": ["bilinear"]} if "mode" in step else {}


def _stock(task: dict[str, Any]) -> Work:
    folder, network = Path(task["folder"]), _network(task)
    pre = Compose([build_step(step) for step in _preprocessing().steps])
    save = SaveImaged(
        "pred",
        output_dir=folder / "stock",
        output_postfix="seg",
        output_dtype=np.uint8,
        resample=False,
        separate_folder=False,
        print_log=False,
    )
    post = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", transform=pre, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
            save,
        ]
    )
    inferer = SlidingWindowInferer(task["roi"], task["batch"], task["overlap"], "gaussian")

    def go() -> dict[str, Any]:
        batch = list_data_collate([pre({"image": str(folder / "ct.nii.gz")})])
        begun = time.process_time()
        scores = inferer(batch["image"], network)
        windows = time.process_time() - begun
        post(decollate_batch({**batch, "pred": scores})[0])
        return {"windows_cpu": round(windows, 2), "labels": str(folder / "stock" / "ct_seg.nii.gz")}

    return go


def _ours(task: dict[str, Any]) -> Work:
    if not task.get("max_memory"):
        keep_freed_memory()  # as the process of `segpipe predict` does
    folder, network, path = Path(task["folder"]), _network(task), Path(task["folder"]) / "ct.nii.gz"
    state = folder / "state.pt"
    torch.save(network.state_dict(), state)
    shape = (1, *task["roi"])
    model = Model(network, str(state), str(task["classes"]))
    wanted, _, kind = task["side"].partition(" ")
    precision = ChosenPrecision(kind or "float32")
    chosen = choose_runtime(
        wanted, [model], torch.device("cpu"), shape, task["threads"], precision=lambda runtime: precision
    )
    serial = task.get("serial", False)
    windowing = Windowing(
        tuple(task["roi"]), task["overlap"], task["batch"], "gaussian", "softmax", overlapped=not serial
    )
    engine = streaming.StreamingEngine(
        _preprocessing(), windowing, chosen.run, torch.device("cpu"), 1, task.get("max_memory"), lanes=chosen.lanes
    )
    restorers: list[Any] = []
    made = streaming.Restorer

    def watched(*arguments: Any) -> Any:
        restorers.append(made(*arguments))
        return restorers[-1]

    streaming.Restorer = watched  # type: ignore[misc, assignment]
    if serial:  # its stages in CPU seconds
        streaming.time = types.SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    out = folder / f"{task['side']}{task.get('max_memory') or ''}.nii.gz"

    def go() -> dict[str, Any]:
        seconds: dict[str, float] = {}
        begun = time.process_time()
        engine.probe = Probe.measure(chosen.run, 1, windowing.roi_size, engine.device, chosen.lanes)
        probe = time.process_time() - begun
        read, _ = engine.read([path])
        labels, _ = engine.segment(read.source, seconds)
        write_labels(out, labels, read.source.header)
        return {
            "stages": seconds,
            "windows_cpu": round(seconds["network"] + probe, 2) if serial else None,
            "labels": str(out),
            "runtime": chosen.name,
            "reasons": chosen.reasons,
            "interpolated": restorers[-1].undecided / labels.size,
        }

    return go


if __name__ == "__main__":
    main()
