"""OpenVINO computes what PyTorch computes, or says why it does not; its conversions are kept, whole or not at all."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import UNet

from segpipe.common.files import cache_folder
from segpipe.inference.openvino_runtime import MARK, TOLERANCE, NotConvertedError, is_whole, openvino_runtime
from segpipe.inference.runtimes import torch_runtime
from segpipe.inference.weights import Model

openvino = pytest.importorskip("openvino")
SHAPE = (1, 16, 16, 16)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    torch.manual_seed(1)
    return UNet(3, 1, 3, (4, 8), (2,), num_res_units=1).eval()


@pytest.fixture
def model(module: torch.nn.Module, tmp_path: Path) -> Model:
    torch.save(module.state_dict(), tmp_path / "model.pt")
    return Model(module, str(tmp_path / "model.pt"), "{}")


def refuse(*_: Any, **__: Any) -> None:
    raise RuntimeError("this operation is not known\nand a long story")


def test_any_number_of_windows_gives_the_scores_of_torch(module: torch.nn.Module, model: Model) -> None:
    runtime = openvino_runtime(torch_runtime(module), model, SHAPE, 1)
    for count in (3, 1, 2):
        windows = torch.randn(count, *SHAPE)
        with torch.inference_mode():
            expected = module(windows)
            found = runtime(windows).clone()
        again = runtime(windows.flip(2))  # in the same memory
        assert not torch.equal(found, again)
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


class SignalStack(ctypes.Structure):
    """``stack_t`` of sigaltstack(2)."""

    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> int | None:
    """Where in memory this thread handles signals."""
    found = SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.place


def test_a_network_is_converted_where_no_signal_is_handled(
    module: torch.nn.Module, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of Python, as of Ctrl-C, that reaches OpenVINO's converter aborts the process."""
    threads, convert = [], openvino.convert_model

    def watched(*given: Any, **named: Any) -> Any:
        threads.append(threading.current_thread())
        return convert(*given, **named)

    monkeypatch.setattr(openvino, "convert_model", watched)
    openvino_runtime(torch_runtime(module), model, SHAPE, 1)
    assert threads and threading.main_thread() not in threads


@pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack(2) is asked")
def test_no_network_leaves_signals_without_a_stack(module: torch.nn.Module, model: Model) -> None:
    """Each Core of OpenVINO sets one, and puts back that of a Core that went before it: Ctrl-C was then a crash."""
    networks = [openvino_runtime(torch_runtime(module), model, SHAPE, 1)]
    stack = signal_stack()
    networks.append(openvino_runtime(torch_runtime(module), model, SHAPE, 1))
    assert signal_stack() == stack
    while networks:
        networks.pop(0)
        gc.collect()
        assert signal_stack() == stack


def test_several_windows_at_the_same_time_have_the_scores_that_each_has_alone(
    module: torch.nn.Module, model: Model
) -> None:
    one, three = (openvino_runtime(torch_runtime(module), model, SHAPE, threads) for threads in (1, 3))
    before = torch.zeros(0)
    for count in (7, 1, 3, 2):
        windows = torch.randn(count, *SHAPE)
        expected = one(windows).clone()
        kept, found = before.clone(), three(windows)
        assert torch.equal(found, expected)
        assert torch.equal(before, kept), "scores hold while the next are computed"
        before = found


class Interrupted:
    """A compiled model of OpenVINO: who waits for one of its requests for the first time is interrupted, as by Ctrl-C.

    Attributes:
        running: requests that were started, and not waited for since.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled, self.running, self.comes = compiled, set(), True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compiled, name)

    def create_infer_request(self) -> Any:
        return InterruptedRequest(self, self.compiled.create_infer_request())


class InterruptedRequest:
    def __init__(self, model: Interrupted, request: Any) -> None:
        self.model, self.request = model, request

    def __getattr__(self, name: str) -> Any:
        return getattr(self.request, name)

    def start_async(self) -> None:
        self.model.running.add(self)
        self.request.start_async()

    def wait(self) -> None:
        if self.model.comes:
            self.model.comes = False
            raise KeyboardInterrupt
        self.request.wait()
        self.model.running.discard(self)


def test_no_window_is_read_any_more_after_ctrl_c(
    module: torch.nn.Module, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows, made = torch.randn(3, *SHAPE), []
    expected = openvino_runtime(torch_runtime(module), model, SHAPE, 3)(windows).clone()
    compile_model = openvino.Core.compile_model

    def compiled(*given: Any) -> Interrupted:
        made.append(Interrupted(compile_model(*given)))
        return made[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", compiled)
    runtime = openvino_runtime(torch_runtime(module), model, SHAPE, 3)
    with pytest.raises(KeyboardInterrupt):
        runtime(windows)
    assert not made[0].running
    assert torch.equal(runtime(windows), expected)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux tells on which cores a thread may run")
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_may_run_on_every_core(module: torch.nn.Module, model: Model, threads: int) -> None:
    runtime, cores, ended = openvino_runtime(torch_runtime(module), model, SHAPE, threads), set(), threading.Event()

    def look() -> None:
        while not ended.is_set():
            for task in Path("/proc/self/task").iterdir():
                with suppress(ProcessLookupError):
                    cores.add(frozenset(os.sched_getaffinity(int(task.name))))

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        for _ in range(50):
            runtime(torch.randn(2, *SHAPE))
        ended.set()
        looking.result()
    # several processes that each kept to the first core would share it, and leave the others idle
    assert cores == {frozenset(os.sched_getaffinity(os.getppid()))}


def test_a_conversion_is_made_once(
    module: torch.nn.Module, model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = torch_runtime(module)
    first = openvino_runtime(network, model, SHAPE, 1)
    (folder,) = cache.iterdir()
    mark = json.loads((folder / MARK).read_text())
    assert set(mark["sha256"]) == {"model.xml", "model.bin"}
    assert 0 <= mark["difference"] <= mark["tolerance"] == TOLERANCE
    monkeypatch.setattr(openvino, "convert_model", refuse)
    windows = torch.randn(1, *SHAPE)
    assert torch.equal(openvino_runtime(network, model, SHAPE, 1)(windows), first(windows))
    other = Model(module, model.weights, '{"activation": "other"}')
    with pytest.raises(NotConvertedError, match=r"RuntimeError: this operation is not known"):
        openvino_runtime(network, other, SHAPE, 1)
    assert list(cache.iterdir()) == [folder]


def test_a_damaged_conversion_is_made_again(module: torch.nn.Module, model: Model, cache: Path) -> None:
    network = torch_runtime(module)
    openvino_runtime(network, model, SHAPE, 1)
    (folder,) = cache.iterdir()
    whole = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(whole[:-100])
    openvino_runtime(network, model, SHAPE, 1)
    assert (folder / "model.bin").read_bytes() == whole
    assert list(cache.iterdir()) == [folder]


def test_scores_that_differ_are_not_taken(module: torch.nn.Module, model: Model, cache: Path) -> None:
    def shifted(windows: torch.Tensor) -> torch.Tensor:
        return module(windows) + 1e-3

    with pytest.raises(NotConvertedError, match="differ"):
        openvino_runtime(shifted, model, SHAPE, 1)
    with pytest.raises(NotConvertedError, match="differ"):
        openvino_runtime(lambda windows: module(windows) * torch.nan, model, SHAPE, 1)
    assert not cache.exists()


def test_a_conversion_that_fails_half_way_leaves_nothing(
    module: torch.nn.Module, model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_: Any, path: Path, **__: Any) -> None:
        path.write_text("<net")
        raise RuntimeError("no space left")

    windows = torch.randn(1, *SHAPE)
    with torch.inference_mode():
        expected = module(windows)
    with monkeypatch.context() as patch:
        patch.setattr(openvino, "save_model", half)
        found = openvino_runtime(torch_runtime(module), model, SHAPE, 1)(windows)
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
    assert list(cache.iterdir()) == []
    openvino_runtime(torch_runtime(module), model, SHAPE, 1)
    (folder,) = cache.iterdir()
    assert is_whole(folder)


def test_a_mark_that_cannot_be_read_is_no_conversion(module: torch.nn.Module, model: Model, cache: Path) -> None:
    openvino_runtime(torch_runtime(module), model, SHAPE, 1)
    (folder,) = cache.iterdir()
    for text in ("", "{", "[]", '{"sha256": {"model.bin": "00"}}', '{"sha256": {"gone.bin": "00"}}'):
        (folder / MARK).write_text(text)
        assert not is_whole(folder)
    openvino_runtime(torch_runtime(module), model, SHAPE, 1)
    assert is_whole(folder) and list(cache.iterdir()) == [folder]


def test_a_cache_that_cannot_be_written_costs_time_alone(
    module: torch.nn.Module, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "file"))
    assert openvino_runtime(torch_runtime(module), model, SHAPE, 1)(torch.zeros(1, *SHAPE)).shape[1] == 3


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SEGPIPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "segpipe"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, as the specification says
    assert cache_folder() == Path.home() / ".cache" / "segpipe"
