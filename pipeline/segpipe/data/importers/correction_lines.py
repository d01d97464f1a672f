"""What ``corrections.jsonl`` says of label maps that came back: who drew each, for how long, and what it began with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field

from segpipe.common.result_folder import CORRECTIONS
from segpipe.common.result_records import Sha256, read_records


class CorrectionLine(BaseModel):
    """A line of ``corrections.jsonl``, which `segpipe view --edit` writes at each save."""

    id: str | None = None
    annotator: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    date: str | None = None
    sha256: Sha256 | None = None
    start_sha256: Sha256 | None = None
    minutes: float | None = Field(default=None, ge=0, allow_inf_nan=False)


@dataclass(frozen=True)
class CorrectionLines:
    """All lines of a folder, oldest first."""

    lines: tuple[CorrectionLine, ...]

    def of(self, digest: str) -> CorrectionLine:
        """Return what is said of a file, by its SHA-256; an empty line where nothing is."""
        return next((line for line in reversed(self.lines) if line.sha256 == digest), CorrectionLine())

    def start(self, id: str, digest: str) -> str | None:
        """Return the SHA-256 of what a file began with; of one that another tool wrote since, of the case's last line.

        None where it was drawn from scratch, or nobody knows.
        """
        said = next((line for line in reversed(self.lines) if line.sha256 == digest), None)
        last = next((line for line in reversed(self.lines) if line.id == id), None)
        line = said or last
        return None if line is None else line.start_sha256


def read_correction_lines(folder: Path) -> CorrectionLines:
    """Read what is said of the label maps in a folder.

    Raises:
        DataError: a line is none of ours.
    """
    return CorrectionLines(tuple(read_records(folder / CORRECTIONS, CorrectionLine)))
