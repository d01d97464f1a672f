"""While one item is worked on the next is made, no more; the order holds, and errors come through."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from segpipe.common.nifti import Header
from segpipe.errors import DataError
from segpipe.inference.engine import pipelined, segment_source
from segpipe.inference.sliding_window import WindowGrid, Windowing, one_ahead, stream_blocks
from segpipe.inference.source import Source
from segpipe.inference.transforms import Preprocessing


def test_one_is_worked_on_while_the_next_is_made() -> None:
    made: list[int] = []
    worked: list[int] = []
    most, go = 0, threading.Event()

    def items() -> Iterator[int]:
        nonlocal most
        for number in range(5):
            made.append(number)
            most = max(most, len(made) - len(worked))
            if number == 1:
                go.set()  # the work on 0 waits until 1 is being made
            yield number

    def work(number: int) -> None:
        assert go.wait(30)
        assert torch.is_inference_mode_enabled()
        worked.append(number)

    waited, seconds = pipelined(items(), work)
    assert made == worked == [0, 1, 2, 3, 4]
    assert most <= 2 + 1  # one at work, one waiting to be handed over, one being made at the most
    assert waited >= 0
    assert seconds >= 0
    assert pipelined([], worked.append)[1] == 0


def test_errors_of_either_side_come_through() -> None:
    def work(number: int) -> None:
        if number == 2:
            raise KeyError(number)

    with pytest.raises(KeyError):
        pipelined(range(9), work)

    def items() -> Iterator[int]:
        yield 0
        raise OSError

    with pytest.raises(OSError):
        pipelined(items(), work)


def test_the_next_windows_are_computed_while_scores_are_summed() -> None:
    started, threads = [threading.Event() for _ in range(4)], set()

    def make(number: int) -> torch.Tensor:
        assert torch.is_inference_mode_enabled()
        threads.add(torch.get_num_threads())
        started[number].set()
        return torch.tensor(number)

    for number, made in one_ahead(make, range(4), 3):
        assert made == number
        assert started[min(number + 1, 3)].wait(30)
        assert not any(event.is_set() for event in started[number + 2 :]), "no more than one ahead"
    assert threads == {3}
    assert list(one_ahead(make, [], 1)) == []


def test_what_fails_ahead_fails_here() -> None:
    def make(number: int) -> torch.Tensor:
        if number == 1:
            raise KeyError(number)
        return torch.tensor(number)

    with pytest.raises(KeyError):
        list(one_ahead(make, range(3), 1))


@pytest.mark.parametrize("batch", [1, 3])
def test_blocks_are_the_same_with_windows_computed_ahead(batch: int) -> None:
    volume, grid = torch.randn(1, 1, 20, 17, 12), WindowGrid.place((20, 17, 12), (8, 8, 8), (0.5, 0.5, 0.5))
    weights = torch.rand(8, 8, 8)
    with torch.inference_mode():
        plain, ahead = (
            list(stream_blocks(volume, grid, weights, lambda windows, _: windows.sin(), batch=batch, ahead=threads))
            for threads in (0, 1)
        )
    assert len(plain) == len(ahead) > 4
    for one, other in zip(plain, ahead, strict=True):
        assert (one.image, one.start) == (other.image, other.start)
        assert torch.equal(one.scores, other.scores)


def test_the_work_takes_the_threads_that_were_said_here_whatever_others_say() -> None:
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(3)
    try:
        pipelined(one_ahead(torch.tensor, range(3), 2), lambda _: seen.add(torch.get_num_threads()))
    finally:
        torch.set_num_threads(before)
    assert seen == {3}


class Slow:
    """A network that takes its time."""

    def __init__(self, channels: int) -> None:
        self.channels, self.calls, self.running = channels, 0, 0

    def __call__(self, windows: torch.Tensor, _places: object = None) -> torch.Tensor:
        self.calls += 1
        self.running += 1
        if self.calls > 1:
            time.sleep(0.3)
        self.running -= 1
        return windows.expand(-1, self.channels, -1, -1, -1)

    def is_at_work(self) -> bool:
        """Whether a window is being computed, or the next one begins soon."""
        calls = self.calls
        time.sleep(0.1)
        return self.running > 0 or self.calls > calls


def test_no_window_is_computed_any_more_once_a_block_could_not_be_restored() -> None:
    """The next case would be computed with the same network, at the same time."""
    header = Header(Path("case"), (32, 8, 8), np.eye(4), (1.0, 1.0, 1.0), "float32")
    source, network = Source(header, np.random.default_rng(0).random((1, 32, 8, 8), np.float32)), Slow(9)
    windowing = Windowing((8, 8, 8), activation="sigmoid")
    with torch.inference_mode(), pytest.raises(DataError, match="too many labels") as caught:
        segment_source(source, Preprocessing(()), windowing, network, torch.device("cpu"), {})
    assert caught and not network.is_at_work()


def test_no_window_is_computed_any_more_once_scores_could_not_be_summed() -> None:
    network, volume, grid = Slow(1), torch.zeros(1, 1, 32, 8, 8), WindowGrid.place((32, 8, 8), (8, 8, 8), (0, 0, 0))
    with torch.inference_mode(), pytest.raises(RuntimeError) as caught:
        list(stream_blocks(volume, grid, torch.ones(8, 8, 7), network, ahead=1))
    assert caught and not network.is_at_work()
