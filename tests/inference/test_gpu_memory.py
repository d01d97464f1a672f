"""Windows are halved where a GPU is out of memory; the error of a GPU is raised here by hand."""

from __future__ import annotations

import pytest
import torch

from segpipe.inference.bottleneck import Bottleneck
from segpipe.inference.gpu_memory import in_parts


class Device:
    """A network that fits for so many windows, and remembers how many it was given."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.asked: list[int] = []

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(windows))
        if len(windows) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return windows * 2


def test_windows_are_halved_until_they_fit_and_what_fits_is_kept() -> None:
    windows, device = torch.arange(7.0).reshape(7, 1, 1, 1, 1), Device(room=2)
    run = in_parts(device)
    torch.testing.assert_close(run(windows), windows * 2, rtol=0, atol=0)
    assert device.asked == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    device.asked.clear()
    torch.testing.assert_close(run(windows[:2]), windows[:2] * 2, rtol=0, atol=0)
    assert device.asked == [1, 1]


def test_what_a_failed_call_held_of_its_first_windows_is_not_taken_twice() -> None:
    bottleneck, calls = Bottleneck(), []

    def network(windows: torch.Tensor) -> torch.Tensor:
        calls.append(len(windows))
        if calls in ([4], [4, 2, 2]):  # the first two windows fit, the next two do not
            raise torch.OutOfMemoryError("CUDA out of memory")
        bottleneck.add(windows[:, :, 0, 0, 0])
        return windows

    bottleneck.watch()
    in_parts(network, bottleneck.attempt)(torch.arange(4.0).reshape(4, 1, 1, 1, 1))
    assert calls == [4, 2, 2, 1, 1, 1, 1]
    assert bottleneck.taken().tolist() == [1.5]


def test_what_fits_is_computed_at_once() -> None:
    device = Device(room=8)
    scores = in_parts(device)(torch.ones(8, 1, 1, 1, 1))
    assert device.asked == [8] and scores.shape == (8, 1, 1, 1, 1)


def test_a_single_window_that_does_not_fit_is_the_end() -> None:
    device = Device(room=0)
    with pytest.raises(torch.OutOfMemoryError):
        in_parts(device)(torch.ones(4, 1, 1, 1, 1))
    assert device.asked == [4, 2, 1]


def test_other_errors_are_not_tried_again() -> None:
    def broken(windows: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        in_parts(broken)(torch.ones(2, 1, 1, 1, 1))
