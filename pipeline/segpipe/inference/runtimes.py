"""What computes the scores of windows: a network with a bundle's weights, by PyTorch or by OpenVINO.

What computes scores is a `Runtime`: windows (N, C, X, Y, Z) to scores (N, K, X, Y, Z).
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from segpipe.common.precision import channels_last
from segpipe.errors import UsageError
from segpipe.inference.averaging import average, mirrored, side_by_side
from segpipe.inference.bottleneck import Bottleneck, Pooled, only, pooled
from segpipe.inference.gpu_memory import in_parts
from segpipe.inference.onednn import OneDnn
from segpipe.inference.openvino_runtime import NotConvertedError, lanes_of, openvino_runtime
from segpipe.inference.precision import FLOAT32, ChosenPrecision, ForRuntime
from segpipe.inference.sliding_window import Runtime
from segpipe.inference.weights import Model

WORTH_CONVERTING = 100_000_000  # floating-point operations of a window; below, a network takes no time anyway


@dataclass(frozen=True)
class ChosenRuntime:
    """What computes the scores.

    Attributes:
        name: ``torch`` or ``openvino``.
        run: windows to scores.
        reasons: why it is not OpenVINO, where that was wished or left open.
        precision: what the networks compute in.
        bottlenecks: of the networks, in their order; mirrored windows are passed over.
        lanes: windows that are computed at the same time; as many have to be given at once.
    """

    name: str
    run: Runtime
    reasons: tuple[str, ...] = ()
    precision: ChosenPrecision = FLOAT32
    bottlenecks: tuple[Bottleneck, ...] = ()
    lanes: int = 1


def choose_runtime(
    wanted: str,
    models: Sequence[Model],
    device: torch.device,
    shape: tuple[int, ...],
    threads: int | None = None,
    mirror: Sequence[int] = (),
    members: bool = False,
    precision: ForRuntime = lambda runtime: FLOAT32,
) -> ChosenRuntime:
    """Choose OpenVINO where it can compute all networks, and PyTorch otherwise.

    Args:
        wanted: ``auto``, ``torch`` or ``openvino``; ``auto`` leaves small networks to PyTorch.
        models: networks, whose scores are averaged, and what names their conversions in the cache.
        device: where they are.
        shape: (C, X, Y, Z) of a window.
        threads: CPU threads; None takes the cores that this process may use.
        mirror: spatial axes (0 to 2) along which windows are mirrored as well.
        members: whether the networks are members of one bundle, whose scores are not averaged but stay side by side.
        precision: what a runtime computes in.

    Raises:
        UsageError: OpenVINO was asked for by name and is not installed, or not for this device.
    """
    missing = importlib.util.find_spec("openvino") is None
    if wanted == "openvino" and (missing or device.type != "cpu"):
        raise UsageError(
            "OpenVINO cannot be used",
            found="it is not installed" if missing else f"device {device}",
            expected="a CPU, and the package openvino",
            hint="pip install 'segpipe[openvino]'" if missing else "--device cpu, or --runtime torch",
        )

    bottlenecks = tuple(Bottleneck() for _ in models)

    def aside(runtime: Runtime) -> Runtime:
        def run(windows: torch.Tensor) -> torch.Tensor:
            with ExitStack() as looking:
                for bottleneck in bottlenecks:
                    looking.enter_context(bottleneck.aside())
                return runtime(windows)

        return run

    def together(runtimes: Sequence[Runtime]) -> Runtime:
        if members:
            return side_by_side([mirrored(runtime, mirror, aside(runtime)) for runtime in runtimes])
        return mirrored(averaged := average(runtimes), mirror, aside(averaged))

    models = [
        replace(model, module=pooled(model.module, shape), bottleneck=bottleneck)
        for model, bottleneck in zip(models, bottlenecks, strict=True)
    ]
    networks = [torch_runtime(model.module, bottleneck=model.bottleneck) for model in models]
    reasons: tuple[str, ...] = ()
    if wanted != "torch" and (missing or device.type != "cpu"):
        reasons = (f"openvino {'is not installed' if missing else 'is for the CPU'}",)
    elif wanted == "auto" and min(_operations(model.module, shape) for model in models) < WORTH_CONVERTING:
        reasons = ("the network is too small to be worth a conversion",)
    elif wanted != "torch":
        try:
            pairs, chosen = zip(networks, models, strict=True), precision("openvino")
            converted = [openvino_runtime(network, model, shape, threads, chosen) for network, model in pairs]
            return ChosenRuntime("openvino", together(converted), (), chosen, bottlenecks, lanes_of(threads))
        except NotConvertedError as error:
            reasons = (f"openvino was not used: {error}",)
    chosen = precision("torch")
    networks = [
        in_parts(torch_runtime(model.module, chosen, bottleneck), bottleneck.attempt)
        for model, bottleneck in zip(models, bottlenecks, strict=True)
    ]
    return ChosenRuntime("torch", together(networks), reasons, chosen, bottlenecks)


def _operations(module: torch.nn.Module, shape: Sequence[int]) -> float:
    """Count floating-point operations of one window, from shapes alone; infinite where that cannot be told."""
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            copy.deepcopy(module).to("meta")(torch.empty((1, *shape), device="meta"))
    except Exception:  # noqa: BLE001 - some networks do not run on shapes alone
        return float("inf")
    return counter.get_total_flops()


def torch_runtime(
    network: torch.nn.Module, precision: ChosenPrecision = FLOAT32, bottleneck: Bottleneck | None = None
) -> Runtime:
    """Return a network of torch as a runtime; of a list of one output that one, as MONAI's inferer takes it.

    Args:
        network: windows to scores, or `Pooled`.
        precision: what it computes in.
        bottleneck: is shown what a `Pooled` network holds.
    """

    def scores_of(given: Any) -> torch.Tensor:
        if isinstance(network, Pooled):
            given, held = given
            if bottleneck is not None:
                bottleneck.add(held)
        scores: torch.Tensor = only(given)
        return scores

    def run(windows: torch.Tensor) -> torch.Tensor:
        with OneDnn():
            return scores_of(network(windows))

    if precision.name != "bfloat16":
        return run
    # channels lie side by side in memory, which matrix units read as they are
    turned = copy.deepcopy(network).to(memory_format=channels_last(network))

    def by_autocast(windows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(windows.device.type, torch.bfloat16):
            scores = scores_of(turned(windows.contiguous(memory_format=torch.channels_last_3d)))
        return scores.float().contiguous()

    return by_autocast
