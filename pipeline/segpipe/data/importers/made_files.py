"""Files that an import makes: never in the place of another one, which a manifest of an earlier import may name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from segpipe.common.files import sha256_of, write_whole
from segpipe.common.image_names import ending_of, image_stem
from segpipe.common.partial import temporary_folder
from segpipe.errors import DataError, UsageError


def write_beside(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file, and return where it is: where other bytes are, beside these, with a part of its hash in its name.

    Args:
        path: where it goes unless there is another file.
        write: called with the path to write to; the same file has the same bytes.

    Raises:
        UsageError: the folder cannot be written to.
        DataError: a file of this name and hash has other bytes.
    """
    if not path.exists():
        write(path)
        return path
    with temporary_folder() as folder:
        made = folder / path.name
        write(made)
        digest = sha256_of(made)
        if sha256_of(path) == digest:
            return path
        beside = path.with_name(f"{image_stem(path)}-{digest[:8]}{ending_of(path) or path.suffix}")
        if not beside.exists():
            with made.open("rb") as reading, write_whole(beside) as writing:
                shutil.copyfileobj(reading, writing)
        elif sha256_of(beside) != digest:
            raise DataError(
                "a file of an earlier import has changed", path=beside, hint="move it away, and import again"
            )
    return beside


def digest_of_sources(paths: Iterable[Path], settings: Any) -> str:
    """Return the hash of what a converted file depends on: names, sizes and times of its sources, and plain settings.

    Raises:
        UsageError: a source that cannot be read.
    """
    try:
        seen = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
    except OSError as error:
        raise UsageError("a file cannot be read", path=error.filename, found=error.strerror) from error
    return hashlib.sha256(json.dumps([seen, settings]).encode()).hexdigest()


def earlier_conversion(note: Path, digest: str, folder: Path) -> dict[str, Any] | None:
    """Return what was noted of an earlier conversion of the same sources whose ``files`` are all there, or None."""
    known: dict[str, Any] = json.loads(note.read_text()) if note.is_file() else {}
    is_same = known.get("digest") == digest and "files" in known
    return known if is_same and all((folder / file).is_file() for file in known["files"]) else None
