"""Stacks of slices become NIfTI volumes: pixels read strictly, one volume and one label map a stack.

What the files do not say is assumed, and the manifest says so: slices are axial and displayed as radiologists do
(row 0 in front, column 0 at the patient's right), numbers rise towards the head, and a voxel has the spacing given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.common.files import write_json
from segpipe.common.nifti import write_nifti_whole
from segpipe.common.processes import Progress, over_cases, workers_to_read
from segpipe.data.importers.made_files import digest_of_sources, earlier_conversion, write_beside
from segpipe.data.importers.slice_stacks import SliceStacks, Stack
from segpipe.data.importers.source_dataset import SourceCase, SourceDataset, refusal
from segpipe.errors import DataError

ALIGNED = 2  # sform code: coordinates are not the scanner's
SHOWN = 8
ORIENTATION = (
    "Orientation assumed: axial slices as radiologists see them (row 0 in front, column 0 at the patient's right), "
    "numbered towards the head."
)


@dataclass(frozen=True)
class Job:
    """One stack to convert into ``folder``.

    Attributes:
        stack: its files.
        folder: gets ``images/ID.nii.gz`` and ``labels/ID.nii.gz``, where these are not of another import.
        spacing_mm: of a voxel, along columns, rows and slices.
        label_count: values 1 to this may stand in a mask; with 1, a mask of 0 and 255 means label 1 as well.
    """

    stack: Stack
    folder: Path
    spacing_mm: tuple[float, float, float]
    label_count: int = 1


@dataclass(frozen=True)
class Converted:
    """How a stack ended: files below the folder, number of channels, highest mask value, or why it was refused."""

    id: str
    files: tuple[str, ...] = ()
    channels: int = 0
    highest: int = 0
    fault: str = ""


def convert_stacks(
    stacks: SliceStacks,
    root: Path,
    folder: Path,
    *,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    label_names: Sequence[str] = (),
    skip_bad: bool = False,
    assumed: bool = True,
    progress: Progress | None = None,
) -> tuple[SourceDataset, dict[str, str]]:
    """Convert every stack and describe the data set that they are then.

    Args:
        stacks: what `segpipe.data.importers.slice_stacks.find_stacks` returns.
        root: the data root; the manifest's paths start here, and ``folder`` is it or lies below it.
        folder: for the NIfTI files.
        spacing_mm: of a voxel, along columns, rows and slices.
        label_names: of the mask values 1, 2, ...; one name, or none, for masks of yes and no.
        skip_bad: leave out what cannot be used, instead of refusing all.
        assumed: whether the spacing is an assumption, not the user's word.
        progress: called with the number of stacks done and of all.

    Returns:
        The data set, and what was left out, with the reason.

    Raises:
        UsageError: the folder cannot be written to.
        DataError: stacks that cannot be used, each with its file, or none that can.
    """
    faults = dict(stacks.faults)
    if faults and not skip_bad:
        raise refusal("volumes", faults, len(stacks.stacks))
    count = max(1, len(label_names))
    jobs = [Job(stack, folder, spacing_mm, count) for stack in stacks.stacks]
    workers = workers_to_read(path for stack in stacks.stacks for path in stack.slices)
    done = over_cases(convert, jobs, workers, lost=_lost, progress=progress)
    faults |= {volume.id: volume.fault for volume in done if volume.fault}
    faults |= _differing([volume for volume in done if not volume.fault])
    kept = [(stack, volume) for stack, volume in zip(stacks.stacks, done, strict=True) if volume.id not in faults]
    if not kept or (faults and not skip_bad):
        raise refusal("volumes", faults, len(kept))
    below = folder.relative_to(root)
    cases = []
    for stack, volume in kept:
        image, label = ((below / file).as_posix() for file in volume.files)
        cases.append(SourceCase(stack.id, [image], label, stack.patient_id))
    edges = "x".join(f"{edge:g}" for edge in spacing_mm)
    origin = "assumed, so that lengths and volumes count voxels" if assumed else "as told at import"
    channels = kept[0][1].channels
    names = ["red", "green", "blue"] if channels == 3 else ["unknown"] * channels
    labels = list(label_names) or ["label_1"]
    dataset = SourceDataset(
        root=root,
        training=cases,
        test=[],
        labels={str(value): name for value, name in enumerate(["background", *labels])},
        modality={str(index): name for index, name in enumerate(names)},
        about={"description": f"Volumes stacked from 2D slices. Spacing {edges} mm: {origin}. {ORIENTATION}"},
    )
    return dataset, faults


def _differing(done: Sequence[Converted]) -> dict[str, str]:
    """Return the stacks whose number of channels, or way to write a mask, is not that of the most."""
    faults = {}
    channels = Counter(volume.channels for volume in done).most_common(1)
    highest = Counter(volume.highest for volume in done if volume.highest in (1, 255)).most_common(1)
    binary = all(volume.highest in (0, 1, 255) for volume in done)
    for volume in done:
        if volume.channels != channels[0][0]:
            faults[volume.id] = f"{volume.channels} channels, the most stacks have {channels[0][0]}"
        elif binary and volume.highest and volume.highest != highest[0][0]:
            faults[volume.id] = f"its masks go up to {volume.highest}, those of the most stacks to {highest[0][0]}"
    return faults


def _lost(job: Job) -> Converted:
    return Converted(job.stack.id, fault="the process that read it died; is there enough memory?")


def convert(job: Job) -> Converted:
    """Write a stack's volume (X, Y, Z) or (X, Y, Z, C) and its label map (X, Y, Z), unless both are there already.

    Raises:
        UsageError: the folder cannot be written to.
    """
    stack = job.stack
    note = job.folder / ".sources" / f"{stack.id}.json"
    digest = digest_of_sources([*stack.slices, *stack.masks], [list(job.spacing_mm), job.label_count])
    known = earlier_conversion(note, digest, job.folder)
    if known is not None:
        return Converted(stack.id, tuple(known["files"]), known["channels"], known["highest"])
    try:
        volume = _read_stack(stack.slices)
        values, highest = _labels(_read_stack(stack.masks), stack, job.label_count)
        if values.shape != volume.shape[:3]:
            raise DataError(
                "slices and masks differ in shape",
                path=stack.masks[0],
                found=values.shape[:2],
                expected=volume.shape[:2],
            )
    except DataError as error:
        return Converted(stack.id, fault=error.sentence(Path(str(error.path)).parent.parent))
    affine = np.diag([-job.spacing_mm[0], -job.spacing_mm[1], job.spacing_mm[2], 1.0])
    files = []
    for kind, array in (("images", volume), ("labels", values)):
        path = write_beside(job.folder / kind / f"{stack.id}.nii.gz", partial(_write, array, affine))
        files.append(path.relative_to(job.folder).as_posix())
    channels = volume.shape[3] if volume.ndim == 4 else 1
    write_json(note, {"digest": digest, "files": files, "channels": channels, "highest": highest})
    return Converted(stack.id, tuple(files), channels, highest)


def read_slice(path: Path) -> NDArray[np.generic]:
    """Return the pixels of one file, (rows, columns) or (rows, columns, channels).

    Raises:
        DataError: not an image, or more than one.
    """
    import SimpleITK as sitk  # noqa: N813 - its usual name

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise DataError("not a readable TIFF or PNG", path=path) from error
    if image.GetDimension() != 2:
        raise DataError("more than one image in a file", path=path, found=f"{image.GetSize()[-1]} pages")
    pixels = sitk.GetArrayFromImage(image)
    if path.suffix.lower() == ".png" and pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        if np.ptp(pixels[..., -1]) != 0:
            raise DataError("an image with transparency", path=path, hint="save it without an alpha channel")
        pixels = pixels[..., :-1]
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _read_stack(paths: tuple[Path, ...]) -> NDArray[np.generic]:
    """Return all slices as (X, Y, Z) or (X, Y, Z, C)."""
    slices: list[NDArray[np.generic]] = []
    for path in paths:
        pixels = read_slice(path)
        if slices and (pixels.shape, pixels.dtype) != (slices[0].shape, slices[0].dtype):
            raise DataError(
                "a slice differs from the first of its stack",
                path=path,
                found=f"{pixels.shape} {pixels.dtype}",
                expected=f"{slices[0].shape} {slices[0].dtype}",
            )
        slices.append(pixels)
    return np.stack(slices, axis=2).swapaxes(0, 1)


def _labels(masks: NDArray[np.generic], stack: Stack, label_count: int) -> tuple[NDArray[np.uint8], int]:
    """Return mask values as label values, and the highest value that stood in the masks."""
    if masks.ndim == 4:
        if np.ptp(masks.astype(np.int64), axis=-1).max() != 0:
            raise DataError("a mask has colours", path=_where(masks, stack), expected="one value a pixel")
        masks = masks[..., 0]
    values = np.unique(masks).tolist()
    allowed_values = {0, 255} if label_count == 1 and 255 in values else set(range(label_count + 1))
    odd = [value for value in values if value not in allowed_values]
    if odd:
        place = next(k for k in range(masks.shape[2]) if np.isin(masks[:, :, k], odd).any())
        allowed = "0 and 255, or 0 and 1" if label_count == 1 else f"0 to {label_count}"
        shown = ", ".join(map(str, odd[:SHOWN])) + (" ..." if len(odd) > SHOWN else "")
        raise DataError("odd values in a mask", path=stack.masks[place], found=shown, expected=allowed)
    return (masks != 0 if label_count == 1 else masks).astype(np.uint8), max(values)


def _where(masks: NDArray[np.generic], stack: Stack) -> Path:
    apart = np.ptp(masks.astype(np.int64), axis=-1).max(axis=(0, 1))
    return stack.masks[int(np.argmax(apart > 0))]


def _write(array: NDArray[np.generic], affine: NDArray[np.float64], path: Path) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(array, affine, dtype=array.dtype)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=ALIGNED)
    image.set_qform(affine, code=ALIGNED)
    write_nifti_whole(image, path)
