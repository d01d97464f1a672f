"""What leaves the engine: a label map on disk and in numbers, a preview of the case, and extra outputs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.nifti import Header, corners_apart_mm, forms_limit_mm, geometry_limit_mm, write_nifti
from segpipe.errors import DataError
from segpipe.inference.source import Preview

if TYPE_CHECKING:
    import torch

    from segpipe.inference.sliding_window import Activation

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map on its source's grid.

    Attributes:
        labels: (X, Y, Z).
        grid: the source's.
        preview: of the source.
        seconds: that each stage took.
        regions: how many bits of a voxel say in which regions, which may overlap, it lies; 0 for one label a voxel.
        runtime: that computed it: ``torch`` or ``openvino``.
        notes: on the voxels of the source.
    """

    labels: NDArray[np.uint8]
    grid: Header
    preview: Preview
    seconds: dict[str, float] = field(default_factory=dict)
    regions: int = 0
    runtime: str = "torch"
    notes: tuple[str, ...] = ()


def write_labels(path: str | Path, labels: NDArray[np.uint8], grid: Header, regions: int = 0) -> None:
    """Write a label map (X, Y, Z) on the grid of its source, with a header that carries nothing else of it.

    Where bits of a voxel say to which of so many ``regions`` it belongs, the image is (X, Y, Z, regions) with a
    mask for each, as stock MONAI saves several channels.

    Sform and qform say what the source's say, so that every reader finds the two on one grid, whichever form it
    takes. Where the source has one of them, the other is made from it, if a rotation and voxel sizes can say it.
    Where it has none, there is none.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    if not regions:
        write_nifti(_image(labels, grid, np.uint8), path)
        return
    with filled_file(path, (*labels.shape, regions), grid, np.uint8) as masks:
        for region in range(regions):
            np.bitwise_and(labels >> region, 1, out=masks[..., region])


@contextmanager
def filled_file(
    path: str | Path, shape: tuple[int, ...], grid: Header, dtype: type[np.generic] = np.float32
) -> Iterator[NDArray[Any]]:
    """Give an array (X, Y, Z) or (X, Y, Z, C) of zeros to fill; at the end of the block it is written as an image.

    It lies in a file beside the image meanwhile, not in memory.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    raw = Path(path).with_name(f".{Path(path).name}.raw")
    try:
        with raw.open("wb") as stream:
            size = np.dtype(dtype).itemsize * math.prod(shape)
            os.posix_fallocate(stream.fileno(), 0, size)  # a full disk is found now, as an error
        values = np.memmap(raw, dtype, "r+", shape=shape, order="F")
        yield values
        write_nifti(_image(values, grid, dtype), path)
    finally:
        raw.unlink(missing_ok=True)


def _image(values: NDArray[Any], grid: Header, dtype: type[np.generic]) -> Any:
    import nibabel as nib

    code = grid.sform_code or grid.qform_code
    image = nib.Nifti1Image(values, grid.affine, dtype=dtype)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=code)
    image.set_qform(grid.qform if grid.qform_code else grid.affine, code=grid.qform_code or code)
    moved_mm = 0.0 if grid.qform_code else corners_apart_mm(image.get_qform(), grid.affine, grid.shape)
    if not moved_mm <= geometry_limit_mm(grid.affine):  # a shear, which a qform cannot say
        image.set_qform(None, code=0)
    return image


def as_labels(prediction: Any, grid: Header, regions: int = 0) -> NDArray[np.uint8]:
    """Return the label map (X, Y, Z) that MONAI's transforms give as a tensor (1, X, Y, Z).

    With ``regions`` the tensor has a mask for each (regions, X, Y, Z), and bits of a voxel say in which it lies.

    Raises:
        DataError: it is no label map on the image's grid.
    """
    values = np.asarray(prediction.cpu())
    expected = (regions or 1, *grid.shape[:3])
    if values.shape != expected:
        raise DataError(
            "the bundle does not give one label map on the image's grid",
            found=f"shape {values.shape}",
            expected=f"shape {expected}",
            hint="its post-processing must end in argmax and inversion",
        )
    affine = getattr(prediction, "affine", None)
    apart = 0.0 if affine is None else corners_apart_mm(np.asarray(affine), grid.affine, grid.shape)
    if not apart <= forms_limit_mm(grid.affine):
        raise DataError(
            "the bundle's label map does not lie on the image's grid",
            found=f"corners {apart:.3g} mm apart",
            hint="its post-processing must undo what its preprocessing did, by Invertd",
        )
    labels = values[0].astype(np.uint8)
    if not np.array_equal(labels, values[0]) or (regions and values.max() > 1):
        raise DataError("the bundle does not give whole label values from 0 to 255, or masks of 0 and 1")
    for region, mask in enumerate(values[1:], 1):
        labels |= (mask > 0).astype(np.uint8) << region
    return labels


def describe(
    labels: NDArray[np.uint8], affine: NDArray[np.float64], names: Mapping[int, str], regions: int = 0
) -> dict[str, Any]:
    """Return volumes and flags of a label map.

    Args:
        labels: (X, Y, Z).
        affine: (4, 4), voxel index to mm; its determinant is a voxel's volume.
        names: label value to name; 0 is background and is not listed.
        regions: how many of the bits of ``labels`` are regions that may overlap, the first one label 1.

    Returns:
        ``voxels`` and ``volumes_ml`` by label name (0 where a label is absent), and ``flags``: ``empty`` (no label
        at all), ``touches_border`` (names of labels with a voxel on a face of the image, so perhaps cut off).
    """
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    faces = [np.take(labels, index, axis) for axis in range(3) for index in (0, -1)]
    counts = _by_label(_counts(labels), regions)
    border = _by_label(np.bincount(np.concatenate([face.ravel() for face in faces]), minlength=256), regions)
    known = {value: name for value, name in sorted(names.items()) if value != 0}
    known |= {int(value): f"label {value}" for value in np.flatnonzero(counts) if value and value not in known}
    return {
        "voxels": {name: int(counts[value]) for value, name in known.items()},
        "volumes_ml": {name: round(int(counts[value]) * voxel_ml, 6) for value, name in known.items()},
        "flags": {
            "empty": not counts[1:].any(),
            "touches_border": [name for value, name in known.items() if border[value]],
        },
    }


def _by_label(counts: NDArray[np.int64], regions: int) -> NDArray[np.int64]:
    """Return the voxels of each label, from how often each byte occurs: a region is in the bytes with its bit.

    Args:
        counts: (256,).
        regions: how many bits are regions; 0 where a byte is a label.
    """
    if not regions:
        return counts
    labels = np.zeros_like(counts)
    for region in range(regions):
        labels[region + 1] = counts[np.arange(256) >> region & 1 == 1].sum()
    return labels


def _counts(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count voxels of each of the 256 values, plane by plane: `numpy.bincount` takes eight bytes a voxel."""
    counts = np.zeros(256, np.int64)
    for plane in np.moveaxis(labels, -1, 0):
        counts += np.bincount(plane.ravel(order="K"), minlength=256)
    return counts


def save_slice(path: str | Path, preview: Preview, labels: NDArray[np.uint8], grid: Header, regions: int = 0) -> None:
    """Write the slice with most labelled voxels (without labels the middle one) as ``.npz``.

    Its arrays are ``image`` and ``labels``, (X, Y, Z) with one voxel along the normal and axes towards right, front and
    head; ``spacing_mm`` and ``normal`` of these axes; ``index`` and ``count`` of the slice in the image; ``regions``
    is 0, or how many bits of ``labels`` are regions.

    Raises:
        OSError: it cannot be written.
    """
    from nibabel.orientations import apply_orientation, io_orientation

    others = tuple(axis for axis in range(3) if axis != preview.normal)
    areas = np.count_nonzero(labels, axis=others)
    index = int(areas.argmax()) if areas.any() else labels.shape[preview.normal] // 2
    cut: list[slice] = [slice(None, None, step) for step in preview.steps]
    cut[preview.normal] = slice(index, index + 1)
    thin: list[slice] = [slice(None)] * 3
    thin[preview.normal] = slice(index, index + 1)
    ways = io_orientation(grid.affine)
    pixel_mm = [edge * step for edge, step in zip(grid.spacing_mm, preview.steps, strict=True)]
    with Path(path).open("wb") as stream:
        np.savez(
            stream,
            image=apply_orientation(preview.grey[tuple(thin)], ways),
            labels=apply_orientation(labels[tuple(cut)], ways),
            spacing_mm=along_ras(pixel_mm, grid),
            normal=int(ways[preview.normal, 0]),
            index=index,
            count=labels.shape[preview.normal],
            regions=regions,
        )


def along_ras(edges: Sequence[float], grid: Header) -> list[float]:
    """Return lengths along a grid's axes in the order of the axes of RAS that these are nearest to."""
    from nibabel.orientations import io_orientation

    targets = io_orientation(grid.affine)[:, 0].astype(int)
    return [float(edges[int(axis)]) for axis in np.argsort(targets)]


@dataclass(frozen=True)
class ExtraOutputs:
    """Files that are written beside a label map, all of float32 probabilities or of what is made of them.

    Attributes:
        probabilities: of all channels of the scores, (X, Y, Z, K).
        single: by channel, a file of its probabilities alone, (X, Y, Z); instead of ``probabilities``.
        entropy: of the probabilities of all channels, (X, Y, Z).
    """

    probabilities: str | None = None
    single: Mapping[int, str] = field(default_factory=dict)
    entropy: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of all of them."""
        return tuple(name for name in (self.probabilities, *self.single.values(), self.entropy) if name)


@dataclass(frozen=True, eq=False)
class ProbabilityMaps:
    """Arrays on a source's grid that are filled block by block.

    The entropy is Shannon's (1948, Bell System Technical Journal 27, section 6) in nats, of the classes of a softmax:
    the sum of -p ln p; or of the independent decisions of a sigmoid: that and the sum of -(1 - p) ln(1 - p).

    Attributes:
        activation: how scores became probabilities.
        probabilities: by channel, (X, Y, Z) float32.
        entropy: (X, Y, Z) float32, 0 to begin with; None where it is not asked for.
    """

    activation: Activation
    probabilities: Mapping[int, Array]
    entropy: Array | None = None

    def viewed(self, view: Callable[[Array], Array]) -> ProbabilityMaps:
        """Return the same arrays with their axes otherwise."""
        views = {channel: view(array) for channel, array in self.probabilities.items()}
        return ProbabilityMaps(self.activation, views, None if self.entropy is None else view(self.entropy))

    def needs(self, channel: int) -> bool:
        """Say whether the probabilities of a channel are asked for, or enter what is."""
        return self.entropy is not None or channel in self.probabilities

    def needs_all(self, channels: int) -> bool:
        """Say whether all of so many channels are needed."""
        return all(self.needs(channel) for channel in range(channels))

    def put(self, channel: int, box: tuple[slice, ...], values: torch.Tensor, own: Any = ...) -> None:
        """Store the restored probabilities of one channel; each voxel comes once.

        Args:
            channel: of the scores.
            box: the voxels that they are of.
            values: as many as the box, or ``own`` in it, has.
            own: mask of those voxels of the box that are meant.
        """
        import torch

        if channel in self.probabilities:
            self.probabilities[channel][box][own] = values.numpy()
        if self.entropy is not None:
            values = values.clamp(max=1.0)  # interpolation may leave it by rounding
            part = torch.special.entr(values)
            part = part if self.activation == "softmax" else part + torch.special.entr(1 - values)
            self.entropy[box][own] += part.numpy()


@contextmanager
def probability_maps(
    extra_outputs: ExtraOutputs, activation: Activation, channels: int, grid: Header
) -> Iterator[ProbabilityMaps]:
    """Give the arrays of extra outputs, which become files at the end of the block.

    Raises:
        OSError: a file cannot be written, or the disk is full.
    """
    shape = grid.shape[:3]
    with ExitStack() as files:
        probabilities: dict[int, Array] = {}
        if extra_outputs.probabilities:
            whole = files.enter_context(filled_file(extra_outputs.probabilities, (*shape, channels), grid))
            probabilities = {channel: whole[..., channel] for channel in range(channels)}
        for channel, path in extra_outputs.single.items():
            probabilities[channel] = files.enter_context(filled_file(path, shape, grid))
        entropy = None
        if extra_outputs.entropy:
            entropy = files.enter_context(filled_file(extra_outputs.entropy, shape, grid))
        yield ProbabilityMaps(activation, probabilities, entropy)
