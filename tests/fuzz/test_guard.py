"""The guard notices each way to break a promise; otherwise the fuzzing would pass whatever happens."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import guard
import pytest
from guard import BrokenPromiseError, Room, room

from segpipe.errors import DataError, SegpipeError


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Room]:
    with room(tmp_path / "room") as made:
        yield made


def _fails(error: BaseException) -> None:
    raise error


def _spins() -> None:
    while True:
        pass


def _writes_unheard(path: Path) -> None:
    library = ctypes.CDLL(None)
    library.close(library.creat(os.fsencode(path), 0o600))


BROKEN: dict[str, tuple[Callable[[Room], object], str]] = {
    "an error of Python": (lambda place: _fails(KeyError("a")), "KeyError"),
    "too deep": (lambda place: _fails(RecursionError()), "RecursionError"),
    "no memory": (lambda place: _fails(MemoryError()), "MemoryError"),
    "the end of the process": (lambda place: sys.exit(0), "SystemExit"),
    "a bug of ours": (lambda place: _fails(SegpipeError("this is a bug")), "SegpipeError"),
    "no end": (lambda place: _spins(), "no end"),
    "a file at home": (lambda place: Path("~/x").expanduser().write_text("x"), "for writing"),
    "a file here": (lambda place: Path("x").write_text("x"), "for writing"),
    "a file beside": (lambda place: (place.output / "../beside/x").write_text("x"), "for writing"),
    "a file through a link": (
        lambda place: (
            (place.output / "link").symlink_to(place.root / "beside"),
            (place.output / "link/x").write_text("x"),
        ),
        "for writing",
    ),
    "a folder here": (lambda place: Path("x").mkdir(), "mkdir"),
    "something removed": (lambda place: (place.root / "home/kept").unlink(), "remove"),
    "something moved": (lambda place: shutil.move(place.root / "home/kept", place.output), "rename"),
    "a file that Python does not see": (lambda place: _writes_unheard(place.root / "beside/x"), "changed beside"),
    "a program": (lambda place: subprocess.run(["true"], check=True), "subprocess.Popen"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_no_input_may_do_is_noticed(name: str, place: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    deed, words = BROKEN[name]
    monkeypatch.setattr(guard, "CPU_SECONDS", 0.3)
    with pytest.raises(BrokenPromiseError, match=words):
        place.one_input(lambda: deed(place))


def test_output_and_temporary_files_and_errors_of_ours_break_no_promise(place: Room) -> None:
    def writes() -> None:
        (place.output / "deep/er").mkdir(parents=True)
        (place.output / "deep/er/x").write_text("x")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "x").write_text("x")
        shutil.rmtree(place.output / "deep")

    assert place.one_input(writes) is None
    error = DataError("it cannot be used")
    assert place.one_input(lambda: _fails(error)) is error
