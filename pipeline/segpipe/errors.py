"""The one tree of errors that a user can meet, each with its exit code.

SegpipeError (1, a bug of ours)
 |- UsageError (2): a wrong option, config, path or place to write to
 |- DataError (3): a file whose content cannot be used
 |- RefusedError (5): something that is not trusted or not allowed to go on
A batch some of whose cases failed ends with 4, else one some of whose cases are held with 6; Ctrl-C, SIGTERM and SIGHUP
with 130.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

OK = 0
BUG = 1
USAGE = 2
BAD_DATA = 3
SOME_FAILED = 4
SOME_HELD = 6  # of a batch none of whose cases failed
REFUSED = 5
INTERRUPTED = 130


class SegpipeError(Exception):
    """An error that says what was wrong, what was found and expected, and what to do.

    Args:
        message: one sentence, without a trailing path.
        path: the file or folder that it is about; shown on the terminal, never in reports.
        found: what was there.
        expected: what should have been there.
        hint: what the user can do now.
        case_id: the case that it is about; used wherever a path must not be shown.
    """

    exit_code = BUG

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
        case_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else str(path)
        self.found = None if found is None else str(found)
        self.expected = None if expected is None else str(expected)
        self.hint = hint
        self.case_id = case_id

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.message, self.as_dict(with_path=True))

    def as_dict(self, with_path: bool = False) -> dict[str, Any]:
        """Return the error as plain values; the path only where the reader is the user's own terminal."""
        parts = {
            "message": self.message,
            "found": self.found,
            "expected": self.expected,
            "hint": self.hint,
            "case_id": self.case_id,
        }
        if with_path:
            parts["path"] = self.path
        return {name: value for name, value in parts.items() if value is not None}

    def sentence(self, root: Path) -> str:
        """Say what was wrong in one line, with the file named as it lies below ``root``."""
        file = Path(self.path) if self.path else None
        named = f"{file.relative_to(root) if file.is_relative_to(root) else file.name}: " if file else ""
        parts = [f"{name} {value}" for name in ("found", "expected") if (value := getattr(self, name)) is not None]
        return named + ", ".join([self.message, *parts])

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the error as a person reads it: what was wrong, then a line for each part."""
        parts = {name: getattr(self, name) for name in ("case_id", "path", "found", "expected", "hint")}
        shown = [f"  {name.replace('_id', '')}: {value}" for name, value in parts.items() if value is not None]
        return [self.message, *shown]


def _rebuild(kind: type[SegpipeError], message: str, parts: dict[str, Any]) -> SegpipeError:
    parts = {name: value for name, value in parts.items() if name != "message"}
    return kind(message, **parts)


class UsageError(SegpipeError):
    """A wrong option, config key, path, or a place that cannot be written to."""

    exit_code = USAGE


class DataError(SegpipeError):
    """A file whose content cannot be used: unreadable, wrong geometry, wrong labels.

    Args:
        message: as of every error.
        reason: the word for it where a DICOM series is refused, e.g. ``truncated``; None elsewhere.
        parts: as of every error.
    """

    exit_code = BAD_DATA

    def __init__(self, message: str, *, reason: str | None = None, **parts: Any) -> None:
        super().__init__(message, **parts)
        self.reason = reason

    def __reduce__(self) -> Any:
        return *super().__reduce__(), {"reason": self.reason}


class RefusedError(SegpipeError):
    """Something not trusted, or not safe to go on with.

    Args:
        message: as of `SegpipeError`.
        findings: each place that speaks against it, with ``file``, ``place``, ``text``, ``reason`` and ``name``, the
            last of which admits it; for the user's own terminal, as the path is.
        **parts: the other arguments of `SegpipeError`.
    """

    exit_code = REFUSED
    most_lines = 20

    def __init__(self, message: str, *, findings: Sequence[Mapping[str, str | None]] = (), **parts: Any) -> None:
        super().__init__(message, **parts)
        self.findings = [dict(finding) for finding in findings]

    def as_dict(self, with_path: bool = False) -> dict[str, Any]:
        """Return the error as `SegpipeError` does, with the findings."""
        findings = {"findings": self.findings} if with_path and self.findings else {}
        return {**super().as_dict(with_path), **findings}

    def lines(self) -> list[str]:
        """Return the error as `SegpipeError` does, then a line for each finding, up to ``most_lines``."""
        lines = super().lines()
        for finding in self.findings[: self.most_lines]:
            where = " ".join(part for part in (finding.get("file"), finding.get("place")) if part)
            admits = f" [--allow '{finding['name']}']" if finding.get("name") else ""
            lines.append(f"  - {where or 'archive'}: {finding.get('text')}: {finding.get('reason')}{admits}")
        if len(self.findings) > self.most_lines:
            lines.append(f"  - and {len(self.findings) - self.most_lines} more")
        return lines


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then what it was raised from or during, each once: a library may raise an error from itself."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__ or link.__context__


def ours_within(error: BaseException) -> SegpipeError | None:
    """Return the error of ours that a library wrapped in its own, or None."""
    return next((link for link in chain(error) if isinstance(link, SegpipeError)), None)


def first_cause(error: BaseException) -> BaseException:
    """Return where a chain of ``raise ... from ...`` began; the error itself where there is none."""
    links = list(chain(error))
    for link, cause in itertools.pairwise(links):
        if link.__cause__ is not cause:
            return link
    return links[-1]


def as_segpipe_error(error: Exception) -> SegpipeError:
    """Return the error as a user meets it: ours as it is, the machine's as a usage error, anything else as our bug."""
    if isinstance(error, SegpipeError):
        return error
    if isinstance(error, MemoryError):
        return UsageError("there is not enough memory", hint="close other programs, or use a larger machine")
    if isinstance(error, OSError):
        return UsageError(
            "a file or folder cannot be used",
            path=error.filename,
            found=error.strerror or str(error),
            hint="check that it is there, may be read and written, and that the disk is not full",
        )
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return SegpipeError(
        f"this is a bug in segpipe: {type(error).__name__}: {error}",
        found=f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}",
        hint="set SEGPIPE_DEBUG=1 for the whole trace and report it",
    )
