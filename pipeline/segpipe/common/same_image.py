"""Whether two files hold the same scan: the same voxels, however they are packed and whatever their headers say."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.nifti import Header, read_header, read_volume


class SameImage:
    """Compares image files by their voxels; each is read once, and only where another has its size.

    Example:
        >>> is_same = SameImage()  # is_same(Path("scan.nii"), Path("repacked.nii.gz"))
    """

    def __init__(self) -> None:
        self._headers: dict[Path, Header] = {}
        self._digests: dict[Path, frozenset[str]] = {}

    def __call__(self, one: Path, other: Path) -> bool:
        """Return whether two files hold the same voxels, as they are stored or with their axes along those of the body.

        Raises:
            SegpipeError: a file is not there, or cannot be read.
        """
        first, second = self._header(one), self._header(other)
        return sorted(first.shape) == sorted(second.shape) and bool(self._digest(first) & self._digest(second))

    def array(self, values: NDArray[Any], affine: NDArray[np.float64], other: Path) -> bool:
        """Return the same of (X, Y, Z) voxels in memory, with their (4, 4) affine, and a file."""
        second = self._header(other)
        return sorted(values.shape) == sorted(second.shape) and bool(
            voxel_hashes(values, affine) & self._digest(second)
        )

    def _header(self, path: Path) -> Header:
        if path not in self._headers:
            self._headers[path] = read_header(path)
        return self._headers[path]

    def _digest(self, header: Header) -> frozenset[str]:
        if header.path not in self._digests:
            self._digests[header.path] = voxel_hashes(np.asarray(read_volume(header)), header.affine)
        return self._digests[header.path]


def voxel_hashes(values: NDArray[Any], affine: NDArray[np.float64]) -> frozenset[str]:
    """Return hashes of voxels: as they are stored, and as they lie towards right, front and head.

    Args:
        values: (X, Y, Z) or (X, Y, Z, channels), of any type.
        affine: (4, 4), voxel index to RAS mm.
    """
    import nibabel as nib

    turned = values
    if values.ndim >= 3:
        turned = nib.orientations.apply_orientation(values, nib.orientations.io_orientation(affine))
    return frozenset({f"stored {_hash(values)}", f"turned {_hash(turned)}"})


def _hash(values: NDArray[Any]) -> str:
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(np.ascontiguousarray(values, "<f4").data)
    return digest.hexdigest()
