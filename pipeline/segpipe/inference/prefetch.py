"""Prefetch: the next case is read while one is computed, one ahead, and only where memory has room for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from segpipe.common.nifti import Header
from segpipe.inference.memory import SLACK, allowed_bytes, source_bytes
from segpipe.inference.output import Preview, preview_of
from segpipe.inference.source import CaseInput, Source, read_headers, read_source


@dataclass(frozen=True, eq=False)
class ReadCase:
    """A case's images, judged: their headers, their voxels and a preview."""

    headers: list[Header]
    source: Source
    preview: Preview


def read_case(case: CaseInput, channels: int, headers: list[Header] | None = None) -> ReadCase:
    """Read and judge the images of one case; arguments and errors as in `read_source`."""
    headers = headers or read_headers(case, channels)
    source = read_source(case, channels, headers)
    return ReadCase(headers, source, preview_of(source))


class Prefetcher:
    """At most one case that was read before its turn.

    One thread computes cases, another one calls `read`. A case that cannot be read, or that does not fit beside the
    one that is computed, is left to its own turn, and so is what there is to say of it.

    Args:
        channels: of the images.
        max_memory: bytes that the process may take; None for what the machine has.
    """

    def __init__(self, channels: int, max_memory: int | None) -> None:
        self._channels, self._max_memory = channels, max_memory
        self._peak = 0
        self._was_read = threading.Event()
        self._waiting: tuple[str, ReadCase] | None = None

    def expect(self) -> None:
        """Note that a case was asked for; the one behind it waits until that one was read."""
        self._was_read.clear()

    def begin(self, peak: int) -> None:
        """Note that the case that is computed now was read, and the bytes that the process will take with it."""
        self._peak = peak
        self._was_read.set()

    def end(self) -> None:
        """Note that the case that was asked for has ended, well or not."""
        self.begin(0)

    def read(self, key: str, case: Callable[[], CaseInput], most_bytes: int | None) -> None:
        """Read a case beside the one that is computed, if both fit.

        Args:
            key: names the case.
            case: returns its files or its series.
            most_bytes: at which the process is ended; None for no limit.
        """
        self._was_read.wait()
        allowed = min(allowed_bytes(limit) for limit in (self._max_memory, most_bytes))
        try:
            images = case()
            headers = read_headers(images, self._channels)
            if self._peak + SLACK * source_bytes(headers) <= allowed:
                self._waiting = key, read_case(images, self._channels, headers)
        except Exception:  # noqa: BLE001 - it is read again when its turn comes, and fails then
            self._waiting = None

    def take(self, key: str | None) -> ReadCase | None:
        """Return the case of this name, if it was read; any other is let go."""
        waiting, self._waiting = self._waiting, None
        return waiting[1] if waiting is not None and waiting[0] == key else None
