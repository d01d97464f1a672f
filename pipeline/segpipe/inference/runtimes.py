"""What computes the scores of windows: a network with a bundle's weights, by PyTorch or by OpenVINO.

What computes scores is a `Runtime`: windows (N, C, X, Y, Z) to scores (N, K, X, Y, Z).

OpenVINO's conversion of a network is made once and kept outside the bundle. It is compared with PyTorch when it is
made, on windows that were not used for tracing, and never used where they differ by more than `TOLERANCE`. That is in
float32; what is computed in, `precision` decides: OpenVINO by itself would take bfloat16 on processors that have it.
Scores are float32 in any case.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import json
import sys
import threading
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from segpipe.common.files import network_cache, sha256_of, write_json
from segpipe.common.partial import Partial
from segpipe.common.precision import channels_last
from segpipe.common.processes import usable_cores
from segpipe.errors import UsageError
from segpipe.inference.averaging import average, mirrored, side_by_side
from segpipe.inference.bottleneck import Bottleneck, Pooled, only, pooled
from segpipe.inference.gpu_memory import in_parts
from segpipe.inference.long_sums import summed_in_parts
from segpipe.inference.onednn import OneDnn
from segpipe.inference.precision import ChosenPrecision, ForRuntime
from segpipe.inference.recipe import BundleFiles
from segpipe.inference.sliding_window import Runtime
from segpipe.inference.weights import load_weights

WORTH_CONVERTING = 100_000_000  # floating-point operations of a window; below, a network takes no time anyway
FLOAT32 = ChosenPrecision()
TOLERANCE = 1e-4  # largest difference of a score, as a share of the largest score; of a bottleneck alike
FORMAT = 2  # of the folder
MOST_LANES = 4  # windows at the same time: each holds what its network computes
MODEL, MARK = "model.xml", "converted.json"
_ONE_AT_A_TIME = threading.Lock()


class NotConvertedError(Exception):
    """Why OpenVINO does not compute this network."""


@dataclass(frozen=True, eq=False)
class Model:
    """A network, and what its conversion depends on beside its input, versions and processor.

    Attributes:
        module: on the CPU where it is converted, and in evaluation mode.
        weights: path of the state dict.
        config: the network's config as text.
        bundle: hash of the bundle, which has a folder of conversions of its own.
        bottleneck: is shown what the network holds of each window; None where nobody asked.
    """

    module: torch.nn.Module
    weights: str
    config: str
    bundle: str = ""
    bottleneck: Bottleneck | None = None

    def conversion_key(self, shape: tuple[int, ...], core: Any) -> str:
        """Return the hex digest that names the folder of the conversion for windows of a shape."""
        import monai

        parts = [
            FORMAT,
            sha256_of(self.weights),
            self.config,
            shape,
            _openvino().__version__,
            torch.__version__,
            monai.__version__,
            core.get_property("CPU", "FULL_DEVICE_NAME"),
        ]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


def load_models(bundles: Iterable[BundleFiles], networks: Iterable[Any], device: torch.device) -> list[Model]:
    """Return the networks of bundles, which were built from their configs, with their weights: one for each file.

    Raises:
        DataError: as `load_weights`.
    """
    return [
        Model(
            load_weights(copy.deepcopy(network) if bundle.members else network, file.path, device, file.sha256),
            file.path,
            json.dumps(bundle.inference, sort_keys=True, default=str),
            bundle.sha256,
        )
        for bundle, network in zip(bundles, networks, strict=True)
        for file in bundle.all_weights
    ]


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


def openvino_runtime(
    network: Runtime, model: Model, shape: tuple[int, ...], threads: int | None, precision: ChosenPrecision = FLOAT32
) -> Runtime:
    """Return the network as OpenVINO computes it, from the cache or converted now.

    Args:
        network: what the result is compared with.
        model: what is converted.
        shape: (C, X, Y, Z) of a window.
        threads: CPU threads; None takes the cores that this process may use.
        precision: that it computes in, once its conversion was found right in float32.

    Raises:
        NotConvertedError: it cannot be converted, its scores differ, or this processor has no bfloat16.
    """
    core = _core()
    folder = network_cache(model.bundle) / model.conversion_key(shape, core)
    hint = "bf16" if precision.name == "bfloat16" else "f32"
    if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise NotConvertedError("this processor has no bfloat16 that it knows")

    def compiled(converted: Any, hint: str = hint) -> Runtime:
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(lanes_of(threads)),
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
            "ENABLE_CPU_PINNING": False,  # each of several processes would take the first cores
        }
        return _runtime(core.compile_model(converted, "CPU", settings), lanes_of(threads), model.bottleneck)

    try:
        if is_whole(folder):
            return compiled(core.read_model(folder / MODEL))

        def compare(module: torch.nn.Module) -> tuple[Any, Runtime, float]:
            converted = _convert(module, shape)
            runtime = compiled(converted, "f32")
            return converted, runtime, _compared(runtime, network, shape, model.bottleneck)

        try:
            converted, right, difference = compare(model.module)
        except NotConvertedError:
            exact = summed_in_parts(model.module)
            if exact is None:
                raise
            converted, right, difference = compare(exact)
        runtime = right if hint == "f32" else compiled(converted)
    except NotConvertedError:
        raise
    except Exception as error:  # whatever a converter raises; PyTorch computes all the same
        raise NotConvertedError(f"it cannot be converted ({type(error).__name__}: {_first_words(error)})") from error
    _store(converted, folder, {"difference": difference, "tolerance": TOLERANCE, "shape": shape})
    return runtime


def _openvino() -> Any:
    """Import the package; it would report its use to a server of its maker, and does without what it reports with."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise NotConvertedError(f"openvino cannot be imported ({error})") from error
    return openvino


def _core() -> Any:
    with _ONE_AT_A_TIME:
        return _the_core()


@functools.cache
def _the_core() -> Any:
    """Return the one Core of this process, for good.

    Each Core gives the thread that makes it a stack for signals of its own, and puts back the one before when it goes.
    Where they do not go in reverse order, that is memory which is no more: the next signal, as of Ctrl-C, is then a
    segmentation fault (OpenVINO 2026.4).
    """
    return _openvino().Core()


def is_whole(folder: Path) -> bool:
    """Say whether a folder of the cache has the files that were put there."""
    try:
        mark = json.loads((folder / MARK).read_text())
        return all(sha256_of(folder / name) == digest for name, digest in mark["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _convert(module: torch.nn.Module, shape: Sequence[int]) -> Any:
    with ThreadPoolExecutor(1) as pool:  # Python handles Ctrl-C in its first thread: amid a conversion it would abort
        return pool.submit(_converted, module, shape).result()


def _converted(module: torch.nn.Module, shape: Sequence[int]) -> Any:
    noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracer's: sizes become constants, and the size is constant
        traced = torch.jit.trace(module, noise, strict=False, check_trace=False)  # `_compared` checks scores
        model = _openvino().convert_model(traced, example_input=noise)
    model.reshape([-1, *shape])  # any number of windows
    if (outputs := len(model.outputs) - isinstance(module, Pooled)) != 1:
        raise NotConvertedError(f"it has {outputs} outputs")
    return model


def lanes_of(threads: int | None) -> int:
    """Return how many windows OpenVINO computes at the same time, with so many threads in all.

    Few operations of a network keep several threads busy on one window; windows need nothing of each other.

    >>> lanes_of(1), lanes_of(2), lanes_of(16)
    (1, 2, 4)
    """
    return min(threads or usable_cores(), MOST_LANES)


def _runtime(compiled: Any, lanes: int, bottleneck: Bottleneck | None = None) -> Runtime:
    """Reuse memory for the scores: new pages would take a quarter of the time of a small network."""
    tensor = _openvino().Tensor
    requests = [compiled.create_infer_request() for _ in range(lanes)]
    shape, is_pooled = compiled.output(0).partial_shape, len(compiled.outputs) > 1
    memory = [torch.empty((0, *(shape[axis].get_length() for axis in range(1, len(shape)))))] * 2

    def run(windows: torch.Tensor) -> torch.Tensor:
        windows = windows.contiguous()
        memory.reverse()  # one may be in use
        if len(memory[0]) < len(windows):
            memory[0] = torch.empty((len(windows), *memory[0].shape[1:]))
        scores = memory[0][: len(windows)]
        for some, theirs in zip(windows.split(lanes), scores.split(lanes), strict=True):
            started = requests[: len(some)]
            with ExitStack() as ended:  # also where one fails or Ctrl-C comes: none may read windows that are let go
                for request, window, score in zip(started, some.split(1), theirs.split(1), strict=True):
                    request.set_input_tensor(tensor(window.numpy(), shared_memory=True))
                    request.set_output_tensor(0, tensor(score.numpy(), shared_memory=True))
                    request.start_async()
                    ended.callback(request.wait)
                for request in started:
                    request.wait()
                    if is_pooled and bottleneck is not None:
                        bottleneck.add(torch.from_numpy(request.get_output_tensor(1).data))
        return scores

    return run


def _compared(runtime: Runtime, network: Runtime, shape: Sequence[int], bottleneck: Bottleneck | None = None) -> float:
    """Return the largest difference on noise and on noise with a ramp, as a share of the largest score."""
    windows = torch.randn((2, *shape), generator=torch.Generator().manual_seed(1))
    windows[1] += torch.linspace(-2, 2, shape[-1])
    with torch.inference_mode():
        expected, own = _watched(network, windows, bottleneck)
        scores, held = _watched(runtime, windows, bottleneck)
    largest = 0.0
    for name, one, other in (("scores", scores, expected), ("bottleneck", held, own)):
        if one.shape != other.shape:
            raise NotConvertedError(f"its {name} have shape {tuple(one.shape)}, not {tuple(other.shape)}")
        if not other.numel():
            continue
        difference = float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))
        if not difference <= TOLERANCE:
            raise NotConvertedError(
                f"its {name} differ from PyTorch's by {difference:.2g} of the largest, more than {TOLERANCE:g}"
            )
        largest = max(largest, difference)
    return largest


def _watched(
    runtime: Runtime, windows: torch.Tensor, bottleneck: Bottleneck | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if bottleneck is None:
        return runtime(windows), torch.empty(0)
    bottleneck.watch()
    return runtime(windows), torch.from_numpy(bottleneck.taken())


def _store(model: Any, folder: Path, facts: dict[str, Any]) -> None:
    """Put a conversion into the cache, whole or not at all; where that cannot be written it is made again next time."""
    with suppress(Exception):  # a cache that cannot be filled costs time, nothing else
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with Partial(folder.parent) as partial:
            made = partial.folder / folder.name
            made.mkdir()
            _openvino().save_model(model, made / MODEL, compress_to_fp16=False)
            digests = {path.name: sha256_of(path) for path in made.iterdir()}
            write_json(made / MARK, {**facts, "sha256": digests})
            partial.publish(folder.name, folder)  # in place of one that is damaged, or that another process made


def _first_words(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200]
