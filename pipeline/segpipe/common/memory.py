"""Memory that this process may take: of the machine, and of its control groups (a container's, a batch job's)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
_NAMES = {  # by version: the limit, what is used, and what of that are files that the kernel can drop
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


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
