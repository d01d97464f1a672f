"""Send the DICOM results of a folder to an archive, each file once, with a record of what arrived."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep, time
from typing import Any

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from segpipe.common.files import sha256_of
from segpipe.common.partial import PARTIAL
from segpipe.common.result_folder import append_line, case_folder, read_lines
from segpipe.dicom.held import why_held
from segpipe.dicom.privacy import no_header_text
from segpipe.dicom.transport import Archive, DicomFile, NotStoredError, open_archive
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
    """How it ended with one file.

    Attributes:
        file: which.
        status: ``sent``, ``skipped`` (the archive has it from before), ``failed`` or ``held`` (it is not to be sent).
        attempts: how often it was tried.
        reason: why it failed or is held, without header text.
    """

    file: ResultFile
    status: str
    attempts: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Superseded:
    """What an archive confirmed of a case, and is no result of the case now.

    Attributes:
        case_id: of the case.
        kind: SEG, RTSTRUCT or SR.
        sop_instance_uid: names it in the archive.
        time: when it was sent last, in seconds since 1970.
    """

    case_id: str
    kind: str
    sop_instance_uid: str
    time: float


@dataclass(frozen=True)
class Delivery:
    """What became of a folder's results.

    Attributes:
        archive: where to, without credentials.
        files: each result, sorted by name.
        passed_over: number of other DICOM files.
        superseded: what went to this archive before and is no result now; oldest first.
    """

    archive: str
    files: tuple[Sending, ...]
    passed_over: int
    superseded: tuple[Superseded, ...] = ()


def send_results(
    folder: Path,
    to: str,
    *,
    calling: str = "SEGPIPE",
    ca: Path | None = None,
    verify: bool = True,
    again: bool = False,
    retries: int = 3,
    progress: Callable[[Sending, int], object] = lambda sending, total: None,
) -> Delivery:
    """Send a folder's SEG, RTSTRUCT and SR, and write down in its ``sent.jsonl`` what became of each.

    Results of held cases stay, whatever is asked for: `release` lets them go on.

    Args:
        folder: the result folder.
        to: ``https://HOST/dicom-web`` (STOW-RS) or ``AET@HOST:PORT`` (C-STORE).
        calling: our AE title, for C-STORE.
        ca: certificates to trust instead of the system's.
        verify: check the server's certificate.
        again: send what was sent there before, too.
        retries: further tries of a file where the trouble may pass, after 1, 2, 4 ... seconds.
        progress: called with what became of a file, and the number of all files.

    Raises:
        UsageError: no such folder, a destination that cannot be read, or ``sent.jsonl`` cannot be written.
        DataError: the folder has no result that could be sent.
        RefusedError: a password or token would travel in clear text.
    """
    files, passed_over = _find_results(folder)
    archive = open_archive(to, files, calling=calling, ca=ca, verify=verify)
    confirmed = _confirmed(folder, archive.name)
    before = {(str(line.get("sop_instance_uid")), str(line.get("sha256"))) for line in confirmed}
    sendings: list[Sending] = []
    unreachable: str | None = None
    try:
        for file in files:
            if held := why_held(file.path):
                sending = Sending(file, "held", 0, held)
            elif (file.sop_instance_uid, file.sha256) in before and not again:
                sending = Sending(file, "skipped")
            elif unreachable:
                sending = Sending(file, "failed", 0, f"not tried: {unreachable}")
            else:
                sending, gave_up = _send(file, archive, retries)
                unreachable = sending.reason if gave_up else None
                _record(folder, archive.name, sending)
            sendings.append(sending)
            progress(sending, len(files))
    finally:
        archive.close()
    return Delivery(archive.name, tuple(sendings), passed_over, _superseded(confirmed, files))


def _find_results(folder: Path) -> tuple[list[ResultFile], int]:
    """Return the results of a folder, sorted by name, and how many other DICOM files there are."""
    if not folder.is_dir():
        raise UsageError("no such result folder", path=folder, hint="check the path")
    files, passed_over = [], 0
    for path in sorted(folder.rglob("*.dcm")):
        if PARTIAL not in path.relative_to(folder).parts and path.is_file():
            result = _read(path, folder)
            files += [result] if result else []
            passed_over += result is None
    if not files:
        raise DataError(
            "the folder has no DICOM result",
            path=folder,
            expected="SEG, RTSTRUCT or SR below it",
            hint="make them with `segpipe predict BUNDLE DIR OUT --format nifti,seg,rtstruct,sr`",
        )
    return files, passed_over


def _read(path: Path, folder: Path) -> ResultFile | None:
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
        case_id=case_folder(path.resolve()).name,
        kind=kind,
        sha256=sha256_of(path),
    )


def _send(file: ResultFile, archive: Archive, retries: int) -> tuple[Sending, bool]:
    """Send one file; return what became of it, and whether there is no use in trying others."""
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


def _record(folder: Path, to: str, sending: Sending) -> None:
    line: dict[str, Any] = {
        "time": round(time(), 3),
        "to": to,
        "status": sending.status,
        "case_id": sending.file.case_id,
        "file": sending.file.name,
        "kind": sending.file.kind,
        "sop_instance_uid": sending.file.sop_instance_uid,
        "sha256": sending.file.sha256,
        "attempts": sending.attempts,
    }
    append_line(folder / SENT, line | ({"reason": sending.reason} if sending.reason else {}))


def _confirmed(folder: Path, to: str) -> list[dict[str, Any]]:
    """Return the lines of what this archive confirmed."""
    return [
        line
        for line in read_lines(folder / SENT)
        if isinstance(line, dict) and line.get("status") == "sent" and line.get("to") == to
    ]


def _superseded(confirmed: Sequence[Mapping[str, Any]], files: Sequence[ResultFile]) -> tuple[Superseded, ...]:
    """Return what was sent of cases and is not among their results now, which may be held."""
    now = {file.sop_instance_uid for file in files}
    found = {}
    for line in confirmed:
        uid, when = str(line.get("sop_instance_uid")), line.get("time")
        if uid not in now and isinstance(when, (int, float)):
            found[uid] = Superseded(str(line.get("case_id")), str(line.get("kind")), uid, when)
    return tuple(found.values())
