"""What is under way: folders and files of one process, which take their place by a rename.

They are swept when that process is dead:

    FOLDER/.partial/OWNER/          what becomes part of FOLDER
    FOLDER/.partial/OWNER.lease     renewed while its owner lives
    FOLDER/.OWNER.partial           one file that is being written
    TEMPORARY/segpipe-OWNER-*/      what nobody keeps

An owner is machine, boot, process id, its start, and a random part. On the same machine the process itself is looked
for; another machine's is over when its lease, or its file, was not touched for `LEASE_S` by the file system's clock.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

PARTIAL, LEASE, REPLACED = ".partial", ".lease", "~replaced"  # no name of what is published ends like the last
LEASE_S, RENEW_S = 3600.0, 60.0
OWNER = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}")
_FILE = re.compile(rf"\.({OWNER.pattern})\.partial")
_TEMPORARY = re.compile(rf"segpipe-({OWNER.pattern})-.*")

_leases: set[Path] = set()
_swept: set[Path] = set()


def new_owner() -> str:
    """Return a name that says which process owns what bears it, for one use."""
    pid = os.getpid()
    return f"{_machine()}-{_boot()}-{pid}-{_start_of(pid)}-{os.urandom(4).hex()}"


def is_over(owner: str, idle_s: float) -> bool:
    """Return whether nobody is at work any more on what bears an owner's name; in doubt somebody is.

    Args:
        owner: the name; another than `new_owner` gives is that of an older version.
        idle_s: for how long its lease, or the file, was not touched.
    """
    match = OWNER.fullmatch(owner)
    if match is None or match[1] != _machine():
        return idle_s > LEASE_S
    if match[2] != _boot():
        return True
    try:
        return _start_of(int(match[3])) != int(match[4])
    except PermissionError:  # it is there, and not to be looked at
        return False


class Partial:
    """A folder of this process below another one, whose parts are published there by a rename.

    Args:
        parent: the folder; made where it is not there. What dead owners left in it is swept: an older version that one
            of them had set aside is put back.

    Attributes:
        folder: the empty folder.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self.folder = parent / PARTIAL / new_owner()
        self._lease = self.folder.with_name(self.folder.name + LEASE)
        for attempt in range(3):
            try:
                self.folder.mkdir(parents=True)
                os.close(os.open(self._lease, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
                break
            except FileNotFoundError:  # another one has just removed the folder of them all, which was empty
                if attempt == 2:
                    raise
        _renew(self._lease)
        self._sweep()

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def publish(self, name: str, final: Path) -> None:
        """Rename a part to its place; what is there is set aside for that time and then removed.

        Raises:
            OSError: it cannot be renamed; then all is as it was.
        """
        aside = self.folder / f"{final.name}{REPLACED}"
        shutil.rmtree(aside, ignore_errors=True)
        if final.exists():
            final.rename(aside)
        try:
            (self.folder / name).rename(final)
        finally:
            self._put_back(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def close(self) -> None:
        """Remove what was not published."""
        self._clear(self.folder)
        _leases.discard(self._lease)
        self._lease.unlink(missing_ok=True)
        with suppress(OSError):  # another one's is there
            self.folder.parent.rmdir()

    def _sweep(self) -> None:
        now = self._lease.stat().st_mtime
        for left in sorted(self.folder.parent.iterdir()):
            if left.name.endswith(LEASE) or left == self.folder:
                continue
            lease = left.with_name(left.name + LEASE)
            try:
                touched = (lease if lease.exists() else left).stat().st_mtime
            except FileNotFoundError:  # it has just been removed
                continue
            if is_over(left.name, now - touched):
                self._clear(left)
                lease.unlink(missing_ok=True)

    def _clear(self, owned: Path) -> None:
        """Remove an owner's folder, unless it holds the only version of something, which cannot be put back."""
        asides = [aside for aside in (owned, *owned.glob(f"*{REPLACED}")) if aside.name.endswith(REPLACED)]
        if all([self._put_back(aside) for aside in asides]):
            shutil.rmtree(owned, ignore_errors=True)

    def _put_back(self, aside: Path) -> bool:
        """Give what was set aside its place again, if that is free; return whether a version is there."""
        final = self.parent / aside.name.removesuffix(REPLACED)
        if aside.exists() and not final.exists():
            with suppress(OSError):
                aside.rename(final)
        return final.exists() or not aside.exists()


def partial_file(path: Path) -> Path:
    """Return the name of a file that becomes ``path``; what killed processes left beside it is removed."""
    _sweep_named(path.parent, _FILE)
    return path.with_name(f".{new_owner()}.partial")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder for the time of the block; those of killed processes of this user are removed."""
    _sweep_named(Path(tempfile.gettempdir()), _TEMPORARY)
    with tempfile.TemporaryDirectory(prefix=f"segpipe-{new_owner()}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _sweep_named(folder: Path, pattern: re.Pattern[str]) -> None:
    """Remove what is called so and belongs to a dead owner, once a folder for this process: there may be many files."""
    if folder in _swept:
        return
    _swept.add(folder)
    try:
        named = [entry for entry in os.scandir(folder) if pattern.fullmatch(entry.name)]
    except OSError:  # it is not there yet
        return
    for entry in named:
        match = pattern.fullmatch(entry.name)
        with suppress(OSError):
            facts = entry.stat(follow_symlinks=False)
            if match and facts.st_uid == os.getuid() and is_over(match[1], time.time() - facts.st_mtime):
                path = Path(entry.path)
                shutil.rmtree(path, ignore_errors=True) if entry.is_dir(follow_symlinks=False) else path.unlink()


def _renew(lease: Path) -> None:
    """Touch a lease again and again while it is held."""
    _leases.add(lease)
    if not any(thread.name == LEASE for thread in threading.enumerate()):
        threading.Thread(target=_renew_all, name=LEASE, daemon=True).start()


def _renew_all() -> None:
    while True:
        time.sleep(RENEW_S)
        for lease in list(_leases):
            with suppress(OSError):
                os.utime(lease)


@cache
def _machine() -> str:
    """Return a name of where process ids mean the same: a host, or a container in it."""
    namespace = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return _digest(f"{socket.gethostname()} {namespace}")


@cache
def _boot() -> str:
    with suppress(OSError):
        return _digest(Path("/proc/sys/kernel/random/boot_id").read_text())
    return _digest("")


def _start_of(pid: int) -> int | None:
    """Return when a process started, in a unit that does not change while the machine runs; None for none such.

    Raises:
        PermissionError: there is one, and it may not be looked at.
    """
    try:
        os.kill(pid, 0)
        state, *facts = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else int(facts[18])
    except (ProcessLookupError, OverflowError):
        return None
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    import psutil

    try:
        return int(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
