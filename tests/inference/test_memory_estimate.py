"""A case's memory is estimated from its header: the window batch is chosen for it, and what cannot fit is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.common.memory import freed_memory_kept
from segpipe.common.nifti import Header
from segpipe.errors import RefusedError, UsageError
from segpipe.inference import memory_estimate
from segpipe.inference import sliding_window as windows
from segpipe.inference.engine import StreamingEngine
from segpipe.inference.memory_estimate import GIB, Probe, available, estimate_memory, plan
from segpipe.inference.prepare import network_shape, prepare
from segpipe.inference.recipe import parse_bytes
from segpipe.inference.sliding_window import BORDER, WindowGrid, Windowing, stream_blocks
from segpipe.inference.source import Source, read_source
from segpipe.inference.transforms import Preprocessing

STEPS = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0]},
    {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [32, 32, 32]},
    {"_target_": "DivisiblePadd", "keys": "image", "k": 16},
]


def resident() -> int:
    """Bytes that this process holds now, which an estimate counts as well."""
    return int(psutil.Process().memory_info().rss)


CT = np.diag([-0.78, -0.78, 1.5, 1.0])


def ct(slices: int) -> Header:
    return Header(Path("ct"), (512, 512, slices), CT, (0.78, 0.78, 1.5), "int16")


@settings(max_examples=20)
@given(
    size=st.tuples(*[st.integers(3, 16)] * 3),
    roi=st.tuples(*[st.integers(4, 8)] * 3),
    overlap=st.sampled_from([0, 0.25, 0.5, 0.6]),
    order=st.permutations([0, 1, 2]),
    strips=st.integers(1, 3),
)
def test_the_open_blocks_are_those_that_are_open(size: Any, roi: Any, overlap: float, order: Any, strips: int) -> None:
    grid, most = replace(WindowGrid.place(size, roi, [overlap] * 3, tuple(order)), strips=strips), 0

    class Watched(windows._OpenBlocks):
        def finish(self, *arguments: Any) -> Any:
            nonlocal most
            most = max(most, sum(counts.numel() for _, counts in self._open.values()))
            yield from super().finish(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_OpenBlocks", Watched)
        blocks = stream_blocks(torch.zeros(1, 1, *size), grid, torch.ones(roi), lambda x, _: x, border=BORDER)
        largest = max(block.scores.numel() for block in blocks)
    assert grid.block_voxels() == (largest, most)


def test_the_input_is_as_large_as_estimated(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 9, (30, 50, 70), np.int16), CT)
    nib.save(image, tmp_path / "a.nii")
    source = read_source([tmp_path / "a.nii"], 1)
    config = Preprocessing.parse(STEPS)
    assert network_shape(source.header, config) == tuple(prepare(source, config)[0].shape[1:])


def test_memory_grows_little_with_the_slices() -> None:
    config, windowing, probe = (Preprocessing.parse(STEPS[:4]), Windowing((96, 96, 96), 0.5, 1), Probe(14, GIB // 4))
    few, many = (estimate_memory([ct(slices)], config, windowing, probe) for slices in (200, 800))
    assert (many - few) / (512 * 512 * 600) <= 8
    many_classes = Probe(105, GIB * 4 // 5)
    assert estimate_memory([ct(600)], config, windowing, many_classes) < 6 * GIB + resident()
    in_strips = replace(windowing, strips=2, overlapped=False)  # what `plan` chooses where memory is short
    assert estimate_memory([ct(600)], config, in_strips, many_classes) < 3.4 * GIB + resident()


def test_the_window_batch_is_chosen_for_the_memory() -> None:
    config, probe = Preprocessing.parse(STEPS[:4]), Probe(14, GIB)
    windowing = Windowing((96, 96, 96), 0.5, 8)
    need = [estimate_memory([ct(60)], config, Windowing((96, 96, 96), 0.5, batch), probe) for batch in (1, 2, 4, 8)]
    assert need == sorted(need)
    for limit, expected in ((need[2] + GIB // 2, 4), (need[0] + GIB // 2, 1)):
        chosen, peak = plan([ct(60)], config, windowing, probe, limit)
        assert chosen.batch == expected
        assert peak <= limit
    with pytest.raises(RefusedError) as caught:
        plan([ct(60)], config, windowing, probe, GIB // 2)
    assert "GiB" in str(caught.value.found)
    assert "0.50 GiB (--max-memory)" in str(caught.value.expected)


def test_the_scores_of_all_members_count_and_are_named() -> None:
    config, classes = Preprocessing.parse(STEPS[:4]), 14
    single = estimate_memory([ct(400)], config, Windowing((96, 96, 96), 0.5, 1), Probe(classes, GIB // 4))
    together = Windowing((96, 96, 96), 0.5, 1, members=5)
    probe = Probe(5 * classes, GIB // 4)
    ensemble = estimate_memory([ct(400)], config, together, probe)
    _, opened = together.grid(network_shape(ct(400), config)).block_voxels()
    assert ensemble - single > 4 * 4 * classes * opened
    whole = 4 * 5 * classes * int(np.prod(network_shape(ct(400), config)))
    assert ensemble - resident() < 0.6 * whole  # what stock MONAI holds of the members' scores alone
    with pytest.raises(RefusedError) as caught:
        plan([ct(400)], config, together, probe, GIB // 2)
    assert "for 14 classes of 5 networks" in str(caught.value.found)


def test_what_is_free_is_the_limit_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available() > 0
    monkeypatch.setattr(memory_estimate, "available", lambda: 10)
    with pytest.raises(RefusedError, match="more memory") as caught:
        plan([ct(20)], Preprocessing.parse(STEPS[:4]), Windowing((16, 16, 16)), Probe(2, 10), None)
    assert "free here" in str(caught.value.expected)


def test_a_window_is_measured() -> None:
    network = torch.nn.Conv3d(1, 5, 3, padding=1)
    probe = Probe.measure(network, 1, (24, 24, 24), torch.device("cpu"))
    assert probe.classes == 5
    assert probe.window_bytes >= 5 * 24**3 * 4


@pytest.mark.parametrize(
    ("text", "amount"), [("4G", 4 * GIB), ("1500M", 1500 * 2**20), ("2.5GiB", 5 * GIB // 2), ("512 kb", 2**19)]
)
def test_amounts_of_memory(text: str, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "0", "-1G", "4X", "many"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(UsageError, match="amount of memory"):
        parse_bytes(text)


def test_memory_that_is_kept_counts_where_a_run_takes_it_again() -> None:
    def runtime(batch: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            torch.zeros(25 * 2**20).add_(1)  # 100 MiB
        return batch

    with freed_memory_kept():
        probe = Probe.measure(runtime, 1, (8, 8, 8), torch.device("cpu"))
    assert probe.window_bytes > 90 * 2**20


def test_few_windows_are_computed_at_once_on_the_cpu() -> None:
    for size, lanes, batch in ((96, 1, 1), (48, 1, 3), (16, 1, 4), (96, 3, 3), (48, 2, 3), (16, 2, 4)):
        windowing = Windowing((size, size, size), 0.5, 4)
        engine = StreamingEngine(
            Preprocessing.parse(STEPS[:4]),
            windowing,
            lambda x: x.repeat(1, 2, 1, 1, 1),
            torch.device("cpu"),
            lanes=lanes,
        )
        engine.probe = Probe(2, 1)
        engine.read(Source(ct(20), np.zeros((1, 512, 512, 20), np.int16)))
        assert engine._fitting.batch == batch
        engine.probe = Probe(2, available() // 3)
        engine.read(Source(ct(20), np.zeros((1, 512, 512, 20), np.int16)))
        assert engine._fitting.batch < 3, "windows at the same time give way where memory is short"


def test_what_a_second_window_at_the_same_time_takes_is_measured() -> None:
    given: list[int] = []

    def runtime(windows: torch.Tensor) -> torch.Tensor:
        given.append(len(windows))
        own = torch.ones(30_000_000 if len(windows) > 1 else 1)
        return windows + own.sum() * 0

    alone, both = (Probe.measure(runtime, 1, (8, 8, 8), torch.device("cpu"), lanes) for lanes in (1, 2))
    assert given == [1, 1, 1, 1, 2]
    assert both.window_bytes > alone.window_bytes + 90_000_000
