"""Sending a folder's DICOM results to an archive, each file once, with a record of what arrived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import sleep, time
from typing import Any

from segpipe.common.files import append_line, sha256_of
from segpipe.common.result_folder import PARTIAL, read_lines
from segpipe.dicom.privacy import no_header_text
from segpipe.dicom.transport import Archive, DicomFile, NotStoredError
from segpipe.errors import DataError, UsageError

SENT = "sent.jsonl"
KINDS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",
    "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT",
    "1.2.840.10008.5.1.4.1.1.88.22": "SR",
    "1.2.840.10008.5.1.4.1.1.88.33": "SR",
    "1.2.840.10008.5.1.4.1.1.88.34": "SR",
}


@dataclass(frozen=True)
class ResultFile(DicomFile):
    """A DICOM result of a folder.

    Attributes:
        name: path within the folder; case ids and file names of ours.
        case_id: folder that it lies in.
        kind: SEG, RTSTRUCT or SR.
        sha256: of its bytes.
    """

    name: str
    case_id: str
    kind: str
    sha256: str


@dataclass(frozen=True)
class Sending:
    """How it ended with one file: ``sent``, ``skipped`` (the archive has it from before) or ``failed``."""

    file: ResultFile
    status: str
    attempts: int = 0
    reason: str | None = None


def find_results(folder: Path) -> tuple[list[ResultFile], int]:
    """DICOM results of a folder, sorted by name, and how many other DICOM files were passed over.

    Raises:
        UsageError: there is no such folder.
        DataError: it has no result that could be sent.
    """
    if not folder.is_dir():
        raise UsageError("no such result folder", path=folder, hint="check the path")
    files, others = [], 0
    for path in sorted(folder.rglob("*.dcm")):
        if PARTIAL not in path.relative_to(folder).parts and path.is_file():
            found = _read(path, folder)
            files += [found] if found else []
            others += found is None
    if not files:
        raise DataError(
            "the folder has no DICOM result",
            path=folder,
            expected="SEG, RTSTRUCT or SR below it",
            hint="make them with `segpipe predict BUNDLE DIR OUT --format nifti,seg,rtstruct,sr`",
        )
    return files, others


def _read(path: Path, folder: Path) -> ResultFile | None:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        with no_header_text():
            header = dcmread(path, specific_tags=["SOPClassUID", "SOPInstanceUID"], stop_before_pixels=True)
    except (InvalidDicomError, EOFError):
        return None
    except OSError as error:
        raise UsageError("a result cannot be read", path=path, found=error.strerror) from error
    kind = KINDS.get(str(header.get("SOPClassUID", "")))
    syntax = str(header.file_meta.get("TransferSyntaxUID", ""))
    if kind is None or not syntax or "SOPInstanceUID" not in header:
        return None
    return ResultFile(
        path,
        str(header.SOPClassUID),
        str(header.SOPInstanceUID),
        syntax,
        name=path.relative_to(folder).as_posix(),
        case_id=path.resolve().parent.name,
        kind=kind,
        sha256=sha256_of(path),
    )


def send_results(
    folder: Path,
    files: list[ResultFile],
    archive: Archive,
    *,
    again: bool = False,
    retries: int = 3,
    on_sending: Callable[[Sending], None] = lambda _: None,
) -> list[Sending]:
    """Send files, and write down in ``sent.jsonl`` of the folder what became of each.

    Args:
        folder: the result folder.
        files: of `find_results`.
        archive: where to; closed at the end.
        again: send what was sent there before, too.
        retries: further tries of a file where the trouble may pass, after 1, 2, 4 ... seconds.
        on_sending: called with each outcome.

    Raises:
        UsageError: ``sent.jsonl`` cannot be written.
    """
    before = _sent_before(folder, archive.name)
    outcomes: list[Sending] = []
    unreachable: str | None = None
    try:
        for file in files:
            if (file.sop_instance_uid, file.sha256) in before and not again:
                outcome = Sending(file, "skipped")
            elif unreachable:
                outcome = Sending(file, "failed", 0, f"not tried: {unreachable}")
            else:
                outcome, gave_up = _send(file, archive, retries)
                unreachable = outcome.reason if gave_up else None
                _record(folder, archive.name, outcome)
            outcomes.append(outcome)
            on_sending(outcome)
    finally:
        archive.close()
    return outcomes


def _send(file: ResultFile, archive: Archive, retries: int) -> tuple[Sending, bool]:
    """One file, and whether there is no use in trying others."""
    attempt = 0
    while True:
        attempt += 1
        try:
            archive.store(file)
        except NotStoredError as error:
            if error.again and attempt <= retries:
                sleep(2.0 ** (attempt - 1))
                continue
            return Sending(file, "failed", attempt, error.reason), error.unreachable
        return Sending(file, "sent", attempt), False


def _record(folder: Path, to: str, outcome: Sending) -> None:
    line: dict[str, Any] = {
        "time": round(time(), 3),
        "to": to,
        "status": outcome.status,
        "case_id": outcome.file.case_id,
        "file": outcome.file.name,
        "kind": outcome.file.kind,
        "sop_instance_uid": outcome.file.sop_instance_uid,
        "sha256": outcome.file.sha256,
        "attempts": outcome.attempts,
    }
    append_line(folder / SENT, line | ({"reason": outcome.reason} if outcome.reason else {}))


def _sent_before(folder: Path, to: str) -> set[tuple[str, str]]:
    """Instance and content of what this archive confirmed."""
    return {
        (str(line.get("sop_instance_uid")), str(line.get("sha256")))
        for line in read_lines(folder / SENT)
        if isinstance(line, dict) and line.get("status") == "sent" and line.get("to") == to
    }
