"""A series becomes a NIfTI file whose header says where the voxels lie, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pipeline.dicom.model import Series, Volume
from pipeline.files import write_text
from pipeline.nifti import FORMS_TOLERANCE_MM, corners_apart_mm, write_nifti_whole
from pipeline.results import MAPPING, read_lines

SCANNER = 1  # code of sform and qform: coordinates of the scanner


def write_volume(volume: Volume, path: Path) -> None:
    """Write a volume as ``.nii.gz``, whole or not at all.

    Sform and qform both place the voxels in mm. A qform cannot say a shear: where it would move a corner by more than
    0.1 mm there is none. The header has no text, except ``repaired: tilt`` or the like in ``descrip``.

    Raises:
        UsageError: it cannot be written.
    """
    import nibabel as nib

    image = nib.Nifti1Image(volume.array, volume.affine_ras)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine_ras, code=SCANNER)
    image.set_qform(volume.affine_ras, code=SCANNER)
    if corners_apart_mm(image.get_qform(), volume.affine_ras, volume.array.shape) > FORMS_TOLERANCE_MM:
        image.set_qform(None, code=0)
    if volume.repaired:
        image.header["descrip"] = f"repaired: {', '.join(volume.repaired)}"
    write_nifti_whole(image, path)


def write_mapping(folder: Path, series: Iterable[Series]) -> None:
    """Add to the owner-only ``mapping.jsonl`` which series and files a case id stands for.

    Raises:
        UsageError: it cannot be written.
    """
    path = folder / MAPPING
    known = {line["id"]: line for line in read_lines(path) if isinstance(line, dict) and "id" in line}
    for each in series:
        paths = [str(file) for file in each.files]
        known[each.case_id] = {"id": each.case_id, "paths": paths, "series_uid": each.series_uid}
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in known.values()]
    write_text(path, "".join(lines).encode(errors="backslashreplace").decode(), mode=0o600)
