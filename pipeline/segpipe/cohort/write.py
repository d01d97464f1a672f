"""`report`: the page and the tables of many results, and on request statistics and surfaces of every label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.cohort.changes import Change, changes_of, matched, read_visits
from segpipe.cohort.meshes import MESHES, write_meshes
from segpipe.cohort.page import write_cohort_page
from segpipe.cohort.results import CohortCase, outlying, read_cohort
from segpipe.cohort.statistics import COLUMNS, label_statistics
from segpipe.common.files import cannot_write, sha256_of, write_csv
from segpipe.common.nifti import read_header, read_volume
from segpipe.common.result_folder import MAPPING, SEGMENTATION, read_lines
from segpipe.errors import DataError, SegpipeError, UsageError

PAGE, CASES, STATISTICS, SURFACES = "cohort.html", "cases.csv", "statistics.csv", "surfaces"
CHANGES = "changes.csv"


@dataclass(frozen=True)
class CohortReport:
    """What was written.

    Attributes:
        cases: that were reported on.
        outliers: number of those with an unusual volume.
        decisions: number of cases by decision.
        without_statistics: by run and id, why a case has none, or none of intensities.
        changes: how many changes of a label from one scan of a patient to the next were written.
        not_in_results: rows of the table of patients that no case belongs to, as folder and id.
        not_in_table: cases that it does not name with a patient.
    """

    cases: int
    outliers: int
    decisions: dict[str, int]
    without_statistics: dict[str, str] = field(default_factory=dict)
    changes: int = 0
    not_in_results: list[str] = field(default_factory=list)
    not_in_table: list[str] = field(default_factory=list)


def report(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    statistics: bool = False,
    meshes: Literal["stl", "obj"] | None = None,
    patients: str | Path | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> CohortReport:
    """Report on the finished cases of result folders.

    Args:
        folders: of `segpipe predict`.
        out: folder for ``cohort.html``, ``cases.csv``, and what else is asked for; what an earlier report wrote there
            is replaced or removed.
        statistics: also measure every label: ``statistics.csv``. Intensities are read from the images, where they still
            lie where they were predicted from.
        meshes: also write the surface of every label, ``surfaces/RUN/CASE/``, as such files.
        patients: table of who each case is of and when it was scanned (``case``, ``patient``, ``date``; ``folder`` and
            ``phase`` where wanted): also write how volumes change, ``changes.csv``.
        progress: called with the cases measured and of all.

    Raises:
        UsageError: no result folder, no table of patients, or ``out`` is in one of them or cannot be written to.
        DataError: a result cannot be read, or the table of patients does not tell which folder's case a row is of.
    """
    if meshes is not None and meshes not in MESHES:
        raise UsageError("no such kind of surface", found=meshes, expected=" or ".join(MESHES))
    out, places = Path(out), [Path(folder).resolve() for folder in folders]
    if inside := [place for place in places if out.resolve().is_relative_to(place)]:
        raise UsageError(
            "the report does not go into a result folder", path=out, found=inside[0].name, hint="--out report"
        )
    cases = read_cohort([Path(folder) for folder in folders])
    found = None if patients is None else matched(cases, read_visits(Path(patients)), Path(patients))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    _clear(out)
    outliers, changes = outlying(cases), [] if found is None else changes_of(found.scans)
    write_cohort_page(out / PAGE, cases, outliers, changes)
    if found is not None:
        write_csv(out / CHANGES, [asdict(change) for change in changes], [part.name for part in fields(Change)])
    labels = list(dict.fromkeys(label for case in cases for label in case.volumes_ml))
    columns = ["folder", "case", "time", "model", "decision", "reasons", "p_value", "distance", "unusual_volumes"]
    columns += [f"{label}_ml" for label in labels] + [f"{label}_predicted_dice" for label in labels]
    write_csv(out / CASES, [_row(case, outliers, labels) for case in cases], columns)
    without: dict[str, str] = {}
    if statistics or meshes:
        rows = list(_measured(cases, out, statistics, meshes, without, progress))
        if statistics:
            write_csv(out / STATISTICS, rows, ["folder", "case", "label", *COLUMNS])
    decisions = {name: sum(case.decision == name for case in cases) for name in ("ok", "look", "hold", "released")}
    decisions["not_judged"] = len(cases) - sum(decisions.values())
    unmatched = ([], []) if found is None else (found.unused, found.unknown)
    return CohortReport(len(cases), len(outliers), decisions, without, len(changes), *unmatched)


def _clear(out: Path) -> None:
    """Remove what an earlier report wrote on request: beside a new page it would pass for a part of it."""
    if not (out / PAGE).is_file():
        return
    surfaces = [file for kind in MESHES for file in (out / SURFACES).rglob(f"*.{kind}")]
    try:
        for file in (out / STATISTICS, out / CHANGES, *surfaces):
            file.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error


def _row(case: CohortCase, outliers: Mapping[tuple[str, str], Sequence[str]], labels: Sequence[str]) -> dict[str, Any]:
    return {
        "folder": case.run,
        "case": case.id,
        "time": case.time,
        "model": case.model,
        "decision": case.decision,
        "reasons": "; ".join(case.reasons),
        "p_value": case.p_value,
        "distance": case.distance,
        "unusual_volumes": "; ".join(outliers.get((case.run, case.id), ())),
        **{f"{label}_ml": case.volumes_ml.get(label) for label in labels},
        **{f"{label}_predicted_dice": case.dice.get(label) for label in labels},
    }


def _measured(
    cases: Sequence[CohortCase],
    out: Path,
    statistics: bool,
    meshes: Literal["stl", "obj"] | None,
    without: dict[str, str],
    progress: Callable[[int, int], object] | None,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each label of each case, and write its surfaces."""
    sources = {case.run: _sources(case.folder.parent) for case in cases}
    for done, case in enumerate(cases, 1):
        name = f"{case.run}/{case.id}"
        path = case.folder / SEGMENTATION
        if why := _why_not_measured(case, path):
            without[name] = why
        else:
            masks, affine = _masks(path, case)
            image = None
            if statistics:
                image, why = _image(case, path, sources[case.run].get(case.id, ()))
                if why:
                    without[name] = why
                for label, values in label_statistics(masks, affine, image).items():
                    yield {"folder": case.run, "case": case.id, "label": label, **values}
            if meshes:
                folder = out / SURFACES / case.run / case.id
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise cannot_write(folder, error) from error
                write_meshes(folder, masks, affine, meshes)
        if progress is not None:
            progress(done, len(cases))


def _why_not_measured(case: CohortCase, path: Path) -> str | None:
    """Return why a label map cannot be measured, None where it can."""
    if not path.is_file():
        return f"there is no {SEGMENTATION}; predict with --format nifti as well"
    if not case.labels:
        return "it was predicted by an older version, which did not say which value is which label"
    if case.sha256.get(SEGMENTATION) != sha256_of(path):
        return f"its {SEGMENTATION} was changed after it was predicted"
    return None


def _masks(path: Path, case: CohortCase) -> tuple[dict[str, NDArray[np.bool_]], NDArray[np.float64]]:
    """Return a mask of each label, by name, and the affine of their grid."""
    header = read_header(path)
    values = read_volume(header)
    if case.regions:
        return {name: np.asarray(values[..., number - 1] != 0) for name, number in case.labels.items()}, header.affine
    return {name: np.asarray(values == number) for name, number in case.labels.items()}, header.affine


def _sources(folder: Path) -> dict[str, list[str]]:
    """Return the files of each case, by the owner's mapping; nothing where it cannot be read."""
    try:
        lines = list(read_lines(folder / MAPPING))
    except SegpipeError:
        return {}
    return {str(line["id"]): list(line["paths"]) for line in lines if isinstance(line, dict) and "paths" in line}


def _image(case: CohortCase, labels: Path, paths: Sequence[str]) -> tuple[NDArray[Any] | None, str | None]:
    """Return the first channel of a case on the grid of its labels, or why it has none."""
    if not paths or not Path(paths[0]).is_file():
        return None, "its image is no longer where it was: no intensities"
    try:
        array, affine = _of_series(case.id, paths) if case.is_dicom else _of_file(paths[0])
    except SegpipeError as error:
        return None, f"its image cannot be read: no intensities ({error.message})"
    header = read_header(labels)
    if array.shape != header.shape[:3] or not np.allclose(affine, header.affine, atol=1e-3):
        return None, "its image is on another grid now: no intensities"
    return array, None


def _of_file(path: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    header = read_header(path)
    values = read_volume(header)
    return values[..., 0] if values.ndim == 4 else values, header.affine


def _of_series(case_id: str, paths: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    from segpipe.dicom import load_series, series_as_taken

    found = series_as_taken([Path(path) for path in paths])
    series = next((each for each in found if each.case_id == case_id and each.state == "loaded"), None)
    if series is None:
        raise DataError("its files are no longer that series", path=paths[0])
    if series.modality == "PT":
        raise DataError("it is a PET, and the table has no unit", path=paths[0])
    volume = load_series(series)
    return volume.array, volume.affine_ras
