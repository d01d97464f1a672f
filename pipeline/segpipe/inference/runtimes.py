"""PyTorch's 3D convolutions of single windows on the CPU, in the time that oneDNN needs for them.

PyTorch chooses by batch and size, and leaves a single window of few channels to a path several times as slow. Of
transposed convolutions oneDNN gives the channels last, and PyTorch spends longer on turning them than on computing.

What computes the scores of windows: one network, several, or one on mirrored windows.

All are `Runtime`s: windows (N, C, X, Y, Z) to scores (N, K, X, Y, Z). Averages are of scores before activation, as
`MeanEnsembled` in front of `Activationsd` has them; they are summed in place.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from segpipe.errors import UsageError
from segpipe.inference.sliding_window import Runtime

ONEDNN_ANYWAY = 20480  # batch x channels x X x Y above which PyTorch takes oneDNN by itself (use_mkldnn)


class OneDnn(TorchFunctionMode):
    """Within it, float32 convolutions on the CPU go to oneDNN: the same sums, added in another order."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """One call of a function of torch; as the modules of `torch.nn` call a convolution, all are positional."""
        if func in _OURS and not kwargs and len(args) == _OURS[func][1] and _is_plain(args[0]):
            return _OURS[func][0](*args)
        return func(*args, **(kwargs or {}))


def _is_plain(windows: torch.Tensor) -> bool:
    batched = windows.device.type == "cpu" and windows.dtype == torch.float32 and windows.dim() == 5
    return batched and torch.backends.mkldnn.is_available()


def _convolution(
    windows: torch.Tensor, weight: torch.Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> torch.Tensor:
    if not all(isinstance(each, tuple) and len(each) == 3 for each in (stride, padding, dilation)):
        return F.conv3d(windows, weight, bias, stride, padding, dilation, groups)
    return torch.mkldnn_convolution(windows, weight, bias, padding, stride, dilation, groups)


def _transposed(
    windows: torch.Tensor,
    weight: torch.Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    extra: Any,
    groups: int,
    dilation: Any,
) -> torch.Tensor:
    if windows.shape[:4].numel() <= ONEDNN_ANYWAY:
        return F.conv_transpose3d(windows, weight, bias, stride, padding, extra, groups, dilation)
    last = windows.contiguous(memory_format=torch.channels_last_3d)
    return _channels_first(F.conv_transpose3d(last, weight, bias, stride, padding, extra, groups, dilation))


def _channels_first(windows: torch.Tensor) -> torch.Tensor:
    """The same as `contiguous`, as the transposition of a matrix, which PyTorch does in blocks."""
    if windows.is_contiguous():
        return windows
    turned = torch.empty(windows.shape)
    for one, into in zip(windows, turned, strict=True):
        into.flatten(1).copy_(one.permute(1, 2, 3, 0).flatten(0, 2).t())
    return turned


_OURS: dict[Callable[..., Any], tuple[Callable[..., torch.Tensor], int]] = {
    F.conv3d: (_convolution, 7),
    F.conv_transpose3d: (_transposed, 8),
}


WORTH_CONVERTING = 100_000_000  # floating-point operations of a window; below, a network takes no time anyway


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


@dataclass(frozen=True, eq=False)
class Model:
    """A network in evaluation mode, with the path of its state dict and its config's text: they name its conversion."""

    module: torch.nn.Module
    weights: str
    config: str


def choose_average(
    wanted: str, models: Sequence[Model], device: torch.device, shape: tuple[int, ...], threads: int | None = None
) -> ChosenRuntime:
    """One runtime for all models, whose scores are averaged; arguments as in `choose_runtime`."""
    runtimes = []
    for model in models:
        one = choose_runtime(wanted, model.module, device, model.weights, model.config, shape, threads)
        if one.name == "torch":
            every = [torch_runtime(each.module) for each in models]
            return ChosenRuntime("torch", average(every), one.reasons)
        runtimes.append(one.run)
    return ChosenRuntime("openvino", average(runtimes))


def choose_runtime(
    wanted: str,
    module: torch.nn.Module,
    device: torch.device,
    weights: str,
    config: str,
    shape: tuple[int, ...],
    threads: int | None = None,
) -> ChosenRuntime:
    """OpenVINO where it can compute the network, and PyTorch otherwise.

    Args:
        wanted: ``auto``, ``torch`` or ``openvino``; ``auto`` leaves small networks to PyTorch.
        module: the network, in evaluation mode.
        device: where it is.
        weights, config: path of the state dict and the config's text, which name a conversion in the cache.
        shape: (C, X, Y, Z) of a window.
        threads: CPU threads; None takes the cores that this process may use.

    Raises:
        UsageError: OpenVINO was asked for by name and is not installed, or not for this device.
    """
    network = torch_runtime(module)
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
    if wanted == "auto" and _operations(module, shape) < WORTH_CONVERTING:
        return ChosenRuntime("torch", network, ("the network is too small to be worth a conversion",))
    from segpipe.inference.openvino_runtime import Identity, NotConvertedError, openvino_runtime

    try:
        runtime = openvino_runtime(network, module, Identity(weights, config, shape), threads)
    except NotConvertedError as error:
        return ChosenRuntime("torch", network, (f"openvino was not used: {error}",))
    return ChosenRuntime("openvino", runtime)


def _operations(module: torch.nn.Module, shape: Sequence[int]) -> float:
    """Floating-point operations of one window, from shapes alone; many where that cannot be told."""
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            copy.deepcopy(module).to("meta")(torch.empty((1, *shape), device="meta"))
    except Exception:  # noqa: BLE001 - some networks do not run on shapes alone
        return float("inf")
    return counter.get_total_flops()


def torch_runtime(network: torch.nn.Module) -> Runtime:
    """A network of torch; of several outputs in a list the only one, as MONAI's inferer takes it."""

    def run(windows: torch.Tensor) -> torch.Tensor:
        with OneDnn():
            scores: Any = network(windows)
        only: torch.Tensor = scores[0] if isinstance(scores, (list, tuple)) and len(scores) == 1 else scores
        return only

    return run


def average(runtimes: Sequence[Runtime]) -> Runtime:
    """The mean of the scores of several networks, for example of folds."""
    if len(runtimes) == 1:
        return runtimes[0]

    def run(windows: torch.Tensor) -> torch.Tensor:
        first, *rest = runtimes
        total = first(windows).clone()
        for runtime in rest:
            total += runtime(windows)
        return total.div_(len(runtimes))

    return run


def mirrored(runtime: Runtime, flips: Sequence[Sequence[int]] = ((), (0,), (1,), (2,))) -> Runtime:
    """The mean of a network's scores over mirrored windows, turned back (test-time augmentation).

    Args:
        runtime: the network.
        flips: for each pass the spatial axes (0 to 2) that are mirrored.
    """

    def flipped(axes: Sequence[int]) -> Runtime:
        dims = [axis + 2 for axis in axes]
        return lambda windows: runtime(windows.flip(dims)).flip(dims)

    return average([flipped(axes) if axes else runtime for axes in flips])


def flips_along(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All ways to mirror along some axes or none, the plain one first: 2 to the power of their number."""
    return [some for count in range(len(axes) + 1) for some in itertools.combinations(axes, count)]
