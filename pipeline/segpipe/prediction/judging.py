"""From what was measured of a case's quality to its decision, and to what lies where because of it.

The worker decides before it writes DICOM, which says the decision; the batch decides again by the same rules, puts
the DICOM results of a held case aside, and is the one that counts. A finished case is judged anew by other rules from
what its ``result.json`` holds, without being computed again.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.common.files import cannot_write, sha256_of
from segpipe.common.result_folder import HELD, SEGMENTATION, decision_of, hashes_of
from segpipe.errors import DataError
from segpipe.quality import HOLD, NO_QUALITY_MODEL, Assessment, Judged, Rules

if TYPE_CHECKING:
    from segpipe.bundle import Bundle
    from segpipe.dicom import Series


def shown_quality(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what is shown of the quality of a case: of one that is or was held no bound and no interval."""
    quality: dict[str, Any] | None = result.get("quality")
    if quality is None or result.get("decision") != HOLD:
        return quality
    return Assessment.from_dict(quality).without_bounds().as_dict()


def is_held(result: Mapping[str, Any]) -> bool:
    """Return whether a result is held, and nobody released it."""
    return result.get("decision") == HOLD and result.get("released") is None


def about_quality(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tables and documents say of the quality of a case, finished by whichever version."""
    return {
        "decision": result.get("decision"),
        "reasons": list(result.get("reasons", [])),
        "released": None if result.get("decision") != HOLD else result.get("released") is not None,
        "quality": shown_quality(result),
    }


def count_decisions(results: list[Mapping[str, Any]]) -> dict[str, int]:
    """Count results by decision; a released one counts as such alone."""
    names = [decision_of(result) or "not_judged" for result in results]
    return {name: names.count(name) for name in ("ok", "look", "hold", "released", "not_judged")}


def not_judged_note(counts: Mapping[str, int]) -> str | None:
    """Return what is said once where results were not judged."""
    return f"{counts['not_judged']} {NO_QUALITY_MODEL}" if counts["not_judged"] else None


def put_aside(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Move the DICOM results of a held case into its folder ``held``; return the names of all its results.

    Raises:
        UsageError: they cannot be moved.
    """
    placed = dict(files)
    for format, name in files.items():
        if format != "nifti":
            try:
                (folder / HELD).mkdir(exist_ok=True)
                (folder / name).replace(folder / HELD / name)
            except OSError as error:
                raise cannot_write(folder / HELD, error) from error
            placed[format] = f"{HELD}/{name}"
    return placed


def judged_anew(result: Mapping[str, Any], rules: Rules) -> Judged | None:
    """Return what other rules say of a finished case; None where it stays as it is.

    A case that a person released is left to that person.

    Raises:
        DataError: what ``result.json`` says of its quality cannot be.
    """
    if result.get("quality") is None or result.get("released") or result.get("rules") == rules.as_dict():
        return None
    judged = Judged.of(result["quality"], result.get("flags", {}), rules)
    said = judged.as_result()
    return None if all(said[name] == result.get(name) for name in ("decision", "reasons")) else judged


def has_dicom(result: Mapping[str, Any]) -> bool:
    """Return whether a case has DICOM results, which say a decision."""
    return any(name != "nifti" for name in result.get("files", {}))


def rewrite(
    judged: Judged, result: Mapping[str, Any], before: Path, folder: Path, bundle: Bundle, series: Series | None
) -> dict[str, Any]:
    """Write a finished case anew with another decision: its files as they were, but for DICOM, which says it.

    Args:
        judged: what is decided now.
        result: ``result.json`` of before.
        before: folder of the finished case.
        folder: an empty one.
        bundle: that made it.
        series: the source of the DICOM results; None where there are none.

    Returns:
        ``result.json`` of now, not written yet.

    Raises:
        DataError: the label map is not the one that was written.
        UsageError: a file cannot be written.
    """
    formats = [name for name in result.get("files", {}) if name != "nifti"]
    dicom = {Path(result["files"][name]).name for name in formats}
    for path in before.iterdir():
        if path.is_file() and path.name not in dicom:
            try:
                shutil.copy2(path, folder / path.name)
            except OSError as error:
                raise cannot_write(folder / path.name, error) from error
    files = {name: file for name, file in result.get("files", {}).items() if name == "nifti"}
    not_written = dict(result.get("not_written", {}))
    if formats and series is not None:
        written, refused = _write_dicom(judged, result, folder, bundle, series, formats)
        files |= put_aside(folder, written) if judged.is_held else written
        not_written |= refused
    now = {**result, **judged.as_result(), "files": files, "not_written": not_written}
    return {**now, "sha256": hashes_of(folder)}


def _write_dicom(
    judged: Judged, result: Mapping[str, Any], folder: Path, bundle: Bundle, series: Series, formats: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    import nibabel as nib
    import numpy as np

    from segpipe.dicom import AlgorithmInfo, label_infos, write_dicom

    path = folder / result["files"]["nifti"]
    if sha256_of(path) != result.get("sha256", {}).get(SEGMENTATION):
        raise DataError(
            "the label map of a finished case is not the one that was written",
            path=path,
            hint="give --overwrite to compute it again",
        )
    labels = np.asarray(nib.load(path).dataobj, dtype=np.uint8)
    regions = int(result.get("regions", 0))
    if regions:  # from a mask for each to a bit for each
        masks, labels = labels, np.zeros(labels.shape[:3], np.uint8)
        for index in range(regions):
            labels |= masks[..., index] << index
    infos, _ = label_infos(bundle.labels, {"name": bundle.name, "codes": bundle.metadata.get("codes")})
    algorithm = AlgorithmInfo(
        name=bundle.name,
        version=bundle.version,
        bundle_sha256=bundle.sha256,
        averaged_with=tuple(other["sha256"] for other in result.get("ensemble", ())),
        mirror=tuple(result.get("mirror", ())),
    )
    judgement = judged.judgement(bundle.root)
    return write_dicom(
        folder, formats, series, labels, dict(result["volumes_ml"]), infos, algorithm, regions, judgement
    )
