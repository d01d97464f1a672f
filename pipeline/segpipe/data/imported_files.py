"""A training reads the files that its manifest was made of, so that a bundle says truly what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segpipe.common.console import counted, some_of
from segpipe.common.files import sha256_of
from segpipe.data.manifest import Case
from segpipe.errors import DataError

MARGIN_S = 300  # by which the clocks of a run folder and of the data may differ
_compared: dict[tuple[Path, int, int, int], str] = {}  # a file and its state, to its hash: read once by a process


def require_as_imported(cases: Sequence[Case], data: Path, since: Path | None = None) -> None:
    """Refuse cases whose files have other bytes than the manifest says; those without a hash are taken.

    A file that did not change is read once by a process.

    Args:
        cases: that are trained on, or validated.
        data: folder that their paths start from. What is not there is left to who reads it.
        since: file that was written when they were compared last: only what changed later is read.

    Raises:
        DataError: naming the cases.
    """
    from_s = 0.0 if since is None else since.stat().st_mtime - MARGIN_S
    changed = []
    for case in cases:
        for path in case.paths:
            file, expected = data / path, (case.sha256 or {}).get(path)
            if expected is None or not file.is_file():
                continue
            facts = file.stat()
            state = (file.resolve(), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            if state not in _compared:
                is_later = max(facts.st_mtime, facts.st_ctime) >= from_s
                _compared[state] = sha256_of(file) if is_later else expected
            if _compared[state] != expected:
                changed.append(case.id)
    if changed:
        ids = list(dict.fromkeys(changed))
        raise DataError(
            "files are not those that the manifest was made of",
            found=f"other bytes in {counted(len(changed), 'file')} of {some_of(ids)}",
            expected="the hashes in the manifest, which the bundle will say that it was trained on",
            hint="put the files back; or make the manifest anew with the same `segpipe import ... --overwrite`, and "
            "`segpipe split` with the same options, which draws the same split",
        )
