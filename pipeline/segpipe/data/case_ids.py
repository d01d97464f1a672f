"""Ids of cases that come from file names: each its own, and the same whatever the order of the files.

A name is its own id. One that cannot be an id becomes ``case-`` and 12 hex digits of a hash of the path below the input
folder; one that several files have gets 8 such digits behind it. Paths themselves stand in no id.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence

from segpipe.common.result_folder import RESERVED
from segpipe.data.manifest import CASE_ID

LONGEST = 128
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no folder can have these on Windows


def can_be_id(name: str) -> bool:
    """Return whether a name can be a case's id and the name of its result folder, on every system."""
    usable = CASE_ID.match(name) and not name.endswith(".") and not DEVICES.fullmatch(name)
    return bool(usable) and name.casefold() not in RESERVED


def ids_of_files(named: Sequence[tuple[str, str]], taken: Collection[str] = ()) -> list[str]:
    """Return an id for each file, in their order.

    Args:
        named: of each file its name without the ending, and its path below the input folder.
        taken: ids that others have.
    """
    times = Counter([name for name, _ in named] + list(taken))
    ids = [
        pseudonym("case", path) if not can_be_id(name) else name if times[name] == 1 else _apart(name, path)
        for name, path in named
    ]
    again = Counter([*ids, *taken])  # a file may be called as another was renamed
    return [id if again[id] == 1 else pseudonym("case", path) for id, (_, path) in zip(ids, named, strict=True)]


def pseudonym(kind: str, *words: str) -> str:
    """Return ``KIND-`` and 12 hex digits of a hash of the words."""
    return f"{kind}-{_digits(*words)[:12]}"


def _apart(name: str, path: str) -> str:
    digits = _digits(path)[:8]
    return f"{name[: LONGEST - 9]}-{digits}"


def _digits(*words: str) -> str:
    return hashlib.sha256(b"\0".join(os.fsencode(word) for word in words)).hexdigest()
