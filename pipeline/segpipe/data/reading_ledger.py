"""The ledger of a test set, beside its manifest: each model that was measured on it, when, and what for.

Whoever measures many models on one test set and keeps the best has trained on it. So each reading is counted, and the
count stands beside the figures. One model that is measured again is one reading: it shows nothing new.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segpipe.common.files import read_json, write_json
from segpipe.data.manifest import Manifest
from segpipe.errors import DataError, SegpipeError, UsageError

TEST_READINGS = "test_readings.json"
MOST_LETTERS = 500  # of a reason
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)  # a file system without locks of folders


class MeasuredBundle(BaseModel):
    """The bundle that made the label maps, as results name it."""

    model_config = ConfigDict(extra="forbid")

    name: str
    version: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Reading(BaseModel):
    """One model that was measured on the test set."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="Hash of what decides on a label map: weights, config, post-processing, ensemble, mirrored axes. "
        "Where the model is not known, of the label maps.",
    )
    bundle: MeasuredBundle | None = Field(None, description="Null where it is not known what made the label maps.")
    manifest_sha256: str = Field(description="Of the manifest as it was then.")
    cases: int = Field(ge=1, description="Test cases that were measured.")
    reason: str | None = Field(None, description="What they were measured for, in the words of who did it.")
    date: str = Field(description="When it was first measured, in UTC.")
    last: str = Field(description="When it was last measured.")
    times: int = Field(1, ge=1, description="How often it was measured; it counts once.")


class _Ledger(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_version: int = Field(1, ge=1, le=1)
    readings: list[Reading] = Field(default_factory=list)


@dataclass(frozen=True)
class Readings:
    """How often a test set has been read.

    Attributes:
        count: models that were measured on it, this one among them; None where nothing counts them.
        file: name of the ledger beside the manifest; None where there is none.
        note: why this reading does not stand in a ledger; empty where it does.
        reason: what it was measured for, if that was said.
    """

    count: int | None
    file: str | None
    note: str = ""
    reason: str | None = None

    def document(self) -> dict[str, Any]:
        """Return what metrics.json has of it."""
        return {"count": self.count, "file": self.file, "reason": self.reason, "note": self.note or None}


def ledger_path(manifest: str | Path) -> Path:
    """Return where the ledger of a manifest's test set lies: ``manifest.test_readings.json`` of ``manifest.json``."""
    path = Path(manifest).resolve()
    return path.with_name(f"{path.stem}.{TEST_READINGS}")


def readings_of(manifest: str | Path | Manifest) -> list[Reading]:
    """Return the readings of a manifest's test set, the oldest first; none where no ledger lies beside it.

    Raises:
        DataError: the ledger cannot be used.
    """
    if isinstance(manifest, Manifest):
        return []
    path = ledger_path(manifest)
    if not path.is_file():
        return []
    hint = "put a copy of it back; without it the count of readings begins anew"
    document = read_json(path, "ledger of test readings", hint)
    try:
        return _Ledger.model_validate(document).readings
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            "the ledger of test readings is not valid",
            path=path,
            found=f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}",
            expected="what `segpipe evaluate` wrote",
            hint=hint,
        ) from error


def checked_reason(reason: str | None) -> str | None:
    """Return what a reading is for, in one line.

    Raises:
        UsageError: it is empty, or no short text.
    """
    if reason is None:
        return None
    words = " ".join(str(reason).split())
    if not words or len(words) > MOST_LETTERS or not words.isprintable():
        raise UsageError(
            "not a reason",
            found=f"{len(words)} characters",
            expected=f"1 to {MOST_LETTERS} characters in words",
            hint="say in a line what the test set is read for, or leave --reason out",
        )
    return words


def record_reading(
    manifest: str | Path | Manifest,
    model: str,
    bundle: dict[str, str] | None,
    manifest_sha256: str,
    cases: int,
    reason: str | None = None,
) -> Readings:
    """Write a reading into the ledger beside a manifest, and return how many there are.

    Where the ledger cannot be written the reading still counts, and the note says why it does not stand there.

    Args:
        manifest: whose test cases were measured.
        model: hash of what made the label maps, or of the label maps.
        bundle: ``name``, ``version`` and ``sha256``, or None.
        manifest_sha256: of the manifest.
        cases: how many were measured.
        reason: as `checked_reason` gives it.

    Raises:
        DataError: the ledger cannot be used.
    """
    if isinstance(manifest, Manifest):
        return Readings(None, None, "a manifest in memory has no ledger", reason)
    path = ledger_path(manifest)
    copied = _copied_into(path.parent)
    if copied:
        note = f"the manifest is the copy in {copied}, which begins no count: evaluate with the manifest of the data"
        return Readings(None, None, note, reason)
    now = datetime.now(UTC).isoformat("T", "seconds")
    made_by = None if bundle is None else MeasuredBundle.model_validate(bundle)
    new = Reading(
        model=model,
        bundle=made_by,
        manifest_sha256=manifest_sha256,
        cases=cases,
        reason=reason,
        date=now,
        last=now,
        times=1,
    )
    try:
        with _locked(path.parent):
            readings = _with(readings_of(manifest), new)
            write_json(path, _Ledger(schema_version=1, readings=readings).model_dump(mode="json"))
    except DataError:
        raise
    except (SegpipeError, OSError) as error:
        why = error.found if isinstance(error, SegpipeError) else error.strerror
        count = len(_with(readings_of(manifest), new))
        return Readings(count, path.name, f"the ledger {path.name} could not be written ({why})", reason)
    return Readings(len(readings), path.name, reason=reason)


def carry_readings(manifest: str | Path, to: str | Path) -> int:
    """Let the next version of a manifest go on with its count: another file name makes no test set unread.

    Args:
        manifest: whose ledger it is.
        to: the manifest that is made of it; what stands in its own ledger stays.

    Returns:
        How many readings the ledger of the new one has.

    Raises:
        DataError: a ledger cannot be used.
        UsageError: that of the new one cannot be written.
    """
    earlier, there = readings_of(manifest), readings_of(to)
    if ledger_path(manifest) == ledger_path(to) or not earlier:
        return len(there)
    known = {reading.model for reading in there}
    readings = [*there, *(reading for reading in earlier if reading.model not in known)]
    write_json(ledger_path(to), _Ledger(schema_version=1, readings=readings).model_dump(mode="json"))
    return len(readings)


def _copied_into(folder: Path) -> str:
    """Return what keeps a copy of a manifest in this folder; empty where nothing does."""
    if folder.name == "configs" and (folder / "metadata.json").is_file():
        return "a bundle"
    return "a run" if (folder / "run.json").is_file() else ""


def _with(readings: list[Reading], new: Reading) -> list[Reading]:
    before = next((reading for reading in readings if reading.model == new.model), None)
    if before is None:
        return [*readings, new]
    again = before.model_copy(
        update={"last": new.last, "times": before.times + 1, "reason": before.reason or new.reason}
    )
    return [again if reading is before else reading for reading in readings]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder for the time of the block: two evaluations that end at once would count as one."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)
