"""Images and label maps of other formats become NIfTI, which MONAI reads in training: same voxels, same place in mm."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from segpipe.common.image_names import is_nifti
from segpipe.common.nifti import array_voxels, read_header, read_volume, write_nifti_whole
from segpipe.common.processes import Progress
from segpipe.data.importers.made_files import write_beside
from segpipe.data.importers.source_dataset import SourceCase, SourceDataset, rooted
from segpipe.errors import SegpipeError

FOLDER = "nifti_for_segpipe"


def write_as_nifti(
    dataset: SourceDataset, folder: Path | None, progress: Progress
) -> tuple[SourceDataset, tuple[str, ...]]:
    """Write the files that are not NIfTI as such, and return the data set with these.

    Args:
        dataset: with ids of their own.
        folder: for ``images`` and ``labels``; None: `FOLDER` in the data.
        progress: called with the number of cases done and of all.

    Returns:
        The data set, and what is to be said of what was done.

    Raises:
        UsageError: the folder cannot be written to.
        DataError: a file that cannot be read; the error names its case.
    """
    cases = [*dataset.training, *dataset.test]
    foreign = [path for case in cases for path in _files(case) if not is_nifti(path)]
    if not foreign:
        return dataset, ()
    place = (folder or dataset.root / FOLDER).resolve()
    written = []
    for done, case in enumerate(cases, 1):
        written.append(_written(case, dataset.root, place))
        progress(done, len(cases))
    split = len(dataset.training)
    made = rooted(replace(dataset, training=written[:split], test=written[split:]), place)
    note = f"{len(foreign)} files were written as NIfTI to {place}; those of the data set are as they were"
    return made, (note,)


def _files(case: SourceCase) -> list[str]:
    return [*case.images, *([case.label] if case.label else [])]


def _written(case: SourceCase, root: Path, place: Path) -> SourceCase:
    """Return the case with its files as NIfTI, each written unless it is."""
    names = [f"{case.id}.nii.gz"]
    if len(case.images) > 1:
        names = [f"{case.id}_{index:04}.nii.gz" for index in range(len(case.images))]
    try:
        images = [as_nifti(path, root, place / "images" / name) for path, name in zip(case.images, names, strict=True)]
        label = case.label and as_nifti(case.label, root, place / "labels" / f"{case.id}.nii.gz")
    except SegpipeError as error:
        error.case_id = error.case_id or case.id
        raise
    return replace(case, images=images, label=label)


def as_nifti(path: str, root: Path, target: Path) -> str:
    """Write a file, and return the path of what was written; of NIfTI it is the same."""
    import nibabel as nib

    if is_nifti(path):
        return path
    header = read_header(root / path)
    values = read_volume(header)
    if values.dtype.kind == "i" and values.dtype.itemsize == 8:
        values = array_voxels(values, header)  # which few readers of NIfTI take
    image = nib.Nifti1Image(values, header.affine)  # type: ignore[no-untyped-call, unused-ignore]
    image.header.set_xyzt_units("mm")
    image.set_sform(header.affine, code=1)
    image.set_qform(None, code=0)
    written = write_beside(target, partial(write_nifti_whole, image))
    return Path(os.path.relpath(written, root)).as_posix()
