"""One process at a time in a folder: a lock that ends with its process, also with one that is killed."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from segpipe.common.files import cannot_write
from segpipe.errors import SegpipeError

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # a file system without locks: go on without


@contextmanager
def locked(folder: Path, busy: SegpipeError, *, name: str = LOCK, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a folder for the time of the block; it is made where it is not there.

    Args:
        folder: to hold.
        busy: what to raise where another process holds it.
        name: of the file in it that is locked.
        wait_s: seconds to wait for the other one.

    Raises:
        UsageError: the folder cannot be made or written to.
        SegpipeError: ``busy``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / name).open("ab")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with stream:
        deadline = time.monotonic() + wait_s
        while not _try_lock(stream, folder):
            if time.monotonic() >= deadline:
                raise busy
            time.sleep(0.1)
        yield


def _try_lock(stream: IO[bytes], folder: Path) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise cannot_write(folder, error) from error
    return True
