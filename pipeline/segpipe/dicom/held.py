"""Results of held cases: which they are, and how a person lets them go on.

A release is no clinical verification: it says that somebody looked, and who.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segpipe.common.files import cannot_write, read_json, sha256_of, write_json
from segpipe.common.result_folder import HELD, RELEASE, RESULT, STATE, append_line, case_folder, hashes_of
from segpipe.dicom.write import check_name, write_release
from segpipe.errors import DataError, SegpipeError, UsageError

ONE_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")  # as every case id is


def why_held(file: Path) -> str | None:
    """Return why a result may not be sent: the reasons of the decision on its case; None where it may.

    Where nobody can tell, it may not. A folder without a ``result.json`` is no case of a batch: nothing is held there.
    """
    folder = case_folder(file)
    lies_there = folder != file.parent
    if not (folder / RESULT).exists():
        return "it lies in a folder of held results" if lies_there else None
    try:
        result = read_json(folder / RESULT)
        held = result.get("decision") == "hold" and not result.get("released")
        reasons = "; ".join(result.get("reasons", []))
    except (SegpipeError, AttributeError, TypeError):
        return "its result.json cannot be read, so nobody can tell whether it is held"
    return (reasons or "it lies in a folder of held results") if held or lies_there else None


def release_held(
    folder: Path, case_ids: Sequence[str], by: str, *, progress: Callable[[str, bool], object] = lambda case, now: None
) -> None:
    """Let the results of held cases go on: into their folders, with a report in each that names who said so.

    All are judged before anything moves. Who it was is also a line of ``predictions.jsonl``, written before the case is
    moved; a release that was interrupted is finished by another one. A case that was released before stays as it is, so
    that the same call can be made again.

    Args:
        folder: the result folder.
        case_ids: of the cases.
        by: name of the person, as `segpipe.dicom.write.release.check_name` takes it.
        progress: called with each case, and whether it was released now.

    Raises:
        UsageError: no such folder or case, one is not held, no name, or a file cannot be written.
        DataError: results are not those that were written, or were computed anew meanwhile.
    """
    by = check_name(by)
    if not folder.is_dir():
        raise UsageError("no such result folder", path=folder, hint="check the path")
    wanted = dict.fromkeys(case_ids)
    for case_id, held in {case_id: _held(folder, case_id, alone=len(wanted) == 1) for case_id in wanted}.items():
        if held:
            _release(folder, case_id, by, *held)
        progress(case_id, held is not None)


def _held(folder: Path, case_id: str, *, alone: bool) -> tuple[dict[str, Any], list[Path]] | None:
    """Return what ``result.json`` of a held case says, and its DICOM results; None where it was released before."""
    case = folder / case_id
    if not ONE_FOLDER.match(case_id) or not (case / RESULT).is_file():
        raise UsageError("there is no such case", path=folder, found=case_id, hint="give one that `send` names as held")
    result = read_json(case / RESULT, "result")
    if not isinstance(result, dict) or result.get("decision") != "hold":
        left_out = f"--release {case_id}" + (" and --by" if alone else "")
        raise UsageError("the case is not held", case_id=case_id, hint=f"leave {left_out} out")
    if result.get("released"):
        return None
    return result, [_found(case, name, result) for name in result.get("files", {}).values() if name.endswith(".dcm")]


def _release(folder: Path, case_id: str, by: str, result: dict[str, Any], results: list[Path]) -> None:
    case = folder / case_id
    now = round(time.time(), 3)
    report = case / HELD / RELEASE
    if results:
        report.parent.mkdir(exist_ok=True)
        write_release(results, report, by=by, time=now, case_id=case_id)
    append_line(folder / STATE, {"time": now, "event": "released", "id": case_id, "by": by})
    try:
        for file in [*results, *([report] if results else [])]:
            file.replace(case / file.name)
        _remove_empty(case / HELD)
    except OSError as error:
        raise cannot_write(case, error) from error
    files = {format: Path(name).name for format, name in result.get("files", {}).items()}
    told = {"time": now, "report": RELEASE if results else None}
    hashes = {name: value for name, value in hashes_of(case).items() if Path(name).parent.name != HELD}
    if read_json(case / RESULT, "result") != result:
        raise DataError(
            "a held case was computed anew while it was released",
            case_id=case_id,
            found="another result.json than was released",
            hint="check it again; it is held as before",
        )
    write_json(case / RESULT, {**result, "files": files, "sha256": hashes, "released": told})


def _remove_empty(folder: Path) -> None:
    """Remove a folder; one that is not there, or holds what others laid into it, stays as it is."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise


def _found(case: Path, name: str, result: dict[str, Any]) -> Path:
    """Return where a held result lies, which an interrupted release may have moved; its bytes are those of before."""
    places = [path for path in (case / name, case / Path(name).name) if path.is_file()]
    if not places or sha256_of(places[0]) != result.get("sha256", {}).get(name):
        raise DataError(
            "a held result is not the file that was written",
            case_id=case.name,
            found=name if places else f"no {name}",
            hint="make it again: `segpipe predict --overwrite`",
        )
    return places[0]
