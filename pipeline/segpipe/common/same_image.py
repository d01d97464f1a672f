"""Whether two files hold the same scan: the same voxels, however they are packed and whatever their headers say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.nifti import read_header, read_volume


@dataclass(frozen=True)
class Voxels:
    """What is kept of a channel that was read: its hashes, and whether it is of one value everywhere."""

    hashes: frozenset[str]
    is_flat: bool


@dataclass(frozen=True, eq=False)
class Channel:
    """One channel of a scan; it is read only where another of its size is held against it."""

    size: tuple[int, ...]
    read: Callable[[], Voxels] = field(repr=False)

    @cached_property
    def _voxels(self) -> Voxels:
        return self.read()

    def is_same(self, other: Channel) -> bool:
        """Return whether both are the same voxels, as they are stored or with their axes along those of the body.

        Raises:
            SegpipeError: a file is not there, or cannot be read.
        """
        return self.size == other.size and bool(self._voxels.hashes & other._voxels.hashes)

    @property
    def is_flat(self) -> bool:
        """Whether it is of one value everywhere, or not a number everywhere, as where a channel is missing."""
        return self._voxels.is_flat


class SameImage:
    """The channels of image files, compared by their voxels; a file is read once, and only where another has its size.

    Example:
        >>> image = SameImage()
        >>> # image.channels(Path("scan.nii"))[0].is_same(image.channels(Path("repacked.nii.gz"))[0])
    """

    def __init__(self) -> None:
        self._channels: dict[Path, list[Channel]] = {}
        self._voxels: dict[Path, list[Voxels]] = {}

    def channels(self, path: Path) -> list[Channel]:
        """Return the channels of a file: one of (X, Y, Z) voxels, and as many as the fourth axis of others is long.

        Raises:
            SegpipeError: it is not there, or its header cannot be read.
        """
        if path not in self._channels:
            shape = read_header(path).shape
            size, count = tuple(sorted(shape[:3])), int(np.prod(shape[3:], dtype=np.int64))
            self._channels[path] = [Channel(size, self._reader(path, index)) for index in range(count)]
        return self._channels[path]

    def _reader(self, path: Path, index: int) -> Callable[[], Voxels]:
        def read() -> Voxels:
            if path not in self._voxels:
                header = read_header(path)
                values = np.asarray(read_volume(header))
                parts = values.reshape(*values.shape[:3], -1) if values.ndim > 3 else values[..., None]
                self._voxels[path] = [_voxels(part, header.affine) for part in np.moveaxis(parts, -1, 0)]
            return self._voxels[path][index]

        return read


def channel_of_array(values: NDArray[Any], affine: NDArray[np.float64]) -> Channel:
    """Return (X, Y, Z) voxels in memory, with their (4, 4) affine to RAS mm, as a channel."""
    return Channel(tuple(sorted(values.shape)), lambda: _voxels(values, affine))


def _voxels(values: NDArray[Any], affine: NDArray[np.float64]) -> Voxels:
    import nibabel as nib

    turned = values
    if values.ndim >= 3:
        turned = nib.orientations.apply_orientation(values, nib.orientations.io_orientation(affine))
    flat = bool(np.isnan(values).all() or (values == values.flat[0]).all())
    return Voxels(frozenset({f"stored {_hash(values)}", f"turned {_hash(turned)}"}), flat)


def _hash(values: NDArray[Any]) -> str:
    plain = np.ascontiguousarray(values, "<f4")
    missing = np.isnan(plain)
    if missing.any():  # which have many patterns of bits
        plain = np.where(missing, np.float32(np.nan), plain).astype("<f4")
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(plain.data)
    return digest.hexdigest()
