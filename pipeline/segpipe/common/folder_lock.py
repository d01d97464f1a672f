"""One process at a time in a folder: a lock that ends with its process, also with one that is killed."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segpipe.common.files import cannot_write
from segpipe.errors import SegpipeError

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)  # a file system without locks: go on without
_OPENED = {False: (os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), True: (os.O_RDONLY,)}


@contextmanager
def locked(
    folder: Path, busy: SegpipeError, *, name: str | None = LOCK, shared: bool = False, wait_s: float = 0.0
) -> Iterator[None]:
    """Hold a folder for the time of the block; it is made where it is not there.

    Args:
        folder: to hold.
        busy: what to raise where another process holds it.
        name: of the file in it that is locked; None for the folder itself, where that is enough.
        shared: hold it together with others who do so, while nobody holds it alone.
        wait_s: seconds to wait for the other one.

    Raises:
        UsageError: the folder cannot be made or written to.
        SegpipeError: ``busy``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder if name is None else folder / name, *_OPENED[name is None])
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        deadline = time.monotonic() + wait_s
        while not _try_lock(handle, folder, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise busy
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int, folder: Path, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise cannot_write(folder, error) from error
    return True
