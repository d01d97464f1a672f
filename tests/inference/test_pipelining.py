"""While one item is worked on the next is made, no more; the order holds, and errors come through."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from segpipe.inference.engine import pipelined


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
