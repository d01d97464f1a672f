"""One process in a folder: the second is refused, a killed one leaves no lock, and a disk without locks goes on."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from segpipe.common.folder_lock import locked
from segpipe.errors import UsageError

HOLDS = """
import sys, time
from pathlib import Path
from segpipe.common.folder_lock import locked
from segpipe.errors import UsageError
with locked(Path(sys.argv[1]), UsageError("busy")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        busy = UsageError("busy")
        for wait_s in (0.0, 0.3):
            with pytest.raises(UsageError) as caught, locked(folder, busy, wait_s=wait_s):
                pass
            assert caught.value is busy
        process.kill()
    with locked(folder, busy), pytest.raises(UsageError), locked(folder, busy):  # also within one process
        pass


def test_a_folder_is_locked_without_a_file(tmp_path: Path) -> None:
    busy = UsageError("busy")
    with locked(tmp_path, busy, name=None), pytest.raises(UsageError, match="busy"), locked(tmp_path, busy, name=None):
        pass
    with locked(tmp_path, busy, name=None, shared=True), locked(tmp_path, busy, name=None, shared=True):
        assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_worked_on_and_another_fault_is_not_taken_for_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> None:
        def flock(_stream: object, _how: int) -> None:
            raise OSError(number, "flock")

        monkeypatch.setattr(fcntl, "flock", flock)

    entered = False
    refuse(errno.ENOLCK)
    with locked(tmp_path, UsageError("busy")):
        entered = True
    assert entered
    refuse(errno.EIO)
    with pytest.raises(UsageError, match="cannot write") as caught, locked(tmp_path, UsageError("busy")):
        pass
    assert caught.value.path == str(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError) as caught, locked(tmp_path / "file" / "below", UsageError("busy")):
        pass
    assert str(caught.value.path).startswith(str(tmp_path / "file"))
