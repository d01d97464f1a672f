"""A label map that somebody corrected: found by its case, read strictly, put on the image's grid, and compared.

Whatever tool drew it, it has to lie on the grid of the image and to hold labels that are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.common.nifti import Header, grid_difference, read_header, read_volume, write_nifti_whole
from segpipe.common.result_folder import SEGMENTATION, find_segmentation
from segpipe.data.importers.label_maps import axes_to_turn
from segpipe.dicom import Series, open_labels, read_labels
from segpipe.errors import DataError

DICOM = ".dcm"


@dataclass(frozen=True, eq=False)
class CorrectedMap:
    """A corrected label map.

    Attributes:
        values: (X, Y, Z) uint8 on the grid of the image.
        changed_voxels: that differ from the start map; None where that is not there to be compared.
    """

    values: NDArray[np.uint8]
    changed_voxels: int | None


def find_corrected(folder: Path, case_id: str) -> Path | None:
    """Return the corrected label map of a case, as `predict` names them, or a SEG: ``ID.dcm``, or the one in ``ID/``.

    Raises:
        DataError: there are several.
    """
    segmentations = [folder / f"{case_id}{DICOM}", folder / f"{case_id}_seg{DICOM}"]
    if not (folder / case_id / SEGMENTATION).exists():  # a folder of ours, which may hold its own SEG
        segmentations += sorted((folder / case_id).glob(f"*{DICOM}"))
    found = [path for path in (find_segmentation(folder, case_id), *segmentations) if path and path.is_file()]
    if len(found) > 1:
        raise DataError(
            "several corrections of one case",
            path=folder,
            case_id=case_id,
            found=", ".join(path.relative_to(folder).as_posix() for path in found),
            expected="one",
        )
    return found[0] if found else None


def files_of_nobody(folder: Path, known: set[Path]) -> list[str]:
    """Return the names of label maps in a folder that are of no known case."""
    from segpipe.common.image_names import is_image

    files = [path for path in sorted(folder.iterdir()) if path.is_file() and (is_image(path) or path.suffix == DICOM)]
    return [path.name for path in files if path not in known]


def read_corrected(
    path: Path, image: Header, series: Series | None, labels: Mapping[int, str], ignored: int | None, start: Path | None
) -> CorrectedMap:
    """Read a corrected label map and judge it.

    Args:
        path: NIfTI or another image file, or a DICOM SEG.
        image: whose grid it has to lie on.
        series: that the image is, for a SEG.
        labels: value to name, without background.
        ignored: value of voxels on which nobody decides.
        start: the label map that it began as, to count what changed.

    Raises:
        DataError: it cannot be read, lies on another grid, or holds what is no label.
    """
    grid = replace(image, shape=image.shape[:3])
    values = _of_segments(path, series, labels) if path.suffix == DICOM else _of_image(path, grid)
    known = {0, *labels} | ({ignored} - {None})
    odd = sorted({float(value) for value in np.unique(values)} - known)
    if odd:
        raise DataError(
            "the corrected label map holds values that are no label",
            path=path,
            found=", ".join(f"{value:g}" for value in odd[:10]),
            expected=", ".join(f"{value} ({name})" for value, name in sorted(labels.items())) + ", 0 (background)",
        )
    corrected = values.astype(np.uint8)
    return CorrectedMap(corrected, _changed(corrected, start, grid))


def _of_image(path: Path, grid: Header) -> NDArray[np.generic]:
    """Return the voxels of a file on a grid; one whose axes are stored in another order is turned."""
    import nibabel as nib

    header = read_header(path)
    difference = grid_difference(grid, header)
    turn = axes_to_turn(header, grid) if difference else None
    if difference and turn is None:
        raise DataError(
            "the corrected label map does not lie on the grid of the image",
            path=path,
            found=f"image against label map: {difference}",
            expected="the same size, spacing and place",
            hint="export it with the image as the reference geometry, not cropped to what is labelled",
        )
    values = read_volume(header)
    return values if turn is None else nib.orientations.apply_orientation(values, turn)


def _of_segments(path: Path, series: Series | None, labels: Mapping[int, str]) -> NDArray[np.uint8]:
    """Return the segments of a SEG as a label map; each is called as its label is."""
    if series is None:
        raise DataError(
            "a DICOM SEG corrects a case of a DICOM series", path=path, expected="an image file, such as NIfTI"
        )
    by_name = {name.casefold(): value for value, name in labels.items()}
    segments = {name: by_name.get(name.strip().casefold(), 0) for name in open_labels(path).names}
    unknown = sum(not value for value in segments.values())
    if unknown or not segments:  # their names are free text, and stay where they are
        raise DataError(
            "segments that are called as no label",
            path=path,
            found=f"{unknown} of {len(segments)}",
            expected=", ".join(labels.values()),
            hint="name each segment as its label is called, and export it again",
        )
    values = np.zeros(series.shape or (), np.uint8)
    for name, mask in read_labels(path, series).items():
        if (mask & (values > 0)).any():
            raise DataError(
                "segments overlap", path=path, found=f"{int((mask & (values > 0)).sum())} voxels in two of them"
            )
        values[mask] = segments[name]
    return values


def _changed(values: NDArray[np.uint8], start: Path | None, grid: Header) -> int | None:
    """Return how many voxels differ from the start map; None where it is not there, or holds masks of regions."""
    if start is None or not start.is_file():
        return None
    header = read_header(start)
    if grid_difference(grid, header):
        return None
    return int(np.count_nonzero(read_volume(header) != values))


def write_corrected(corrected: CorrectedMap, image: Header, path: Path) -> None:
    """Write a label map with nothing but the grid of the image in its header.

    Raises:
        UsageError: it cannot be written.
    """
    import nibabel as nib

    written = nib.Nifti1Image(corrected.values, image.affine)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
    written.header.set_xyzt_units("mm")
    written.set_sform(image.affine, code=image.sform_code or image.qform_code)
    written.set_qform(None, code=0)
    write_nifti_whole(written, path)
