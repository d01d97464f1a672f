"""The data set against the hashes that a bundle's manifest holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files import sha256_of
from pipeline.manifest import Case, Manifest

MOST_NAMED = 10


def trained_on(manifest: Manifest, fold: int) -> list[Case]:
    """The cases that a training reads: those that it learns from, then those that it is validated on."""
    return [*manifest.select("training", fold), *manifest.select("validation", fold)]


def check_data(cases: list[Case], root: Path, advance: Callable[[], object] = lambda: None) -> dict[str, int]:
    """Compare each file with the hash that it had when the weights were trained.

    Args:
        cases: of the bundle's manifest.
        root: folder that its paths start from.
        advance: called once a case.

    Returns:
        Number of ``cases`` and ``files``, and how many files are ``without_hash``, so that nothing shows a change.

    Raises:
        DataError: files are missing or were changed; it names them.
    """
    faults, files, without = [], 0, 0
    for case in cases:
        for path in case.paths:
            expected = (case.sha256 or {}).get(path)
            files += 1
            without += expected is None
            if not (root / path).is_file():
                faults.append(f"missing {path}")
            elif expected is not None and sha256_of(root / path) != expected:
                faults.append(f"changed {path}")
        advance()
    if faults:
        more = f", and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        raise DataError(
            f"the data is not what the bundle was trained on: {len(faults)} of {files} files differ", path=root,
            found=", ".join(faults[:MOST_NAMED]) + more, expected="the files whose hashes the bundle's manifest holds",
            hint="name their folder with --data, or get the files again; other data would give other weights",
        )  # fmt: skip
    return {"cases": len(cases), "files": files, "without_hash": without}
