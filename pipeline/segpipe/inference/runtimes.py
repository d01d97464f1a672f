"""From a bundle's config to what computes the scores of windows: its network with weights, by PyTorch or OpenVINO.

What computes scores is a `Runtime`: windows (N, C, X, Y, Z) to scores (N, K, X, Y, Z). Averages, of several networks or
of mirrored windows, are of scores before activation, as `MeanEnsembled` in front of `Activationsd` has them; they are
summed in place.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch.utils.flop_counter import FlopCounterMode

from segpipe.errors import DataError, SegpipeError, UsageError, first_cause
from segpipe.inference.onednn import OneDnn
from segpipe.inference.openvino import Model, NotConvertedError, openvino_runtime
from segpipe.inference.sliding_window import Runtime

WORTH_CONVERTING = 100_000_000  # floating-point operations of a window; below, a network takes no time anyway
SAVERS = ("SaveImage", "SaveImaged", "SaveImageD", "SaveImageDict")


def device_of(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda:N`` names.

    Raises:
        UsageError: it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:
        raise UsageError(
            "this device cannot be used", found=name, expected="auto, cpu or cuda:N", hint="try --device cpu"
        ) from error
    return device


def without_savers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a config in which what writes images is switched off: results are written elsewhere, whole."""
    changed = copy.deepcopy(dict(config))
    for component in _mappings(changed):
        if short_name(component) in SAVERS:
            component["_disabled_"] = True
    return changed


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yield each mapping within a value."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _mappings(part)


def short_name(component: Mapping[str, Any]) -> str:
    """Return the name of a component of MONAI or torch, empty for others."""
    target = str(component.get("_target_", ""))
    return target.rsplit(".", 1)[-1] if "." not in target or target.startswith(("monai.", "torch.")) else ""


def parsed(parser: ConfigParser, id: str) -> Any:
    """Return what MONAI makes of an id of a bundle's config; a list of transforms is composed.

    Raises:
        DataError: there is no such id, or it cannot be built.
    """
    if id not in parser.config:
        raise DataError(
            f"the bundle's inference config has no {id!r}",
            found=sorted(parser.config),
            hint="it cannot be run case by case; run it with `python -m monai.bundle run`",
        )
    try:
        value = parser.get_parsed_content(id)
    except Exception as error:
        raise DataError(f"the bundle's {id!r} cannot be built", found=root_cause(error)) from error
    return Compose(value) if isinstance(value, list) else value


def load_weights(network: Any, weights: str, device: torch.device) -> torch.nn.Module:
    """Return a network with a bundle's weights, in evaluation mode.

    Raises:
        DataError: they cannot be read, do not fit, or are not finite: their scores would all pass for background.
    """
    try:
        state = torch.load(weights, map_location=device, weights_only=True)
        network.load_state_dict(state.get("model", state))  # as MONAI's CheckpointLoader
    except OSError as error:
        raise DataError("the bundle's weights cannot be read", path=weights, found=error.strerror) from error
    except Exception as error:
        raise DataError("the bundle's weights do not fit its network", path=weights, found=root_cause(error)) from error
    broken = next((name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise DataError(
            "the bundle's weights are not finite",
            path=weights,
            found=f"NaN or infinity in {broken}",
            hint="its training went wrong; get other weights",
        )
    module: torch.nn.Module = network.to(device).eval()
    return module


def root_cause(error: BaseException) -> str:
    """Say in one line what an error began with."""
    error = first_cause(error)
    if isinstance(error, SegpipeError):
        return error.message
    words = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(words[:2])}"[:300]


@dataclass(frozen=True)
class ChosenRuntime:
    """What computes the scores.

    Attributes:
        name: ``torch`` or ``openvino``.
        run: windows to scores.
        reasons: why it is not OpenVINO, where that was wished or left open.
    """

    name: str
    run: Runtime
    reasons: tuple[str, ...] = ()


def choose_average(
    wanted: str, models: Sequence[Model], device: torch.device, shape: tuple[int, ...], threads: int | None = None
) -> ChosenRuntime:
    """Choose one runtime for all models, whose scores are averaged; arguments as in `choose_runtime`."""
    runtimes = []
    for model in models:
        chosen = choose_runtime(wanted, model, device, shape, threads)
        if chosen.name == "torch":
            return ChosenRuntime("torch", average([torch_runtime(each.module) for each in models]), chosen.reasons)
        runtimes.append(chosen.run)
    return ChosenRuntime("openvino", average(runtimes))


def choose_runtime(
    wanted: str, model: Model, device: torch.device, shape: tuple[int, ...], threads: int | None = None
) -> ChosenRuntime:
    """Choose OpenVINO where it can compute the network, and PyTorch otherwise.

    Args:
        wanted: ``auto``, ``torch`` or ``openvino``; ``auto`` leaves small networks to PyTorch.
        model: the network, and what names its conversion in the cache.
        device: where it is.
        shape: (C, X, Y, Z) of a window.
        threads: CPU threads; None takes the cores that this process may use.

    Raises:
        UsageError: OpenVINO was asked for by name and is not installed, or not for this device.
    """
    network = torch_runtime(model.module)
    if wanted == "torch":
        return ChosenRuntime("torch", network)
    missing = importlib.util.find_spec("openvino") is None
    if wanted == "openvino" and (missing or device.type != "cpu"):
        raise UsageError(
            "OpenVINO cannot be used",
            found="it is not installed" if missing else f"device {device}",
            expected="a CPU, and the package openvino",
            hint="pip install 'segpipe[openvino]'" if missing else "--device cpu, or --runtime torch",
        )
    if missing or device.type != "cpu":
        return ChosenRuntime("torch", network, (f"openvino {'is not installed' if missing else 'is for the CPU'}",))
    if wanted == "auto" and _operations(model.module, shape) < WORTH_CONVERTING:
        return ChosenRuntime("torch", network, ("the network is too small to be worth a conversion",))
    try:
        return ChosenRuntime("openvino", openvino_runtime(network, model, shape, threads))
    except NotConvertedError as error:
        return ChosenRuntime("torch", network, (f"openvino was not used: {error}",))


def _operations(module: torch.nn.Module, shape: Sequence[int]) -> float:
    """Count floating-point operations of one window, from shapes alone; infinite where that cannot be told."""
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            copy.deepcopy(module).to("meta")(torch.empty((1, *shape), device="meta"))
    except Exception:  # noqa: BLE001 - some networks do not run on shapes alone
        return float("inf")
    return counter.get_total_flops()


def torch_runtime(network: torch.nn.Module) -> Runtime:
    """Return a network of torch as a runtime; of a list of one output that one, as MONAI's inferer takes it."""

    def run(windows: torch.Tensor) -> torch.Tensor:
        with OneDnn():
            scores: Any = network(windows)
        only: torch.Tensor = scores[0] if isinstance(scores, (list, tuple)) and len(scores) == 1 else scores
        return only

    return run


def average(runtimes: Sequence[Runtime]) -> Runtime:
    """Return the mean of the scores of several networks, for example of folds."""
    if len(runtimes) == 1:
        return runtimes[0]

    def run(windows: torch.Tensor) -> torch.Tensor:
        first, *rest = runtimes
        total = first(windows).clone()
        for runtime in rest:
            total += runtime(windows)
        return total.div_(len(runtimes))

    return run


def mirrored(runtime: Runtime, axes: Sequence[int]) -> Runtime:
    """Return the mean of a network's scores over windows mirrored along some axes or none (test-time augmentation).

    Args:
        runtime: the network; it is called 2 to the power of their number times, the plain window first.
        axes: spatial axes (0 to 2).
    """

    def flipped(dims: Sequence[int]) -> Runtime:
        return lambda windows: runtime(windows.flip(dims)).flip(dims)

    flips = [some for count in range(1, len(axes) + 1) for some in itertools.combinations(axes, count)]
    return average([runtime, *(flipped([axis + 2 for axis in flip]) for flip in flips)])
