"""One prepared case as a file: volumes in compressed chunks, of which a patch reads the few that it lies in.

    MAGIC | chunks | runs of the label map | header (JSON) | length of the header, its CRC-32, MAGIC

A chunk has 32 voxels along each axis, fewer at the far ends, of all channels. Its values are whole numbers of 8 or 16
bits, ``offset + step * number``: exact where the volume holds whole numbers within 65,535 of each other, else rounded
to 1/2048 of the channel's deviation, or to 1/65,535 of its range where that is coarser. 16 bits are stored as
differences along the last axis, low bytes before high ones, which zlib takes to about a third of float32. A chunk that
was damaged is told by zlib's check sum. Nothing of it is a pickle.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from segpipe.common.files import require_space, write_whole
from segpipe.errors import DataError, UsageError
from segpipe.store.label_runs import LabelRuns

FORMAT = 1
MAGIC = b"SEGCASE1"
TRAILER = struct.Struct("<QI8s")
CHUNK = 32  # voxels along each axis
LEVELS = 65_535  # steps of 16 bits
STEPS_A_DEVIATION = 2048
EXACT = 2**24  # float32 holds every whole number below
LEVEL = 1  # of igzip: two thirds of the time of its best, for 2 % more
LABEL = "label"  # MONAI's key of the truth
UNREADABLE = (cast(type[Exception], isal_zlib.error), ValueError)
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Volume:
    """A volume (C, X, Y, Z), and where its voxels lie: voxel to mm, 4x4; None where nobody said."""

    values: NDArray[Any]
    affine: NDArray[np.float64] | None = None


def write_case(path: Path, volumes: Mapping[str, Volume], facts: Mapping[str, Any]) -> int:
    """Write a case, whole or not at all; return its bytes.

    Args:
        path: of the file.
        volumes: by key; of ``label``, the places of its labels are kept as well.
        facts: what else the case has, plain values.

    Raises:
        DataError: a volume has NaN or infinite voxels.
        UsageError: there is no space for it, or it cannot be written.
    """
    parts, offset = [MAGIC], len(MAGIC)
    header: dict[str, Any] = {"format": FORMAT, "volumes": {}, "runs": None, "facts": dict(facts)}

    def add(part: bytes) -> int:
        nonlocal offset
        parts.append(part)
        offset += len(part)
        return offset

    for key, volume in volumes.items():
        numbers, offsets, steps = _as_numbers(volume.values)
        ends = [offset, *(add(_packed(numbers[:, *box])) for box in _boxes(numbers.shape[1:]))]
        header["volumes"][key] = {
            "shape": list(numbers.shape),
            "dtype": volume.values.dtype.name,
            "stored": numbers.dtype.name,
            "offset": offsets,
            "step": steps,
            "affine": None if volume.affine is None else np.asarray(volume.affine, np.float64).tolist(),
            "ends": ends,
        }
        labels = _as_labels(numbers, offsets[0], steps[0]) if key == LABEL and len(numbers) == 1 else None
        if labels is not None:
            runs = LabelRuns.of(labels)
            rows = np.stack([np.diff(runs.starts, prepend=0), runs.lengths, runs.values]).astype("<u4")
            header["runs"] = [offset, add(isal_zlib.compress(rows.tobytes(), LEVEL))]
    text = json.dumps(header, allow_nan=False).encode()
    add(text)
    add(TRAILER.pack(len(text), zlib.crc32(text), MAGIC))
    require_space(path.parent, offset)
    with write_whole(path) as stream:
        for part in parts:
            stream.write(part)
    return offset


class CaseFile:
    """A case that was written; the header is read at once, voxels when they are asked for.

    Attributes:
        path: of the file.
        facts: what the case has beside its volumes.
        shapes: (C, X, Y, Z) of each volume.
        affines: of each volume, voxel to mm, or None.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is not whole, or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            header = self._read_header()
            if header["format"] != FORMAT:
                raise ValueError("another format")
            self.facts: dict[str, Any] = header["facts"]
            self._runs: list[int] | None = header["runs"]
            self._volumes: dict[str, Any] = header["volumes"]
            self.shapes = {key: tuple(map(int, facts["shape"])) for key, facts in self._volumes.items()}
            self._ends = {key: np.array(facts.pop("ends"), np.int64) for key, facts in self._volumes.items()}
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise _damaged(path) from error
        self.affines = {
            key: None if facts["affine"] is None else np.array(facts["affine"], np.float64)
            for key, facts in self._volumes.items()
        }

    def _read_header(self) -> dict[str, Any]:
        with self.path.open("rb") as stream:
            end = stream.seek(0, 2) - TRAILER.size
            if end < len(MAGIC):
                raise ValueError("too short")
            stream.seek(end)
            length, check, magic = TRAILER.unpack(stream.read(TRAILER.size))
            if magic != MAGIC or length > end:
                raise ValueError("no end")
            stream.seek(end - length)
            text = stream.read(length)
        if zlib.crc32(text) != check:
            raise ValueError("changed")
        header: dict[str, Any] = json.loads(text)
        return header

    def read(self, key: str, box: Box | None = None) -> NDArray[Any]:
        """Return a part of a volume (C, x, y, z), of the type that it had.

        Args:
            key: of the volume.
            box: where it begins and ends along each axis, within the volume; None for all of it.

        Raises:
            DataError: the file was damaged.
            UsageError: it was removed.
        """
        facts, shape = self._volumes[key], self.shapes[key]
        box = box or (slice(0, shape[1]), slice(0, shape[2]), slice(0, shape[3]))
        numbers = np.empty((shape[0], *(part.stop - part.start for part in box)), facts["stored"])
        grid = [-(-size // CHUNK) for size in shape[1:]]
        touched = [range(part.start // CHUNK, -(-part.stop // CHUNK)) for part in box]
        try:
            with self.path.open("rb") as stream:
                for place in itertools.product(*touched):
                    index = int(np.ravel_multi_index(place, grid))
                    begin, end = (int(value) for value in self._ends[key][index : index + 2])
                    stream.seek(begin)
                    lows = [axis * CHUNK for axis in place]
                    size = [min(CHUNK, whole - low) for low, whole in zip(lows, shape[1:], strict=True)]
                    chunk = _unpacked(stream.read(end - begin), (shape[0], *size), facts["stored"])
                    into, out_of = zip(*map(_common, box, lows, size), strict=True)
                    numbers[:, *into] = chunk[:, *out_of]
        except FileNotFoundError as error:
            raise _removed(self.path) from error
        except UNREADABLE as error:
            raise _damaged(self.path) from error
        return _as_values(numbers, facts)

    def runs(self) -> LabelRuns | None:
        """Return where the labels lie; None where the case has no map of labels 0 to 255.

        Raises:
            DataError: the file was damaged.
            UsageError: it was removed.
        """
        if self._runs is None:
            return None
        begin, end = self._runs
        try:
            with self.path.open("rb") as stream:
                stream.seek(begin)
                rows = np.frombuffer(isal_zlib.decompress(stream.read(end - begin)), "<u4").reshape(3, -1)
        except FileNotFoundError as error:
            raise _removed(self.path) from error
        except UNREADABLE as error:
            raise _damaged(self.path) from error
        x, y, z = self.shapes[LABEL][1:]
        starts, lengths = np.cumsum(rows[0], dtype=np.int64), rows[1].astype(np.int64)
        return LabelRuns((x, y, z), starts, lengths, rows[2].astype(np.uint8))


def _as_numbers(values: NDArray[Any]) -> tuple[NDArray[Any], list[float], list[float]]:
    """Return the whole numbers of a volume, with offset and step of each channel."""
    scales = [_scale(channel) for channel in values]
    small = all(step == 1 and high - low <= 255 for low, high, step in scales)
    numbers = np.empty(values.shape, np.uint8 if small else np.uint16)
    for channel, into, (low, _, step) in zip(values, numbers, scales, strict=True):
        for part, target in zip(channel, into, strict=True):  # slice by slice: no second volume in float64
            target[...] = np.clip(np.rint((part.astype(np.float64) - low) / step), 0, LEVELS)
    return numbers, [low for low, _, _ in scales], [step for _, _, step in scales]


def _scale(channel: NDArray[Any]) -> tuple[float, float, float]:
    """Return lowest value, highest value and step of a channel, the lowest and the step as float32 has them."""
    low, high = float(channel.min()), float(channel.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError("the prepared case has NaN or infinite voxels", hint="run `segpipe check`")
    whole = max(abs(low), abs(high)) < EXACT and high - low <= LEVELS
    if high == low or (whole and all(np.array_equal(part, np.rint(part)) for part in channel)):
        return low, high, 1.0
    total = sum(float(part.sum(dtype=np.float64)) for part in channel)
    squares = sum(float(np.square(part, dtype=np.float64).sum()) for part in channel)
    variance = squares / channel.size - (total / channel.size) ** 2
    step = max((high - low) / LEVELS, math.sqrt(max(0.0, variance)) / STEPS_A_DEVIATION)
    return float(np.float32(low)), high, float(np.float32(step))


def _as_labels(numbers: NDArray[Any], offset: float, step: float) -> NDArray[np.uint8] | None:
    """Return the label map (X, Y, Z) of one channel of whole numbers 0 to 255, None where it is of others."""
    if step != 1 or not offset.is_integer() or offset < 0 or offset + int(numbers.max()) > 255:
        return None
    return (numbers[0] + numbers.dtype.type(offset)).astype(np.uint8)


def _as_values(numbers: NDArray[Any], facts: Mapping[str, Any]) -> NDArray[Any]:
    dtype = np.dtype(facts["dtype"])
    if not np.issubdtype(dtype, np.floating):
        whole = np.array(facts["offset"]).astype(np.int64).reshape(-1, 1, 1, 1)
        return (numbers.astype(np.int64) + whole).astype(dtype)
    values = numbers.astype(np.float32)
    values *= np.array(facts["step"], np.float32).reshape(-1, 1, 1, 1)
    values += np.array(facts["offset"], np.float32).reshape(-1, 1, 1, 1)
    return values.astype(dtype, copy=False)


def _boxes(shape: Sequence[int]) -> Iterator[Box]:
    yield from itertools.product(
        *([slice(low, min(low + CHUNK, size)) for low in range(0, size, CHUNK)] for size in shape)
    )


def _common(part: slice, low: int, size: int) -> tuple[slice, slice]:
    """Return where a chunk goes within the part that is asked for, and what of the chunk does, along one axis."""
    begin, end = max(part.start, low), min(part.stop, low + size)
    return slice(begin - part.start, end - part.start), slice(begin - low, end - low)


def _packed(numbers: NDArray[Any]) -> bytes:
    if numbers.dtype == np.uint8:
        return isal_zlib.compress(np.ascontiguousarray(numbers).tobytes(), LEVEL)
    differences = np.diff(numbers, axis=-1, prepend=np.uint16(0)).astype("<u2")
    halves = np.ascontiguousarray(differences).view(np.uint8).reshape(-1, 2).T
    return isal_zlib.compress(np.ascontiguousarray(halves).tobytes(), LEVEL)


def _unpacked(packed: bytes, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    content = np.frombuffer(isal_zlib.decompress(packed), np.uint8)
    if dtype == "uint8":
        return content.reshape(shape)
    differences = np.ascontiguousarray(content.reshape(2, -1).T).view("<u2").reshape(shape)
    return np.cumsum(differences, axis=-1, dtype=np.uint16)


def _damaged(path: Path) -> DataError:
    return DataError(
        "a prepared case of the store is damaged",
        found=path.name,
        hint="remove the store with `segpipe store remove`; the training makes it again",
    )


def _removed(path: Path) -> UsageError:
    return UsageError(
        "a prepared case of the store was removed while a training reads it",
        found=path.name,
        hint="go on with `segpipe train --resume`, which prepares it again",
    )
