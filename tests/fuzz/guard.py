"""What every input keeps to: it ends in an error of ours or in none, soon, and writes in its room alone."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import os
import platform
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe.errors import BUG, SegpipeError

platform.processor()  # starts a process the first time; packages that MONAI imports ask for it
CPU_SECONDS, WALL_SECONDS = 20, 240  # of one input: of the processor, as the machine may be busy; and for what sleeps
MORE_MEMORY = 6 << 30
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("mkdir", "remove", "rmdir", "rename", "chmod", "chown", "link", "symlink", "truncate", "utime", "setxattr")
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")
SENDS = ("socket.connect", "socket.sendto", "socket.bind")
HARMLESS = (os.devnull, "/proc/self/clear_refs")  # the latter begins to measure the memory anew
KEPT = "nothing of this changes\n"


class BrokenPromiseError(AssertionError):
    """An input did what none may do."""


class _HungError(BaseException):
    """The time of one input is over; no handler of errors takes it for one."""


@dataclass
class Room:
    """Where inputs are tried: they may write into ``output`` and ``temporary``, and not beside them."""

    root: Path
    deeds: list[str] = field(default_factory=list)
    watching: bool = False

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def temporary(self) -> Path:
        return self.root / "temporary"

    def is_inside(self, path: Any, folder: Any = -1) -> bool:
        """Whether something may be made or changed there; ``folder`` is the open one that a path starts from."""
        if isinstance(path, int) or os.fsdecode(path) in HARMLESS:
            return True
        start = Path(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else Path.cwd()
        place = start / os.fsdecode(path)
        real = Path(os.path.realpath(place.parent)) / place.name
        return real.is_relative_to(self.output) or real.is_relative_to(self.temporary)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what Python is about to do, where no input may make it do that."""
        if not self.watching:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & WRITING) if isinstance(flags, int) else any(each in (mode or "") for each in "wax+")
            if writes and path is not None and not self.is_inside(path):
                self.deeds.append(f"opened {path!r} for writing")
        elif event.startswith("os.") and event[3:] in CHANGES:
            paths = arguments[:2] if event[3:] in ("rename", "link", "symlink") else arguments[:1]
            folder = arguments[-1] if event[3:] in ("mkdir", "remove", "rmdir", "chmod") else -1
            outside = [path for path in paths if not self.is_inside(path, folder)]
            if outside and not (event == "os.symlink" and self.is_inside(arguments[1])):
                self.deeds.append(f"{event} {outside[0]!r}")
        elif event in STARTS or event in SENDS:
            self.deeds.append(f"{event} {arguments!r}"[:200])

    def one_input(self, use: Callable[[], object]) -> SegpipeError | None:
        """Do what an input leads to, and return the error that it ended with.

        Raises:
            BrokenPromiseError: an error that is not ours or a bug, no end in time, or something done beside the output.
        """
        self.deeds.clear()
        self.watching, ended = True, None
        try:
            with _in_time():
                use()
        except (KeyboardInterrupt, BrokenPromiseError):
            raise
        except _HungError as error:
            raise BrokenPromiseError(f"no end after {CPU_SECONDS} s of the processor") from error
        except BaseException as error:
            if not isinstance(error, SegpipeError) or error.exit_code == BUG:
                raise BrokenPromiseError(f"{type(error).__name__}: {str(error)[:300]}") from error
            ended = error
        finally:
            self.watching = False
        if self.deeds:
            raise BrokenPromiseError("; ".join(self.deeds[:5]))
        self.require_untouched()
        return ended

    def require_untouched(self) -> None:
        """Refuse any change of what lies beside the output, also one that Python did not see."""
        for folder in ("home", "here", "beside"):
            names = sorted(str(path.relative_to(self.root)) for path in (self.root / folder).rglob("*"))
            if names != [f"{folder}/kept"] or (self.root / folder / "kept").read_text() != KEPT:
                raise BrokenPromiseError(f"changed beside the output: {names[:5]}")


@contextlib.contextmanager
def room(root: Path) -> Iterator[Room]:
    """Make a room, and a home and a working folder in it, for the time of the block."""
    _listen()
    gc.collect()  # what was opened in the room before removes its own temporary folder, which is beside this one
    root = root.resolve()
    for folder in ("home", "here", "beside", "output", "temporary"):
        (root / folder).mkdir(parents=True)
    for folder in ("home", "here", "beside"):
        (root / folder / "kept").write_text(KEPT)
    made = Room(root)
    before = Path.cwd(), tempfile.tempdir, sys.dont_write_bytecode, resource.getrlimit(resource.RLIMIT_DATA)
    variables = {name: os.environ.get(name) for name in ("HOME", "TMPDIR", "SEGPIPE_CACHE", "XDG_CONFIG_HOME")}
    os.environ.update(
        HOME=str(root / "home"),
        TMPDIR=str(made.temporary),
        SEGPIPE_CACHE=str(made.temporary / "cache"),
        XDG_CONFIG_HOME=str(root / "home"),
    )
    os.chdir(root / "here")
    tempfile.tempdir, sys.dont_write_bytecode = str(made.temporary), True
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + MORE_MEMORY, before[3][1]))
    _rooms.append(made)
    try:
        yield made
    finally:
        _rooms.remove(made)
        os.chdir(before[0])
        tempfile.tempdir, sys.dont_write_bytecode = before[1], before[2]
        resource.setrlimit(resource.RLIMIT_DATA, before[3])
        for name, value in variables.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def over(_signal: int, _frame: object) -> None:
        raise _HungError

    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("inputs are tried in the main thread, which alone can be interrupted")
    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    faulthandler.dump_traceback_later(WALL_SECONDS, exit=True, file=sys.__stderr__)  # what no signal can interrupt
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _data_bytes() -> int:
    words = Path("/proc/self/status").read_text() if Path("/proc/self/status").is_file() else ""
    line = next((line for line in words.splitlines() if line.startswith("VmData:")), "VmData: 0 kB")
    return int(line.split()[1]) << 10


_rooms: list[Room] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    for each in _rooms:
        each.hear(event, arguments)


@functools.cache
def _listen() -> None:
    """Hear from now on; no process can end that, and every other test would take longer."""
    sys.addaudithook(_hear)
