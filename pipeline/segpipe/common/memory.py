"""Memory of this process: what it may take, and whether what it freed stays with it.

What it may take is told by the machine and by its control groups (a container's, a batch job's).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
_NAMES = {  # by version: the limit, what is used, and what of that are files that the kernel can drop
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
# mallopt(3) of the GNU C library
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGE = 2**31 - 1, 2**30
_LARGEST_BY_ITSELF = 2**25  # to which it raises its threshold where nothing is said


@dataclass(frozen=True)
class Memory:
    """Bytes: ``total`` of the machine or of the narrowest control group, ``free`` of both now, ``group`` of the latter.

    ``group`` is None where no group limits this process.
    """

    total: int
    free: int
    group: int | None = None


def memory_here(groups: Path = GROUPS, own: Path = OWN) -> Memory:
    """Return what this process may take, by the machine and by control groups of version 2 and 1.

    Args:
        groups: where they are mounted.
        own: which this process is in.
    """
    import psutil

    ram = psutil.virtual_memory()
    total, free, narrowest = ram.total, ram.available, None
    for limit, left in _limits(groups, own):
        if limit < ram.total:
            total, narrowest = min(total, limit), min(limit, narrowest or limit)
            free = min(free, left)
    return Memory(total, max(0, free), narrowest)


def _limits(groups: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and what is left of it, of each group that this process is in."""
    for folder, version in _folders(groups, own):
        limit_file, used_file, dropped = _NAMES[version]
        with suppress(OSError, ValueError):  # no such group, or "max"
            limit = int((folder / limit_file).read_text())
            used = 0
            with suppress(OSError, ValueError):
                used = int((folder / used_file).read_text())
            yield limit, limit - max(0, used - _droppable(folder, dropped))


def _droppable(folder: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        rows = (row.split() for row in (folder / "memory.stat").read_text().splitlines())
        return int(next((row[1] for row in rows if len(row) == 2 and row[0] == name), 0))
    return 0


def _folders(groups: Path, own: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process's groups and of those around them; a container sees its own as the mount."""
    roots = {2: groups, 1: groups / "memory"}
    paths: dict[int, Path] = {}
    with suppress(OSError):
        for row in own.read_text().splitlines():
            _, controllers, place = row.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                paths[1 if controllers else 2] = Path(place.lstrip("/"))
    for version, root in roots.items():
        path = paths.get(version, Path())
        yield root, version
        for part in (path, *path.parents):
            if part != Path() and ".." not in part.parts:
                yield root / part, version


def keep_freed_memory() -> bool:
    """Let this process take memory again that it freed, instead of asking the kernel for new pages, one fault each.

    By default the GNU C library gives each array of more than 32 MiB back as soon as it is freed. A loop over windows
    or patches takes the same arrays again and again: a tenth of its time, or more, is then the kernel's, which clears
    pages. `return_freed_memory` gives back what is free between two cases. Without that library nothing is changed.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.

    Returns:
        Whether it is so now.
    """
    return _mallopt(_LARGE, _NEVER)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory as `keep_freed_memory` does, and give back what is free at the end.

    >>> with freed_memory_kept():
    ...     steps = [bytes(100) for _ in range(3)]
    """
    keep_freed_memory()
    try:
        yield
    finally:
        _mallopt(_LARGEST_BY_ITSELF, 2 * _LARGEST_BY_ITSELF)
        return_freed_memory()


def return_freed_memory() -> None:
    """Give the kernel the memory that this process has freed and kept, where the C library can (malloc_trim(3))."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _mallopt(given_back_above: int, trimmed_above: int) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, given_back_above)) and bool(mallopt(_TRIM_THRESHOLD, trimmed_above))
