"""One case is read before its turn where memory has room for it, after the one that is computed was read."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from segpipe.inference import segmenter as module
from segpipe.inference.segmenter import Prefetcher
from tiny_bundle import write_scan

PEAK = 1000


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write_scan(tmp_path / "a.nii.gz")  # 1080 voxels of 2 bytes


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "allowed_bytes", lambda limit: 10_000 if limit is None else limit)


def under_way(max_memory: int | None = None) -> Prefetcher:
    prefetcher = Prefetcher(1, max_memory)
    prefetcher.expect()
    prefetcher.begin(PEAK)
    return prefetcher


def test_the_case_of_the_name_is_given_once(scan: Path) -> None:
    prefetcher = under_way()
    prefetcher.read("a", lambda: [scan], None)
    read = prefetcher.take("a")
    assert read is not None and read.source.array.shape == (1, 12, 10, 9) and len(read.headers) == 1
    assert prefetcher.take("a") is None
    prefetcher.read("a", lambda: [scan], None)
    assert prefetcher.take("b") is None and prefetcher.take("a") is None


@pytest.mark.parametrize(
    ("max_memory", "most_bytes", "fits"),
    [(None, None, True), (3400, None, True), (3300, None, False), (None, 3300, False), (3400, 3400, True)],
)
def test_only_what_fits_beside_the_other_is_read(
    scan: Path, max_memory: int | None, most_bytes: int | None, fits: bool
) -> None:
    prefetcher = under_way(max_memory)
    prefetcher.read("a", lambda: [scan], most_bytes)
    assert (prefetcher.take("a") is not None) is fits


def test_what_cannot_be_read_is_left_to_its_own_turn(tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"not an image")
    prefetcher = under_way()
    prefetcher.read("a", lambda: [tmp_path / "broken.nii.gz"], None)
    assert prefetcher.take("a") is None


def test_it_waits_until_the_other_was_read_or_has_ended(scan: Path) -> None:
    for go_on in (lambda prefetcher: prefetcher.begin(PEAK), lambda prefetcher: prefetcher.end()):
        prefetcher = Prefetcher(1, None)
        prefetcher.expect()
        reader = threading.Thread(target=prefetcher.read, args=("a", lambda: [scan], None), daemon=True)
        reader.start()
        reader.join(0.05)
        assert reader.is_alive()
        go_on(prefetcher)
        reader.join(20)
        assert not reader.is_alive() and prefetcher.take("a") is not None
