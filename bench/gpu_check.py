"""Is a GPU right and fast: training steps, Dice, mixed precision and whole volumes on it against the CPU, in minutes.

Each check prints PASS or FAIL with its figures; exit code 0: all passed, 1: one failed, 2: there is no CUDA device.

    python bench/gpu_check.py                  # the first CUDA device
    python bench/gpu_check.py --device cuda:1
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _organs import STEPS, scan, write
from monai.data import decollate_batch
from monai.data.utils import list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd

from segpipe.components import in_precision
from segpipe.data import PHANTOM_LABELS, make_phantom
from segpipe.evaluation import dice
from segpipe.inference import Preprocessing, StreamingEngine, Windowing, torch_runtime
from segpipe.inference.gpu_memory import in_parts
from segpipe.inference.transforms import build_step

SPACING = (0.78, 0.78, 1.5)
LOSSES_DIFFER = 2e-3  # of the first steps, as a share: sums in another order, and then steps from other weights
DICE_DIFFERS = 0.05  # after all steps, when rounding has led to other weights
LABELS_DIFFER = 1e-4  # voxels, as a share
AMP_DIFFERS = 0.1  # of the mean loss of the last ten steps, as a share
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        patch: edge of the training volumes.
        steps: of a training.
        channels: of the U-Nets.
        volume: voxels of the CT.
        classes: of the CT.
        window: edge of the sliding window.
        batch: windows at once.
    """

    patch: int = 64
    steps: int = 120
    channels: tuple[int, ...] = (16, 32, 64)
    volume: tuple[int, int, int] = (384, 384, 160)
    classes: int = 14
    window: int = 96
    batch: int = 4


@dataclass(frozen=True)
class Found:
    """What a check found."""

    name: str
    passed: bool
    figures: str


def main() -> int:
    """Run all checks on the device that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    device = torch.device(parser.parse_args().device)
    if device.type != "cuda" or not torch.cuda.is_available():
        sys.stderr.write(
            f"gpu_check: there is no CUDA device {device}: install torch's build for CUDA and run it where a GPU of "
            "NVIDIA is, or see `segpipe doctor`\n"
        )
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is compared with float32
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}", flush=True)
    passed = True
    for check in (training, mixed_precision, inference, out_of_memory):
        begun = time.perf_counter()
        for found in check(device, Size()):
            print(f"{'PASS' if found.passed else 'FAIL'} {found.name}: {found.figures}", flush=True)
            passed = passed and found.passed
        print(f"     {time.perf_counter() - begun:.0f} s", flush=True)
    return 0 if passed else 1


@dataclass(frozen=True, eq=False)
class Trained:
    """A training: the loss of each step, Dice by label on a case that it did not see, and seconds a step."""

    losses: list[float]
    dice: list[float]
    step_s: float
    inside: set[torch.dtype]


def train(device: torch.device, size: Size, precision: Any = "float32") -> Trained:
    """Train a U-Net on three generated abdomens, on each with the same weights and in the same order."""
    torch.manual_seed(0)
    network: torch.nn.Module = UNet(3, 1, len(PHANTOM_LABELS), size.channels, (2,) * (len(size.channels) - 1))
    inside: set[torch.dtype] = set()
    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv3d))
    first.register_forward_hook(lambda _module, _given, scores: inside.add(scores.dtype))
    network = in_precision(network.train(), precision, device=device)
    optimiser, loss_of = torch.optim.AdamW(network.parameters(), 3e-3), DiceCELoss(to_onehot_y=True, softmax=True)
    pairs = [tuple(part.to(device) for part in _abdomen(seed, size.patch)) for seed in range(3)]
    losses, begun = [], 0.0
    for step in range(size.steps):
        if step == size.steps // 2:
            _wait(device)
            begun = time.perf_counter()
        image, label = pairs[step % len(pairs)]
        loss = loss_of(network(image), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    _wait(device)
    step_s = (time.perf_counter() - begun) / (size.steps - size.steps // 2)
    image, truth = _abdomen(9, size.patch)
    with torch.inference_mode():
        labels = network.eval()(image.to(device)).argmax(1).cpu().numpy()
    scores = [dice(truth[0].numpy() == value, labels == value) for value in PHANTOM_LABELS if value]
    return Trained([float(loss) for loss in losses], [1.0 if each is None else each for each in scores], step_s, inside)


def _abdomen(seed: int, edge: int) -> tuple[torch.Tensor, torch.Tensor]:
    phantom = make_phantom(seed, (edge, edge, edge), (2.0, 2.0, 2.0))
    image = torch.from_numpy(phantom.image.astype(np.float32))
    return ((image - image.mean()) / image.std())[None, None], torch.from_numpy(phantom.label)[None, None].long()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training(device: torch.device, size: Size) -> list[Found]:
    """Compare a training in float32 with that of the CPU: its first steps, and the Dice at its end."""
    ours, cpu = train(device, size), train(CPU, size)
    first = max(2, size.steps // 20)
    differ = max(abs(one - other) / other for one, other in zip(ours.losses[:first], cpu.losses[:first], strict=True))
    means = [float(np.mean(each.dice)) for each in (ours, cpu)]
    steps = f"a step takes {ours.step_s * 1e3:.1f} ms, {cpu.step_s / ours.step_s:.1f} times faster than on the CPU"
    return [
        Found("training step", differ <= LOSSES_DIFFER, f"losses of {first} steps differ by {differ:.2g}; {steps}"),
        Found(
            "training Dice",
            abs(means[0] - means[1]) <= DICE_DIFFERS and means[0] > 0.1,
            f"{means[0]:.3f} on an unseen case, {means[1]:.3f} on the CPU, after {size.steps} steps",
        ),
    ]


def mixed_precision(device: torch.device, size: Size) -> list[Found]:
    """Compare a training in bfloat16 with one in float32."""
    plain, mixed = train(device, size), train(device, size, "bfloat16")
    last = [float(np.mean(each.losses[-10:])) for each in (mixed, plain)]
    differ = abs(last[0] - last[1]) / last[1]
    return [
        Found(
            "mixed precision",
            mixed.inside == {torch.bfloat16} and plain.inside == {torch.float32} and differ <= AMP_DIFFERS,
            f"convolutions give {', '.join(map(str, mixed.inside))}; the loss ends {differ:.1%} apart; "
            f"a step is {plain.step_s / mixed.step_s:.2f} times faster",
        )
    ]


def inference(device: torch.device, size: Size) -> list[Found]:
    """Compare a whole volume with the CPU and with stock MONAI on the same device, from file to labels."""
    torch.manual_seed(0)
    network = UNet(3, 1, size.classes, size.channels, (2,) * (len(size.channels) - 1)).eval()
    steps = [{**step, "keys": ["image"], **({"mode": ["bilinear"]} if "mode" in step else {})} for step in STEPS]
    typed = Preprocessing.parse(steps)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "ct.nii.gz"
        write(path, scan(0, size.classes, size.volume, SPACING)[0], SPACING)
        stock = _timed(device, lambda: _stock(path, typed, network, device, size))
        ours = _timed(device, lambda: _ours(path, typed, network, device, size))
        cpu = _timed(CPU, lambda: _ours(path, typed, network, CPU, size))
    shares = [float(np.mean(ours[0] != other)) for other in (cpu[0], stock[0])]
    return [
        Found(
            "inference, labels",
            max(shares) <= LABELS_DIFFER,
            f"{shares[0]:.2g} of the voxels differ from the CPU's, {shares[1]:.2g} from stock MONAI's",
        ),
        Found(
            "inference, time",
            ours[1] <= stock[1],
            f"{ours[1]:.2f} s, stock MONAI {stock[1]:.2f} s ({stock[1] / ours[1]:.1f} times), the CPU {cpu[1]:.2f} s",
        ),
    ]


def _timed(device: torch.device, work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """Return what the second of two runs gives, and its seconds."""
    work()
    _wait(device)
    begun = time.perf_counter()
    labels = work()
    _wait(device)
    return labels, time.perf_counter() - begun


def _windowing(size: Size) -> Windowing:
    return Windowing((size.window,) * 3, 0.5, size.batch, "gaussian", "softmax")


def _ours(path: Path, typed: Preprocessing, network: torch.nn.Module, device: torch.device, size: Size) -> np.ndarray:
    run = in_parts(torch_runtime(copy.deepcopy(network).to(device)))
    engine = StreamingEngine(typed, _windowing(size), run, device)
    read, _ = engine.read([path])
    return engine.segment(read.source, {})[0]


def _stock(path: Path, typed: Preprocessing, network: torch.nn.Module, device: torch.device, size: Size) -> np.ndarray:
    """Scores of the whole volume lie on the CPU, where those of many classes find room."""
    moved, before = copy.deepcopy(network).to(device), Compose([build_step(step) for step in typed.steps])
    after = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", transform=before, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
        ]
    )
    windows = _windowing(size)
    inferer = SlidingWindowInferer(
        windows.roi_size, windows.batch, windows.overlap, windows.mode, sw_device=device, device=CPU
    )
    batch = list_data_collate([before({"image": str(path)})])
    scores = inferer(batch["image"], moved)
    labels: np.ndarray = after(decollate_batch({**batch, "pred": scores})[0])["pred"][0].numpy().astype(np.uint8)
    return labels


def out_of_memory(device: torch.device, size: Size) -> list[Found]:
    """Give a network more windows at once than there is memory for: fewer are computed, with the same scores."""
    torch.manual_seed(0)
    windows = torch.randn(16, 1, *(size.window,) * 3)
    network = UNet(3, 1, size.classes, size.channels, (2,) * (len(size.channels) - 1)).eval().to(device)
    run = torch_runtime(network)
    asked: list[int] = []
    with torch.inference_mode():
        expected = torch.cat([run(window.to(device)).cpu() for window in windows[:4].split(1)])
        room = _room_for_four(run, windows, device)

        def limited(batch: torch.Tensor) -> torch.Tensor:
            asked.append(len(batch))
            if device.type != "cuda" and len(batch) > 4:  # where there is no limit to set
                raise torch.OutOfMemoryError("out of memory")
            return run(batch)

        try:
            scores = in_parts(limited)(windows.to(device)).cpu()
        finally:
            if room:
                torch.cuda.set_per_process_memory_fraction(1.0, device)
    differ = float((scores[:4] - expected).abs().max() / expected.abs().max())
    return [
        Found(
            "out of memory",
            len(scores) == len(windows) and max(asked) == len(windows) > asked[-1] and differ <= 1e-4,
            f"{len(windows)} windows did not fit, {asked[-1]} at once did; scores differ by {differ:.2g}",
        )
    ]


def _room_for_four(run: Callable[[torch.Tensor], torch.Tensor], windows: torch.Tensor, device: torch.device) -> bool:
    """Limit the memory of a GPU to what all windows, their scores and four windows in the network take."""
    if device.type != "cuda":
        return False
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    scores = run(windows[:4].to(device))
    working = torch.cuda.max_memory_allocated(device) - held
    kept = 2 * scores.nbytes / 4 * len(windows) + windows.nbytes
    del scores
    torch.cuda.empty_cache()
    limit = held + kept + 1.5 * working
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, limit / torch.cuda.get_device_properties(device).total_memory), device
    )
    return True


if __name__ == "__main__":
    sys.exit(main())
