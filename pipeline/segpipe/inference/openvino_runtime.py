"""A network as OpenVINO computes it, or why it does not.

The conversion of a network is made once and kept outside the bundle. It is compared with PyTorch when it is made, on
windows that were not used for tracing, and never used where they differ by more than `TOLERANCE`. That is in float32;
what is computed in, `precision` decides: OpenVINO by itself would take bfloat16 on processors that have it. Scores are
float32 in any case.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from segpipe.common.files import network_cache, sha256_of, write_json
from segpipe.common.partial import Partial
from segpipe.common.processes import usable_cores
from segpipe.inference.bottleneck import Bottleneck, Pooled
from segpipe.inference.long_sums import summed_in_parts
from segpipe.inference.precision import FLOAT32, ChosenPrecision
from segpipe.inference.sliding_window import Runtime
from segpipe.inference.weights import Model

TOLERANCE = 1e-4  # largest difference of a score, as a share of the largest score; of a bottleneck alike
FORMAT = 2  # of the folder
MOST_LANES = 4  # windows at the same time: each holds what its network computes
MODEL, MARK = "model.xml", "converted.json"
_ONE_AT_A_TIME = threading.Lock()


class NotConvertedError(Exception):
    """Why OpenVINO does not compute this network."""


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
    folder = network_cache(model.bundle) / _conversion_key(model, shape, core)
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


def _conversion_key(model: Model, shape: tuple[int, ...], core: Any) -> str:
    """Return the hex digest that names the folder of the conversion for windows of a shape."""
    import monai

    parts = [
        FORMAT,
        sha256_of(model.weights),
        model.config,
        shape,
        _openvino().__version__,
        torch.__version__,
        monai.__version__,
        core.get_property("CPU", "FULL_DEVICE_NAME"),
    ]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


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
