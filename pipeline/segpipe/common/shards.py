"""One piece of work on several processes or machines: each takes its share, all write into one folder.

A share is fixed (``--shard 0/3``: of the cases, sorted by id, each third), so no case is anybody else's, whatever runs
when. Shares of one number hold the folder together; what is not shared, or is shared by another number, waits.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from segpipe.common.folder_lock import LOCK, locked
from segpipe.errors import RefusedError, SegpipeError, UsageError

WAIT = "wait until it has ended, or choose another folder"
SHARDS = ".shards"  # in the folder while shares are at work: a locked file each
WORDS = re.compile(r"(\d{1,6})/(\d{1,6})")
NAME = re.compile(r"(\d+)_of_(\d+)")


class Named(Protocol):
    """What has an id."""

    @property
    def id(self) -> str: ...


Kind = TypeVar("Kind", bound=Named)


@dataclass(frozen=True)
class Shard:
    """One of several shares.

    Attributes:
        index: of the share, from 0.
        number: of shares.

    >>> Shard.parse("1/3")
    Shard(index=1, number=3)
    """

    index: int
    number: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``I/N``.

        Raises:
            UsageError: it is something else.
        """
        match = WORDS.fullmatch(text.strip())
        if match is None or not int(match[1]) < int(match[2]):
            raise UsageError("no such share", found=text, expected="I/N with I from 0 to N - 1, e.g. 0/3")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        """Return it as `parse` takes it."""
        return f"{self.index}/{self.number}"

    def of(self, cases: Sequence[Kind]) -> list[Kind]:
        """Return its cases, in the order that they have; every case is in one share, and shares differ by one case."""
        ids = {case.id for case in sorted(cases, key=lambda case: case.id)[self.index :: self.number]}
        return [case for case in cases if case.id in ids]


@contextmanager
def held_by(out: Path, shard: Shard | None, busy: SegpipeError, name: str = LOCK) -> Iterator[None]:
    """Hold a folder, alone or for one share of the work in it, until this process ends or the block does.

    Args:
        out: the folder.
        shard: the share; None: all of it.
        busy: what to raise where another process holds the folder.
        name: of the file in it that is locked.

    Raises:
        UsageError: the folder cannot be made or written to.
        RefusedError: another process computes this share, or a share of another number.
        SegpipeError: ``busy``.
    """
    with ExitStack() as held:
        held.enter_context(locked(out, busy, name=name, shared=shard is not None))
        if shard is None:  # nobody else is here: what lies there is of shares that were killed
            shutil.rmtree(out / SHARDS, ignore_errors=True)
        else:
            same = RefusedError("another process computes this share", path=out, found=f"--shard {shard}", hint=WAIT)
            held.enter_context(locked(out / SHARDS, same, name=_name(shard)))
            held.callback(_remove, out / SHARDS, shard)
            _refuse_other_number(out, shard)
        yield


def _name(shard: Shard) -> str:
    return f"{shard.index}_of_{shard.number}"


def _refuse_other_number(out: Path, shard: Shard) -> None:
    """Refuse to share by one number what others share by another one: their cases would be ours as well."""
    found = [(path, match) for path in (out / SHARDS).iterdir() if (match := NAME.fullmatch(path.name))]
    for path, match in found:
        if int(match[2]) == shard.number:
            continue
        other = RefusedError(
            "another process computes a share of another number",
            path=out,
            found=f"--shard {match[1]}/{match[2]}",
            expected=f"shares of {shard.number}, as --shard {shard} asks for",
            hint=WAIT,
        )
        with locked(out / SHARDS, other, name=path.name):  # else it is left of one that is dead
            path.unlink(missing_ok=True)


def _remove(folder: Path, shard: Shard) -> None:
    with suppress(OSError):
        (folder / _name(shard)).unlink()
        folder.rmdir()
