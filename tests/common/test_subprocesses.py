"""Calls in processes of their own: the answer, the error with its exit code, a crash, a hang, an interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from segpipe.common import subprocesses
from segpipe.common.subprocesses import Ended, Subprocesses, in_threads, require_ended_well
from segpipe.errors import BAD_DATA, USAGE, SegpipeError

MODULE = """
import os, sys, time
from segpipe.errors import DataError, UsageError

def answer(path, times=1):
    print("noise of a library")
    sys.stderr.write("epoch 1/2\\n")
    return {"path": path, "times": times}

def rows():
    return [1]

def refuse():
    raise DataError("no such voxel", path="/secret/place/scan.nii", found="see /secret/place/scan.nii", case_id="c1")

def full():
    raise OSError(28, "No space left on device", "/x")

def bug():
    return 1 / 0

def crash():
    os.kill(os.getpid(), 4)

def leave():
    os._exit(3)

def talk(mark):
    sys.stderr.write("waiting\\n")
    time.sleep(60)
    open(mark, "w").close()

def hang(mark):
    open(mark, "w").close()
    time.sleep(60)
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subprocesses:
    """The functions above are what may be called."""
    (tmp_path / "callables.py").write_text(MODULE)
    (tmp_path / "child.py").write_text(
        "from segpipe.common import subprocesses\n"
        "names = ('answer', 'rows', 'refuse', 'full', 'bug', 'crash', 'leave', 'talk', 'hang')\n"
        "subprocesses.CALLABLE = tuple(f'callables.{name}' for name in names)\n"
        "subprocesses.main()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(subprocesses, "CHILD", "child")
    return Subprocesses()


def test_the_answer_is_a_document_and_the_lines_are_heard(calls: Subprocesses, tmp_path: Path) -> None:
    lines: list[str] = []
    ended = calls.call("callables.answer", {"path": tmp_path, "times": 2}, lines.append)
    assert (ended.code, ended.result, ended.error) == (0, {"path": str(tmp_path), "times": 2}, {})
    assert lines == ["epoch 1/2"]
    assert ended.seconds > 0 and ended.peak_memory_mb is not None and ended.peak_memory_mb > 5
    assert calls.call("callables.rows", {}).document == {"result": None}


def test_an_error_is_a_document_with_the_exit_code_of_the_command_line(calls: Subprocesses) -> None:
    ended = calls.call("callables.refuse", {})
    assert ended.code == ended.error["exit_code"] == 3
    assert ended.reason == "c1: no such voxel: see scan.nii"
    assert calls.call("callables.full", {}).code == 2
    ended = calls.call("callables.bug", {})
    assert ended.code == 1 and "this is a bug in segpipe: ZeroDivisionError" in ended.error["message"]
    assert "not among the functions" in calls.call("os.system", {"command": "true"}).error["message"]


@pytest.mark.parametrize(
    ("name", "code", "words"), [("crash", -signal.SIGILL, "crashed with SIGILL"), ("leave", 3, "ended with code 3")]
)
def test_a_death_is_told(calls: Subprocesses, name: str, code: int, words: str) -> None:
    ended = calls.call(f"callables.{name}", {})
    assert (ended.code, ended.document) == (code, {}) and words in ended.reason
    assert "for want of memory" in Ended(-9, {}).reason


def test_a_hang_is_ended(calls: Subprocesses, tmp_path: Path) -> None:
    ended = calls.call("callables.hang", {"mark": tmp_path / "mark"}, timeout_s=2)
    assert (
        ended.code == -signal.SIGKILL
        and ended.expired
        and ended.reason.startswith("no answer in 2 s on a machine with load ")
    )


def test_stop_interrupts_what_runs_and_starts_nothing_more(calls: Subprocesses, tmp_path: Path) -> None:
    def stop() -> None:
        while not (tmp_path / "mark").exists():
            time.sleep(0.01)
        calls.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        calls.call("callables.hang", {"mark": tmp_path / "mark"})
    thread.join()
    assert time.monotonic() - began < 30
    with pytest.raises(KeyboardInterrupt):
        calls.call("callables.answer", {"path": "x"})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_the_child_ends_with_its_parent(calls: Subprocesses, tmp_path: Path) -> None:
    code = (
        "from segpipe.common import subprocesses as s; s.CHILD = 'child'; "
        f"s.Subprocesses().call('callables.hang', {{'mark': {str(tmp_path / 'mark')!r}}})"
    )
    paths = os.pathsep.join([str(Path(subprocesses.__file__).parents[2]), str(tmp_path)])
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    while not (tmp_path / "mark").exists():
        time.sleep(0.01)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)


class Stoppable:
    stopped = False

    def stop(self) -> None:
        self.stopped = True


def worked_on(work: Callable[[int], object], jobs: int, count: int = 4) -> tuple[list[int], Stoppable, type | None]:
    begun: list[int] = []
    children = Stoppable()

    def task(value: int) -> None:
        begun.append(value)
        work(value)

    try:
        in_threads(task, range(count), jobs, children)
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        return begun, children, type(error)
    return begun, children, None


def test_one_after_the_other_in_their_order() -> None:
    at_once, most = [], []

    def work(value: int) -> None:
        at_once.append(value)
        most.append(len(at_once))
        at_once.remove(value)

    assert worked_on(work, 1)[0] == [0, 1, 2, 3]
    assert max(most) == 1


def test_two_at_the_same_time() -> None:
    both = threading.Barrier(2)
    begun, children, error = worked_on(lambda _: both.wait(10), 2)
    assert (sorted(begun), children.stopped, error) == ([0, 1, 2, 3], False, None)


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()])
def test_nothing_is_begun_after_a_failure_and_what_runs_is_stopped(failure: BaseException) -> None:
    def work(value: int) -> None:
        if value == 1:
            raise failure

    begun, children, error = worked_on(work, 1)
    assert (begun, children.stopped, error) == ([0, 1], True, type(failure))


def test_a_failure_has_the_words_and_the_code_that_it_had_there() -> None:
    require_ended_well(Ended(0, {}), "fold 0")
    with pytest.raises(SegpipeError, match="fold 0: no label") as caught:
        require_ended_well(Ended(3, {"error": {"message": "no label", "case_id": "a", "hint": "look"}}), "fold 0")
    assert (caught.value.exit_code, caught.value.case_id, caught.value.hint) == (BAD_DATA, "a", "look")
    with pytest.raises(SegpipeError, match="for want of memory") as caught:
        require_ended_well(Ended(-9, {}))
    assert caught.value.exit_code == USAGE


def test_a_listener_that_raises_interrupts_the_process_and_is_heard(calls: Subprocesses, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        assert line == "waiting"
        raise LookupError("enough")

    began = time.monotonic()
    with pytest.raises(LookupError, match="enough"):
        calls.call("callables.talk", {"mark": tmp_path / "mark"}, stop)
    assert time.monotonic() - began < 30 and not (tmp_path / "mark").exists()
    assert calls.call("callables.rows", {}).code == 0  # and others go on
