"""The next case is read while one is computed: one ahead, and only where memory has room for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from segpipe.common.nifti import Header
from segpipe.inference.memory import SLACK, allowed_bytes, source_bytes
from segpipe.inference.source import CaseInput, Preview, Source, preview_of, read_headers, read_source


@dataclass(frozen=True, eq=False)
class Read:
    """A case's images, judged: its headers, its voxels and a look at them."""

    headers: list[Header]
    source: Source
    preview: Preview


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
        self._kept: tuple[str, Read] | None = None

    def expect(self) -> None:
        """A case was asked for; the one behind it waits until that one was read."""
        self._was_read.clear()

    def begin(self, peak: int) -> None:
        """The case that is computed now was read, and will take so many bytes of the process at most."""
        self._peak = peak
        self._was_read.set()

    def end(self) -> None:
        """The case that was asked for has ended, well or not."""
        self.begin(0)

    def read(self, key: str, given: Callable[[], CaseInput], most_bytes: int | None) -> None:
        """Read a case beside the one that is computed, if both fit.

        Args:
            key: names the case.
            given: gives its files or its series.
            most_bytes: at which the process is ended; None for no limit.
        """
        self._was_read.wait()
        allowed = min(allowed_bytes(limit) for limit in (self._max_memory, most_bytes))
        try:
            case = given()
            headers = read_headers(case, self._channels)
            if self._peak + SLACK * source_bytes(headers) > allowed:
                return
            source = read_source(case, self._channels, headers)
            self._kept = key, Read(headers, source, preview_of(source))
        except Exception:  # noqa: BLE001 - it is read again when its turn comes, and fails then
            self._kept = None

    def take(self, key: str | None) -> Read | None:
        """The case of this name, if it was read; any other is let go."""
        kept, self._kept = self._kept, None
        return kept[1] if kept is not None and kept[0] == key else None
