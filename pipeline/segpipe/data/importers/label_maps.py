"""Label maps that are made anew while a data set is imported: other values, or the order of the image's axes.

What a data set has is never changed. Where values are renamed (`--label-values 255=1`), or where a label map covers its
image's space but is stored with other axes, a label map on the image's own grid is written into a folder of its own,
and the manifest says what was done.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.console import some_of
from segpipe.common.nifti import (
    Header,
    corners_apart_mm,
    geometry_limit_mm,
    grid_difference,
    read_header,
    read_volume,
    write_nifti_whole,
)
from segpipe.common.processes import Progress
from segpipe.data.importers.label_values import ValueRules, require_labels
from segpipe.data.importers.made_files import write_beside
from segpipe.data.importers.source_dataset import SourceCase, SourceDataset, rooted
from segpipe.errors import SegpipeError

FOLDER = "labels_for_segpipe"


def adapt_labels(
    dataset: SourceDataset, rules: ValueRules, folder: Path | None, progress: Progress
) -> tuple[SourceDataset, list[str]]:
    """Write the label maps that have other values or axes than they should, and return the data set with these.

    Args:
        dataset: NIfTI images and label maps.
        rules: which values become which label.
        folder: for the label maps; None: `FOLDER` in the data.
        progress: called with the number of cases done and of all.

    Returns:
        The data set, and what is to be said of what was done.

    Raises:
        UsageError: the folder cannot be written to.
        DataError: a value that no rule can mean.
    """
    place = (folder or dataset.root / FOLDER).resolve()
    made: dict[str, SourceCase] = {}
    seen: set[float] = set()
    cases = [*dataset.training, *dataset.test]
    for done, case in enumerate(cases, 1):
        adapted = _adapt(case, dataset.root, rules, place, seen)
        if adapted is not None:
            made[case.id] = adapted
        progress(done, len(cases))
    rules.require_met(seen)
    if not made:
        return dataset, []
    adapted_set = rooted(
        replace(
            dataset,
            training=[made.get(case.id, case) for case in dataset.training],
            test=[made.get(case.id, case) for case in dataset.test],
            about={**dataset.about, **({"label_values": rules.labels} if rules.labels else {})},
        ),
        place,
    )
    notes = [f"{len(made)} label maps were written to {place}; those of the data set are as they were"]
    notes += [f"value {value} became label {label}" for value, label in rules.labels.items()]
    turned = {id: case.label_turned for id, case in made.items() if case.label_turned}
    notes += [
        f"stored with other axes than the image: {some_of(f'{id} ({how})' for id, how in turned.items())}"
    ] * bool(turned)
    return adapted_set, notes


def _adapt(case: SourceCase, root: Path, rules: ValueRules, place: Path, seen: set[float]) -> SourceCase | None:
    """Write a case's label map anew where it has to be; None where it is good as it is, or `check` will speak of it."""
    import nibabel as nib

    if case.label is None:
        return None
    try:
        label, image = read_header(root / case.label), read_header(root / case.images[0])
        turn = axes_to_turn(label, image)
        if turn is None and not rules.labels:
            return None
        values = read_volume(label)
    except SegpipeError as error:
        if rules.labels:
            error.case_id = error.case_id or case.id
            raise
        return None
    renamed = _renamed(values, rules, label.path, seen)
    affine, how = label.affine, None
    if turn is not None:
        how = f"{label.orientation} to {image.orientation}"
        renamed = nib.orientations.apply_orientation(renamed, turn)
        affine = image.affine
    written = nib.Nifti1Image(renamed, affine)  # type: ignore[no-untyped-call, unused-ignore]
    written.header.set_sform(affine, label.sform_code or label.qform_code)
    written.header.set_qform(None)  # which a sheared grid does not have
    path = write_beside(place / f"{case.id}.nii.gz", partial(write_nifti_whole, written))
    return replace(case, label=Path(os.path.relpath(path, root)).as_posix(), label_turned=how)


def axes_to_turn(label: Header, image: Header) -> NDArray[np.float64] | None:
    """Return the exchange and reversal of axes that puts a label map on its image's grid; None where there is none.

    Every voxel centre of the one must be one of the other, and both files must say where the patient's sides are.
    """
    import nibabel as nib

    grid = replace(image, shape=image.shape[:3])
    if len(label.shape) != 3 or grid_difference(label, grid) is None or not (label.is_oriented and image.is_oriented):
        return None
    turn = nib.orientations.io_orientation(np.linalg.inv(image.affine) @ label.affine)
    if not np.isfinite(turn).all() or sorted(turn[:, 0]) != [0, 1, 2]:
        return None
    shape = tuple(label.shape[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3))
    affine = label.affine @ nib.orientations.inv_ornt_aff(turn, label.shape)
    fits = shape == grid.shape and corners_apart_mm(affine, image.affine, shape) <= geometry_limit_mm(image.affine)
    return turn if fits else None


def _renamed(values: NDArray[Any], rules: ValueRules, path: Path, seen: set[float]) -> NDArray[np.uint8]:
    known = np.unique(values)
    seen.update(known.tolist())
    rules.require_apart(seen, path)
    labels = {value: rules.label_of(value) for value in known.tolist()}
    require_labels(dict.fromkeys(labels.values(), path))
    renamed = np.zeros(values.shape, np.uint8)
    for value, label in labels.items():
        renamed[values == value] = int(label)
    return renamed
