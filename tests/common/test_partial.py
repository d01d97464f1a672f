"""What is under way belongs to a process: it is swept when that is dead, and never before."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from segpipe.common import partial
from segpipe.common.files import write_text
from segpipe.common.partial import LEASE, LEASE_S, OWNER, PARTIAL, Partial, is_over, new_owner, temporary_folder
from segpipe.common.processes import child_environment

DIES = """
import os, sys
from pathlib import Path
from segpipe.common.files import write_whole
from segpipe.common.partial import Partial, temporary_folder
place = Path(sys.argv[1])
held = Partial(place)
(held.folder / "half").mkdir()
(held.folder / "old~replaced").mkdir()
(held.folder / "old~replaced/file").write_text("older")
with write_whole(place / "file") as stream, temporary_folder() as folder:
    stream.write(b"half")
    stream.flush()
    print("begun", folder, flush=True)
    {then}
"""


def changed(owner: str, **parts: str) -> str:
    names = ("machine", "boot", "pid", "start", "random")
    return "-".join({**dict(zip(names, owner.split("-"), strict=True)), **parts}.values())


def test_an_owner_is_a_process_on_a_machine_since_a_boot() -> None:
    own = new_owner()
    assert OWNER.fullmatch(own) and own != new_owner()
    long = 10 * LEASE_S
    assert not is_over(own, long)  # it is us
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    assert is_over(changed(own, pid=dead), 0)
    assert is_over(changed(own, start="1"), 0)  # its number was given to another process
    assert is_over(changed(own, boot="0" * 8), 0)
    elsewhere = changed(own, machine="0" * 8, pid=dead)
    assert not is_over(elsewhere, LEASE_S - 1) and is_over(elsewhere, LEASE_S + 1)
    assert not is_over("of-an-older-version", 0) and is_over("of-an-older-version", long)


def test_a_process_that_may_not_be_looked_at_is_taken_to_live(monkeypatch: pytest.MonkeyPatch) -> None:
    own = new_owner()

    def denied(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", denied)
    assert not is_over(own, 10 * LEASE_S)


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen(["true"])
    deadline = time.monotonic() + 20
    while partial._start_of(child.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert partial._start_of(child.pid) is None
    child.wait()


def test_parts_are_published_whole_and_nothing_is_left(tmp_path: Path) -> None:
    with Partial(tmp_path) as mine, Partial(tmp_path) as other:
        (mine.folder / "a").mkdir()
        (mine.folder / "a/file").write_text("new")
        (tmp_path / "a").mkdir()
        (tmp_path / "a/file").write_text("old")
        assert other.folder.is_dir() and mine.folder != other.folder
        mine.publish("a", tmp_path / "a")
        assert (tmp_path / "a/file").read_text() == "new" and list(mine.folder.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_published_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with Partial(tmp_path) as mine, pytest.raises(FileNotFoundError):
        mine.publish("a", tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_only_version_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if PARTIAL in self.parts:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch, Partial(tmp_path) as mine:
        (mine.folder / "a").mkdir()
        patch.setattr(Path, "rename", fails)
        with pytest.raises(OSError, match="Input"):
            mine.publish("a", tmp_path / "a")
        mine.close()
        assert [path.name for path in mine.folder.iterdir() if path.name != "a"] == ["a~replaced"]
    dead = mine.folder.with_name(changed(mine.folder.name, boot="0" * 8))
    mine.folder.rename(dead) if mine.folder.exists() else None
    Partial(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Partial(tmp_path) as mine:
        lease = mine.folder.with_name(mine.folder.name + LEASE)
        os.utime(lease, (0, 0))

        class EndError(Exception):
            pass

        rounds = iter([None, None])

        def sleep(_: float) -> None:
            if next(rounds, EndError) is EndError:
                raise EndError

        monkeypatch.setattr(time, "sleep", sleep)
        with pytest.raises(EndError):
            partial._renew_all()
        assert lease.stat().st_mtime > time.time() - 100


def test_another_machines_parts_stay_until_its_lease_has_run_out(tmp_path: Path) -> None:
    elsewhere = tmp_path / PARTIAL / changed(new_owner(), machine="0" * 8)
    elsewhere.mkdir(parents=True)
    lease = elsewhere.with_name(elsewhere.name + LEASE)
    lease.touch()
    Partial(tmp_path).close()
    assert elsewhere.is_dir()
    past = time.time() - LEASE_S - 10
    os.utime(lease, (past, past))
    Partial(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["killed", "alive"])
def test_what_a_killed_process_left_is_swept_and_what_a_living_one_has_is_not(
    ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, place = tmp_path / "tmp", tmp_path / "place"
    temporary.mkdir()
    code = DIES.format(then="input()")
    process = subprocess.Popen(
        [sys.executable, "-c", code, place],
        env={**child_environment(), "TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline().startswith(b"begun")
    if ends == "killed":
        process.kill()
        process.wait()
    before = len(list(place.rglob("*")))
    assert before > 4
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(partial, "_swept", set())
    write_text(place / "other", "x")
    Partial(place).close()
    with temporary_folder() as mine:
        assert set(temporary.iterdir()) >= {mine} and (len(list(temporary.iterdir())) == 1) == (ends == "killed")
    names = sorted(path.name for path in place.iterdir())
    if ends == "killed":
        assert names == ["old", "other"] and (place / "old/file").read_text() == "older"
    else:
        assert len(list(place.rglob("*"))) == before + 1
    process.kill()
    process.communicate()
