"""DICOM series as NIfTI files whose headers say where the voxels lie, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segpipe.common.nifti import corners_apart_mm, forms_limit_mm, write_nifti_whole
from segpipe.common.result_folder import MAPPING, append_line, read_lines
from segpipe.dicom.captures import admitted
from segpipe.dicom.content import TOLD_BY, describe_series, has_other_content, has_other_slices
from segpipe.dicom.model import Scan, Series, Volume
from segpipe.dicom.pet_units import in_unit, parse_pet_unit
from segpipe.dicom.repair import check_repairs
from segpipe.dicom.scanning import scan
from segpipe.dicom.volume import load_series
from segpipe.errors import DataError, UsageError

REPAIRED, UNIT = "repaired: ", "unit: "
SCANNER = 1  # code of sform and qform: coordinates of the scanner


@dataclass(frozen=True)
class ConvertedSeries:
    """What became of a series: ``written``, ``kept`` (its file was there already) or ``refused`` with a reason.

    The reason is that of the series, or ``already_there``: a file of it lies there that is not what would be written.
    """

    case_id: str
    series_uid: str
    modality: str
    state: str
    reason: str | None = None
    detail: str = ""
    file: str | None = None
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    dtype: str | None = None
    repaired: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unit: str | None = None  # of a PET's values in the file, where it is known


def convert_folder(
    source: Path,
    out: Path,
    *,
    series: Sequence[str] = (),
    repair: str | Sequence[str] | None = None,
    secondary_capture: Sequence[str] = (),
    pet_unit: str | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], object] = lambda stage, done, total: None,
) -> tuple[list[ConvertedSeries], Scan]:
    """Write every series of a folder that makes a volume as ``OUT/CASE_ID.nii.gz``.

    Args:
        source: a folder, with all below it.
        out: to write to; ``mapping.jsonl`` there names the series of each case id, for its owner alone.
        series: only these SeriesInstanceUIDs and case ids.
        repair: ``tilt``, ``spacing`` or both, as of `load_series`.
        secondary_capture: SeriesInstanceUIDs and case ids of Secondary Captures to take.
        pet_unit: ``SUVbw``, to which PET is converted, or the unit that it has to be stored in; None: as it is.
        overwrite: write again what is there already.
        progress: called with the stage, and how much of it is done, of how much.

    Returns:
        What became of each series, and the tree that they were found in.

    Raises:
        UsageError: no such folder, repair, series or unit, or a file cannot be written.
        DataError: there is no series.
    """
    repairs, unit = check_repairs(repair), parse_pet_unit(pet_unit)
    tree = scan(source, progress=lambda done, total: progress("reading headers", done, total))
    named = {*series, *secondary_capture}
    chosen = [
        in_unit(member, unit)
        for member in admitted(_choose(tree, series), repairs, secondary_capture, across_gaps=True)
        if not member.is_picture or {member.series_uid, member.case_id} & named
    ]
    if not chosen:
        raise _no_series(tree)
    known = _mapped(out) if out.is_dir() else {}
    converted = []
    for number, member in enumerate(chosen):
        progress("converting", number, len(chosen))
        before = known.get(member.case_id, {})
        result = _convert(member, tree.root, out, overwrite, before)
        converted.append(result)
        if result.state != "refused":
            kept = {name: before[name] for name in TOLD_BY if name in before}
            about = describe_series(member) if result.state == "written" else kept
            _add_line(out, member, before, about)
    return converted, tree


def _no_series(tree: Scan) -> DataError:
    return DataError(
        "there is no DICOM series",
        path=tree.root,
        found=tree.others,
        expected="slices of CT, MR, PET or the like",
        hint="`segpipe scan` lists the files; give the folder of the images",
    )


def _choose(tree: Scan, uids: Sequence[str]) -> list[Series]:
    if not tree.series:
        raise _no_series(tree)
    for name in uids:
        if not any(name in (series.series_uid, series.case_id) for series in tree.series):
            raise UsageError("no such series", found=name, hint="`segpipe scan` lists those that are there")
    return [series for series in tree.series if not uids or {series.series_uid, series.case_id} & set(uids)]


def _convert(series: Series, root: Path, out: Path, overwrite: bool, known: Mapping[str, Any]) -> ConvertedSeries:
    refused = ConvertedSeries(
        series.case_id,
        series.series_uid,
        series.modality,
        "refused",
        reason=series.reason,
        detail=series.detail,
        notes=series.notes,
    )
    if series.state == "refused":
        return refused
    path = out / f"{series.case_id}.nii.gz"
    unit = series.converted_to or series.units or None
    if path.is_file() and not overwrite:
        reason, words = _difference(series, path, known)
        if reason:
            detail = f"its file is there already, {words}. Give --overwrite, or another folder."
            return replace(refused, reason=reason, detail=detail)
        return replace(
            refused, state="kept", reason=None, detail="", file=path.name, repaired=series.repaired, unit=unit
        )
    try:
        volume = load_series(series)
    except DataError as error:
        return replace(refused, reason=error.reason or series.reason, detail=_sentence(error, root))
    write_volume(volume, path)
    return replace(
        refused,
        state="written",
        reason=None,
        detail="",
        file=path.name,
        shape=volume.array.shape,
        spacing_mm=tuple(round(edge, 6) for edge in volume.spacing_mm),
        dtype=str(volume.array.dtype),
        repaired=volume.repaired,
        notes=volume.notes,
        unit=unit,
    )


def _difference(series: Series, path: Path, known: Mapping[str, Any]) -> tuple[str, str]:
    """Return by which reason, and in which words, a file that is there is not what would be written; empty: it is."""
    unit, repaired = _said(path, UNIT), _said(path, REPAIRED)
    if unit != series.converted_to:
        stored = "values as stored"
        return "pet_unit", f"in {unit or stored}; expected {series.converted_to or stored}"
    if repaired != ", ".join(series.repaired):
        asked = ", ".join(series.repaired) or "none is needed now"
        return "already_there", f"with slices made up or resampled (repaired: {repaired or 'no'}); expected: {asked}"
    if "slices" in known and has_other_slices(series, known):
        return "already_there", "of other slices than are here now"
    if has_other_content(series, known):
        return "already_there", "of slices of the same UIDs that show or lie otherwise"
    return "", ""


def _said(path: Path, word: str) -> str:
    """Return what a file's header says of its values behind a word; empty where it says nothing."""
    import nibabel as nib

    try:
        words = bytes(nib.load(path).header["descrip"]).decode("ascii", "ignore")  # type: ignore[attr-defined, unused-ignore]
    except Exception:  # noqa: BLE001 - whatever lies there is kept as it is
        return ""
    return next((part.removeprefix(word) for part in words.strip("\0 ").split("; ") if part.startswith(word)), "")


def _sentence(error: DataError, root: Path) -> str:
    """Return an error as one sentence, with the file as the scan names it."""
    file = Path(error.path) if error.path else None
    named = f"{file.relative_to(root) if file.is_relative_to(root) else file.name}: " if file else ""
    found = f"; found {error.found}" if error.found else ""
    return f"{named}{error.message}{found}. {error.hint or ''}".strip()


def write_volume(volume: Volume, path: Path) -> None:
    """Write a volume as ``.nii.gz``, whole or not at all.

    Sform and qform both place the voxels in mm. A qform cannot say a shear: where it would move a corner by more than
    0.1 mm there is none. The header has no text, except ``repaired: tilt; unit: SUVbw`` or the like in ``descrip``.

    Raises:
        UsageError: it cannot be written.
    """
    import nibabel as nib

    image = nib.Nifti1Image(volume.array, volume.affine_ras)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine_ras, code=SCANNER)
    image.set_qform(volume.affine_ras, code=SCANNER)
    if corners_apart_mm(image.get_qform(), volume.affine_ras, volume.array.shape) > forms_limit_mm(volume.affine_ras):
        image.set_qform(None, code=0)
    said = [f"{REPAIRED}{', '.join(volume.repaired)}"] if volume.repaired else []
    said += [f"{UNIT}{volume.series.converted_to}"] if volume.series.converted_to else []
    image.header["descrip"] = "; ".join(said)
    write_nifti_whole(image, path)


def write_mapping(folder: Path, series: Iterable[Series]) -> None:
    """Add to the owner-only ``mapping.jsonl`` which series and files a case id stands for.

    Raises:
        UsageError: it cannot be written.
    """
    known = _mapped(folder)
    for member in series:
        _add_line(folder, member, known.get(member.case_id, {}))


def _add_line(folder: Path, series: Series, before: Mapping[str, Any], about: Mapping[str, str] | None = None) -> None:
    """Append a line, unless it is there: what others append at the same time stays."""
    paths = [str(file) for file in series.files]
    line = {"id": series.case_id, "paths": paths, "series_uid": series.series_uid, **(about or {})}
    if line != before:
        append_line(folder / MAPPING, line, 0o600)


def _mapped(folder: Path) -> dict[str, dict[str, Any]]:
    return {line["id"]: line for line in read_lines(folder / MAPPING) if isinstance(line, dict) and "id" in line}
