"""Channels of a case that somebody says are registered, on different grids: resampled to that of the first one.

What a data set has is never changed: a resampled channel is written into a folder of its own, the case says that its
channels are registered by somebody's word, and of each what was done.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from segpipe.common.grids import on_grid_of, registered_note
from segpipe.common.nifti import Header, read_header, read_volume, write_nifti_whole
from segpipe.common.processes import Progress
from segpipe.common.resampling import require_covered
from segpipe.data.importers.made_files import write_beside
from segpipe.data.importers.source_dataset import SourceCase, SourceDataset, rooted
from segpipe.errors import DataError, SegpipeError

FOLDER = "channels_for_segpipe"


def put_on_one_grid(
    dataset: SourceDataset, folder: Path | None, progress: Progress
) -> tuple[SourceDataset, tuple[str, ...]]:
    """Write the channels that lie on another grid than the first one of their case, and return the data set with these.

    Args:
        dataset: NIfTI images and label maps, with ids of their own.
        folder: the channels are written to ``channels`` in it; None: to `FOLDER` in the data.
        progress: called with the number of cases done and of all.

    Returns:
        The data set, and what is to be said of what was done.

    Raises:
        UsageError: the folder cannot be written to.
        DataError: a file that cannot be read, a channel that covers none of the first, or labels where one was not
            scanned; the error names the case.
    """
    place = (folder / "channels" if folder else dataset.root / FOLDER).resolve()
    cases = [*dataset.training, *dataset.test]
    done: list[SourceCase] = []
    for case in cases:
        try:
            done.append(_resampled(case, dataset.root, place))
        except SegpipeError as error:
            error.case_id = error.case_id or case.id
            raise
        progress(len(done), len(cases))
    changed = sum(bool(case.registered) for case in done)
    if not changed:
        return dataset, ("--registered: the channels of every case lie on one grid already",)
    split = len(dataset.training)
    made = rooted(replace(dataset, training=done[:split], test=done[split:]), place)
    return made, (
        f"{changed} cases had channels on different grids, said to be registered: resampled to that of their first "
        f"channel in {place}; those of the data set are as they were",
    )


def _resampled(case: SourceCase, root: Path, place: Path) -> SourceCase:
    import nibabel as nib

    headers = [read_header(root / path) for path in case.images]
    notes = [registered_note(headers[0], header, index) for index, header in enumerate(headers) if index]
    if not any(notes):
        return case
    first, images = headers[0], [case.images[0]]
    _require_labels_inside(case, root, headers)
    for index, (header, note) in enumerate(zip(headers[1:], notes, strict=True), 1):
        if not note:
            images.append(case.images[index])
            continue
        values = on_grid_of(first, header, read_volume(header))
        image = nib.Nifti1Image(values, first.affine)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
        image.header.set_xyzt_units("mm")
        image.set_sform(first.affine, code=first.sform_code or first.qform_code)
        image.set_qform(None, code=0)
        target = write_beside(place / f"{case.id}_{index:04}.nii.gz", partial(write_nifti_whole, image))
        images.append(Path(os.path.relpath(target, root)).as_posix())
    return replace(case, images=images, registered=True, notes=(*case.notes, *filter(None, notes)))


def _require_labels_inside(case: SourceCase, root: Path, headers: Sequence[Header]) -> None:
    """Refuse labels where a channel was not scanned; a label map on another grid `segpipe check` speaks of."""
    first = headers[0]
    label = None if case.label is None else read_header(root / case.label)
    if label is None or label.shape != first.shape:
        return
    values = read_volume(label)
    for index, header in enumerate(headers[1:], 1):
        try:
            require_covered(values, f"channel {index}", header.shape, header.affine, label.affine)
        except DataError as error:
            error.path = str(root / (case.label or ""))
            raise
