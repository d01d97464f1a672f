"""A training reads the files that its manifest was made of, so that a bundle says truly what it was trained on."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from segpipe.common.console import counted, some_of
from segpipe.common.files import sha256_of
from segpipe.data import Manifest
from segpipe.errors import DataError

MARGIN_S = 300  # by which the clocks of a run folder and of the data may differ


def require_as_imported(dataset: Manifest, data: Path, since: Path | None = None) -> None:
    """Refuse training cases whose files have other bytes than the manifest says; those without a hash are taken.

    Args:
        dataset: what is trained on.
        data: folder that its paths start from. What is not there is left to who reads it.
        since: file that was written when they were compared last: only what changed later is read.

    Raises:
        DataError: naming the cases.
    """
    from_s = 0.0 if since is None else since.stat().st_mtime - MARGIN_S
    changed = []
    for case in dataset.training:
        for path in case.paths:
            file, expected = data / path, (case.sha256 or {}).get(path)
            if expected is None or not file.is_file():
                continue
            state = file.stat()
            later = max(state.st_mtime, state.st_ctime) >= from_s
            if later and _digest(file, state.st_size, state.st_mtime_ns, state.st_ctime_ns) != expected:
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


@lru_cache(maxsize=1 << 16)
def _digest(file: Path, size: int, changed_ns: int, changed_at_ns: int) -> str:
    """Return a file's hash; that of a file that did not change is read once by a process."""
    return sha256_of(file)
