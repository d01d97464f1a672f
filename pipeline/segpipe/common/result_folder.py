"""The result folder of a batch, shared by what writes it and what reads it.

    OUT/
      <case id>/segmentation.nii.gz   uint8 label map on the source's grid; (X, Y, Z, C) masks where regions overlap
      <case id>/probabilities.nii.gz  float32 (X, Y, Z, C) on the same grid, where they were asked for
      <case id>/probability_1.nii.gz, entropy.nii.gz   float32 of label 1, and of all, where they were asked for
      <case id>/seg.dcm, labelmap.dcm, rtstruct.dcm, sr.dcm   the same in DICOM, of a DICOM source, as asked for
      <case id>/held/                 the DICOM results of a case that is held, until a person releases them
      <case id>/release.dcm           who that was
      <case id>/overlay.png           the slice with most labelled voxels, with outlines
      <case id>/result.json           volumes, times, flags, hash of each file; no path and no header text
      summary.csv, .json, report.html all cases so far
      predictions.jsonl               append-only, the only state: what was tried and how it ended
      mapping.jsonl                   case id to source path; readable by its owner alone (0600)
      .partial/OWNER/                 cases under way, of one process; what dead ones left is cleared at every start

A case is written there and renamed once, as a folder: what has a final folder is finished.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from segpipe.common.files import cannot_write, sha256_of
from segpipe.common.image_names import ENDINGS
from segpipe.common.partial import Partial
from segpipe.errors import DataError, UsageError

FORMATS = ("nifti", "seg", "labelmap", "rtstruct", "sr")  # of a label map
SEGMENTATION = "segmentation.nii.gz"
PROBABILITIES = "probabilities.nii.gz"  # C: all classes with background (softmax), or one a label (sigmoid)
ENTROPY = "entropy.nii.gz"
RESULT = "result.json"
HELD = "held"
RELEASE = "release.dcm"
OVERLAY = "overlay.png"
SLICE = ".slice.npz"  # from the worker: what the overlay is drawn from
STATE = "predictions.jsonl"
MAPPING = "mapping.jsonl"
CORRECTIONS = "corrections.jsonl"  # of a folder of corrected label maps
SUMMARY_CSV, SUMMARY_JSON, REPORT = "summary.csv", "summary.json", "report.html"
NOT_ASKED_FOR = "it was not asked for"  # why something was not written, which nobody has to look at
RESERVED = (STATE, MAPPING, SUMMARY_CSV, SUMMARY_JSON, REPORT)  # names that no case can have


class ResultFolder:
    """One batch's results on disk.

    Raises:
        UsageError: the folder cannot be made or written to.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        try:
            self._partial = Partial(self.root)
        except OSError as error:
            raise cannot_write(self.root, error) from error

    @property
    def partial(self) -> Path:
        """The folder of the cases under way."""
        return self._partial.folder

    def close(self) -> None:
        """Clear away what is under way."""
        self._partial.close()

    def final(self, case_id: str) -> Path:
        """Return where a finished case lies."""
        return self.root / case_id

    def is_finished(self, case_id: str) -> bool:
        """Return whether the case has its final folder."""
        return (self.final(case_id) / RESULT).is_file()

    def is_taken(self, case_id: str) -> bool:
        """Return whether something that is no result lies where the case's result would go; it is never replaced."""
        return os.path.lexists(self.final(case_id)) and not self.is_finished(case_id)

    def begin(self, case_id: str) -> Path:
        """Make an empty folder to write a case into."""
        folder = self.partial / case_id
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        return folder

    def finish(self, case_id: str) -> None:
        """Rename the case's folder to its final name; an older result is replaced, anything else never."""
        final = self.final(case_id)
        try:
            for path in (self.partial / case_id).rglob("*"):
                if path.is_file():
                    with path.open("rb") as stream:
                        os.fsync(stream.fileno())
            if self.is_taken(case_id):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            self._partial.publish(case_id, final)
        except OSError as error:
            raise cannot_write(final, error) from error

    def abandon(self, case_id: str) -> None:
        """Remove what a failed case left behind."""
        shutil.rmtree(self.partial / case_id, ignore_errors=True)

    def record(self, **event: Any) -> None:
        """Append one event to ``predictions.jsonl`` and make it durable."""
        append_line(self.root / STATE, {"time": round(time.time(), 3), **event})

    def map_case(self, case_id: str, paths: list[str], **more: Any) -> None:
        """Append where a case came from, and what else tells its files again, to the owner-only mapping file."""
        append_line(self.root / MAPPING, {"id": case_id, "paths": paths, **more}, 0o600)


def hashes_of(folder: Path) -> dict[str, str]:
    """Return name to SHA-256 of each file that was written for a case, for its ``result.json``."""
    files = [*folder.iterdir(), *(folder / HELD).glob("*")]
    shown = sorted(path for path in files if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in shown if path.name != RESULT}


def decision_of(result: Mapping[str, Any]) -> str | None:
    """Return the decision on a result: ``ok``, ``look``, ``hold``, ``released`` after a hold, or None: not judged."""
    return "released" if result.get("released") else result.get("decision") or None


def require_plain_files(folder: Path, names: Iterable[str]) -> None:
    """Refuse what a bundle's code left in place of results: links, pipes, folders, or names that lead elsewhere.

    Raises:
        DataError: naming it.
    """
    entries = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(folder)}
    odd = [name for name, facts in entries.items() if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1]
    odd += [name for name in names if name not in entries]
    if odd:
        raise DataError(
            "the bundle did not write its results as plain files", found=repr(sorted(odd)[0])[:80], expected="files"
        )


def read_events(root: str | Path) -> list[dict[str, Any]]:
    """Return the events of a result folder's ``predictions.jsonl``, oldest first; none where there is no such file.

    Raises:
        DataError: a line is JSON, but not an event.
        UsageError: the file cannot be read.
    """
    path = Path(root) / STATE
    events = list(read_lines(path))
    odd = next((event for event in events if not isinstance(event, dict)), None)
    if odd is not None:
        raise DataError("not a line of predictions.jsonl", path=path, found=f"{odd!r:.60}")
    return events


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the values of a file of JSON lines, none where it is not there.

    A line that a crash or a full disk cut short is passed over: what it said is visible from the folders.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):  # no folder: whoever writes says so
        return
    except OSError as error:
        raise UsageError("cannot read what was predicted before", path=path, found=error.strerror) from error
    for line in text.split("\n"):
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def append_line(path: str | Path, document: Mapping[str, Any], mode: int = 0o666) -> None:
    """Append one line of JSON and make it durable; a line before it that a crash cut short is ended first.

    Raises:
        UsageError: the file cannot be written to, or the disk is full.
    """
    line = json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, mode)
        with os.fdopen(handle, "r+b") as stream:
            if stream.seek(0, os.SEEK_END) and os.pread(handle, 1, stream.tell() - 1) != b"\n":
                line = "\n" + line
            stream.write(line.encode(errors="backslashreplace"))  # a file name that is not UTF-8
            stream.flush()
            os.fsync(handle)
    except OSError as error:
        raise cannot_write(path, error) from error


def find_segmentation(root: str | Path, case_id: str) -> Path | None:
    """Return the label map of a case: in its result folder, or flat as stock MONAI writes it; None where there is none.

    Raises:
        UsageError: there are several, and which one is meant cannot be told.
    """
    root = Path(root)
    stock = (f"{case_id}_seg.nii.gz", f"{case_id}_0000_seg.nii.gz")  # the latter where channels are files
    names = (f"{case_id}/{SEGMENTATION}", *stock, *(f"{case_id}{ending}" for ending in ENDINGS))
    present = [name for name in names if os.path.lexists(root / name)]  # who reads a link to nothing says so
    if len(present) > 1:
        raise UsageError(
            "the case has several label maps",
            path=root,
            case_id=case_id,
            found=", ".join(present),
            hint="leave one of them there, or name a folder of one prediction's files",
        )
    return root / present[0] if present else None


def probability_name(value: int) -> str:
    """Return the file name of one label's probabilities, where only some were asked for."""
    return f"probability_{value}.nii.gz"


def case_folder(file: Path) -> Path:
    """Return the folder of the case that a result is of, held or not."""
    is_held = file.parent.name == HELD and not (file.parent / RESULT).exists()  # a case may have this name
    return file.parent.parent if is_held else file.parent


def result_root(path: Path) -> Path:
    """Return the result folder that a path means, which may be the folder of one case in it."""
    if not (path / RESULT).is_file():
        return path
    return path.parent if path.name not in ("", "..") else path.resolve().parent


def find_probabilities(root: str | Path, case_id: str) -> Path | None:
    """Return the probabilities that were kept beside a case's label map, if any."""
    path = Path(root) / case_id / PROBABILITIES
    return path if path.is_file() else None
