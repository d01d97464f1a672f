"""A prepared case as a file: what it gives back, of which part, and what it says when it was damaged."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.errors import DataError, UsageError
from segpipe.store.case_file import CaseFile, Volume, write_case

AFFINE = np.array([[0.7, 0, 0.1, -3], [0, 0.7, 0, 1 / 3], [0, 0, 2.5, 9], [0, 0, 0, 1]])


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (np.cumsum(rng.normal(0, 0.1, shape), axis=-1) + rng.normal(0, 3, (shape[0], 1, 1, 1))).astype(np.float32)


def oracle(values: np.ndarray) -> np.ndarray:
    """The nearest of evenly spaced levels, by a search among them and not by a division."""
    channels = []
    for channel in values.astype(np.float64):
        low, high = channel.min(), channel.max()
        step = np.float32(max((high - low) / 65535, channel.std() / 2048))
        levels = np.float32(low) + np.arange(65536, dtype=np.float32) * step
        right = np.clip(np.searchsorted(levels, channel), 1, 65535)
        nearer = np.abs(levels[right] - channel) < np.abs(levels[right - 1] - channel)
        channels.append(levels[np.where(nearer, right, right - 1)])
    return np.stack(channels)


def test_images_are_rounded_to_their_deviation_and_labels_are_not(tmp_path: Path) -> None:
    image, label = smooth((2, 40, 33, 50)), np.zeros((1, 40, 33, 50), np.float32)
    label[0, 5:20, 3:9, 30:41], label[0, 30, 30, 49] = 1, 255
    size = write_case(tmp_path / "a.case", {"image": Volume(image, AFFINE), "label": Volume(label)}, {"case_id": "a"})
    case = CaseFile(tmp_path / "a.case")
    assert size == (tmp_path / "a.case").stat().st_size < image.nbytes / 2
    assert case.facts == {"case_id": "a"} and case.shapes == {"image": image.shape, "label": label.shape}
    assert np.array_equal(case.affines["image"], AFFINE) and case.affines["label"] is None
    read = case.read("image")
    assert read.dtype == np.float32
    nearest = oracle(image)
    assert (np.abs(read - nearest) < 2e-6).mean() > 0.99  # but for ties, where either level is as near
    assert (np.abs(read - image) - np.abs(nearest - image)).max() < 2e-6
    for channel, rounded in zip(image, read, strict=True):
        assert np.abs(channel - rounded).max() <= channel.std() / 4096 * 1.01
    assert np.array_equal(case.read("label"), label) and case.read("label").dtype == np.float32


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 70)] * 3), st.data())
def test_a_part_is_that_part_of_the_whole(tmp_path_factory: pytest.TempPathFactory, shape, data) -> None:
    path = tmp_path_factory.mktemp("case") / "a.case"
    write_case(path, {"image": Volume(smooth((1, *shape)))}, {})
    case = CaseFile(path)
    ends = [sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
    box = tuple(slice(*pair) for pair in ends)
    assert np.array_equal(case.read("image", box), case.read("image")[:, *box])


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.arange(-1000, 3000), np.int16),
        (np.arange(-1000, 3000), np.float32),
        ([40_000, 105_535], np.float64),
        ([-(2**24) + 1, -(2**24) + 2], np.float32),
        ([0.1], np.float32),
        ([2**40], np.float64),
        ([250, 255], np.uint8),
    ],
)
def test_whole_numbers_and_constants_come_back_as_they_were(values, dtype, tmp_path: Path) -> None:
    volume = np.array(values, dtype).reshape(1, 1, 1, -1)
    write_case(tmp_path / "a.case", {"image": Volume(volume)}, {})
    read = CaseFile(tmp_path / "a.case").read("image")
    assert read.dtype == dtype and np.array_equal(read, volume)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(wrong: float, tmp_path: Path) -> None:
    volume = np.array([1, wrong], np.float32).reshape(1, 1, 1, 2)
    with pytest.raises(DataError, match="NaN or infinite"):
        write_case(tmp_path / "a.case", {"image": Volume(volume)}, {})
    assert not (tmp_path / "a.case").exists()


def test_a_case_that_was_cut_or_changed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.case"
    label = np.zeros((1, 8, 8, 8), np.float32)
    label[0, 2:4] = 1
    write_case(path, {"image": Volume(smooth((1, 8, 8, 8))), "label": Volume(label)}, {"case_id": "a"})
    whole = path.read_bytes()
    for cut in (0, 5, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="damaged"):
            CaseFile(path)
    noticed = 0
    for place, flip in itertools.product(range(8, len(whole), 17), (1, 128)):
        changed = bytearray(whole)
        changed[place] ^= flip
        path.write_bytes(changed)
        try:
            case = CaseFile(path)
            read, runs = {key: case.read(key) for key in ("image", "label")}, case.runs()
        except DataError:
            noticed += 1
            continue
        path.write_bytes(whole)
        sound = CaseFile(path)  # a bit that zlib does not need
        assert all(np.array_equal(read[key], sound.read(key)) for key in read)
        expected = sound.runs()
        assert runs is not None and expected is not None and np.array_equal(runs.starts, expected.starts)
    assert noticed > 50


def test_a_case_that_was_removed_is_told(tmp_path: Path) -> None:
    write_case(tmp_path / "a.case", {"label": Volume(np.ones((1, 2, 2, 2), np.float32))}, {})
    case = CaseFile(tmp_path / "a.case")
    case.path.unlink()
    for reading in (lambda: case.read("label"), case.runs):
        with pytest.raises(UsageError, match="was removed") as caught:
            reading()
        assert "--resume" in str(caught.value.hint)


@pytest.mark.parametrize("values", [[0, 1, 1, 2], [1, 1, 1, 1], [3, 3, 5, 3], [255, 254, 255, 0]])
def test_the_places_of_labels_are_kept_also_where_no_voxel_is_background(values: list[int], tmp_path: Path) -> None:
    write_case(tmp_path / "a.case", {"label": Volume(np.array(values, np.float32).reshape(1, 2, 1, 2))}, {})
    runs = CaseFile(tmp_path / "a.case").runs()
    assert runs is not None and runs.shape == (2, 1, 2)
    for value in range(256):
        places = runs.of_label(value)
        assert [int(places[rank]) for rank in range(len(places))] == [i for i, v in enumerate(values) if v == value]


def test_a_map_of_more_labels_than_bytes_has_no_runs(tmp_path: Path) -> None:
    write_case(tmp_path / "a.case", {"label": Volume(np.array([0, 256.0]).reshape(1, 1, 1, 2))}, {})
    assert CaseFile(tmp_path / "a.case").runs() is None
