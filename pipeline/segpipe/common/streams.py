"""Standard output and standard error of a command, which may be closed, full, or read by nobody any more.

What is computed does not depend on who reads what is said of it: a stream that cannot be written to is given up, the
command goes on, and `failure` has what its exit code needs.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress

from segpipe.errors import UsageError

_GONE = (errno.EPIPE, errno.EIO)  # a reader that has ended, as `head` does, or a terminal that was closed


class GuardedStream(io.TextIOWrapper):
    """A standard stream that never raises: what cannot be written is thrown away.

    Attributes:
        failed: the first thing that went wrong; None where all was written, or its reader did not want more.
    """

    failed: OSError | None = None

    def write(self, text: str, /) -> int:
        """Write text, or give the stream up."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or give the stream up."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if self.failed is None and error.errno not in _GONE:
            self.failed = error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())  # what is left in the buffers goes there
        os.close(null)


def guard_streams() -> None:
    """Guard the streams of this process; one that is closed becomes one that nobody reads.

    A file that is opened later would else get the closed one's number, and libraries would write their words into it.
    """
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != handle:
                os.dup2(opened, handle)
                os.close(opened)
            os.set_inheritable(handle, True)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _guarded(sys.stdout, 1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _guarded(sys.stderr, 2)  # type: ignore[misc]


def _guarded(stream: object, handle: int) -> GuardedStream:
    encoding, is_lines = "utf-8", handle == 2
    if isinstance(stream, io.TextIOWrapper):
        encoding, is_lines = stream.encoding, stream.line_buffering
        with suppress(OSError, ValueError):
            stream.detach()
    raw = io.BufferedWriter(io.FileIO(handle, "w", closefd=False))
    # for names in letters that a terminal does not know
    return GuardedStream(raw, encoding=encoding, errors="backslashreplace", line_buffering=is_lines)


def failure() -> UsageError | None:
    """Return why standard output is not whole; None where it is, or where nobody wanted the rest."""
    failed = getattr(sys.stdout, "failed", None)
    if failed is None:
        return None
    return UsageError(
        "standard output could not be written",
        found=failed.strerror or str(failed),
        hint="the work itself is done; print to a place with space, or to none: > /dev/null",
    )
