"""No process outlives the one that started it, however that ends."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

import segpipe
from segpipe.common import processes
from segpipe.common.processes import child_environment, tied
from tiny_bundle import write_bundle, write_scan

PACKAGE = Path(segpipe.__file__).parent
STARTS = {"Popen", "run", "call", "check_call", "check_output", "getoutput", "system", "popen", "fork", "forkpty"}
STARTS |= {"posix_spawn", "posix_spawnp", "execvp", "execv", "execve", "ProcessPoolExecutor", "Process", "Pool"}
STARTS |= {"create_subprocess_exec", "create_subprocess_shell", "get_context", "startfile", "spawnv", "spawnvp"}
OWNERS = {"subprocess", "os", "multiprocessing", "asyncio", "futures"}
linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")


def starts(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function, owner = node.func, None
            if isinstance(function, ast.Attribute):
                owner = function.value.id if isinstance(function.value, ast.Name) else "other"
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in STARTS and (owner in OWNERS or (owner is None and name[0].isupper())):
                yield name, node


def is_tied(call: ast.Call) -> bool:
    first = call.args[0] if call.args else None
    return isinstance(first, ast.Call) and isinstance(first.func, ast.Name) and first.func.id == "tied"


def test_every_start_of_a_process_is_tied() -> None:
    """Outside `processes`, which ties its pool, a process is a call of `subprocess` with the command of `tied`."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, call in starts(ast.parse(path.read_text())):
            if path != Path(processes.__file__) and not is_tied(call):
                found.append(f"{path.relative_to(PACKAGE)}:{call.lineno}: {name}")
    assert found == []
    sample = "import subprocess, os\nsubprocess.run(['git'])\nos.fork()\nsubprocess.Popen(tied(['git']))"
    assert [(name, is_tied(call)) for name, call in starts(ast.parse(sample))] == [
        ("run", False),
        ("fork", False),
        ("Popen", True),
    ]


def below(process: subprocess.Popen[bytes], number: int, patience_s: float = 60) -> list[psutil.Process]:
    """Its processes, once there are so many that run Python."""
    deadline = time.monotonic() + patience_s
    while process.poll() is None and time.monotonic() < deadline:
        with_us = psutil.Process(process.pid).children(recursive=True)
        if len(with_us) >= number:
            return with_us
        time.sleep(0.02)
    raise AssertionError(f"{process.args} started {len(with_us)} of {number} processes")


def all_end(started: list[psutil.Process], patience_s: float = 20) -> bool:
    _, alive = psutil.wait_procs(started, timeout=patience_s)
    alive = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    for process in alive:
        process.kill()
    return not alive


def start(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], env=child_environment(), stdout=subprocess.DEVNULL)


POOL = """
from time import sleep
from segpipe.common.processes import over_cases
if __name__ == "__main__":
    over_cases(sleep, [120, 120, 120], 2, print)
"""
PROGRAM = """
import subprocess
from segpipe.common.processes import tied
subprocess.run(tied(["sleep", "120"]))
"""
NESTED = f"""
import subprocess, sys
from segpipe.common.processes import tied
subprocess.run(tied([sys.executable, "-c", {PROGRAM!r}]))
"""


@linux
@pytest.mark.parametrize(
    ("code", "number"), [(PROGRAM, 1), (NESTED, 2), pytest.param(POOL, 3, marks=pytest.mark.slow)], ids=range(3)
)
@pytest.mark.parametrize("number_of_signal", [signal.SIGKILL, signal.SIGHUP])
def test_children_end_with_their_parent(code: str, number: int, number_of_signal: signal.Signals) -> None:
    process = start(code)
    started = below(process, number)
    process.send_signal(number_of_signal)
    process.wait(20)
    assert all_end(started)


@linux
def test_a_program_whose_parent_has_ended_already_does_not_begin(tmp_path: Path) -> None:
    command = tied(["touch", str(tmp_path / "begun")])
    nobody = [*command[:4], "1", *command[5:]] if os.getppid() != 1 else [*command[:4], "2", *command[5:]]
    assert command[4] == str(os.getpid())
    assert subprocess.run(nobody, check=False).returncode == processes.LOST and not (tmp_path / "begun").exists()
    assert subprocess.run(command, check=False).returncode == 0 and (tmp_path / "begun").exists()


BETWEEN = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@linux
def test_what_another_library_starts_ends_with_the_process_that_it_names(tmp_path: Path) -> None:
    owner = subprocess.Popen(["sleep", "120"])
    work = f"import time; from segpipe.common.processes import end_with; end_with({owner.pid}); time.sleep(120)"
    between = subprocess.Popen([sys.executable, "-c", BETWEEN, work], env=child_environment())
    try:
        started = below(between, 1)
        time.sleep(0.5)
        assert all(process.is_running() for process in started)
        owner.kill()
        assert all_end(started)  # also before anybody has asked how the owner ended
    finally:
        owner.kill()
        owner.wait()
        between.kill()
        between.wait()
    late = work.replace("time.sleep(120)", "print('begun')")
    ended = subprocess.run([sys.executable, "-c", late], env=child_environment(), capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (processes.LOST, b"")


@linux
def test_a_program_that_there_is_not() -> None:
    assert subprocess.run(tied(["segpipe-no-such-program"]), check=False).returncode == processes.NO_PROGRAM


def test_elsewhere_the_parent_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(processes, "WATCH_S", 0.01)
    ended: list[int] = []
    parents = iter([7, 7, 7, 1, 1, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "_exit", ended.append)
    processes.end_with_parent()
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended == [processes.LOST] and tied(["git"]) == ["git"]


def manifest_of_large_images(root: Path) -> list[str]:
    from segpipe.cli.app import run

    voxels = np.random.default_rng(0).integers(0, 900, (160, 160, 160)).astype(np.int16)
    labels = (voxels > 600).astype(np.uint8)
    for number in range(6):
        for folder, values in (("imagesTr", voxels), ("labelsTr", labels)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, np.eye(4)), root / folder / f"case_{number}.nii")
    words = ["import", "--images", str(root / "imagesTr"), "--labels", str(root / "labelsTr")]
    assert run([*words, "-o", str(root / "manifest.json"), "--label-name", "a", "--modality", "MRI"]) == 0
    return ["check", str(root / "manifest.json"), "--workers", "2"]


def prediction(root: Path) -> list[str]:
    scan = write_scan(root / "scan.nii.gz", shape=(60, 60, 60))
    return ["predict", str(write_bundle(root / "bundle")), str(scan), str(root / "out"), "--device", "cpu"]


@linux
@pytest.mark.slow
@pytest.mark.parametrize(("words_of", "number"), [(manifest_of_large_images, 3), (prediction, 1)])
def test_a_command_that_is_killed_leaves_no_process(
    words_of: Callable[[Path], list[str]], number: int, tmp_path: Path
) -> None:
    process = subprocess.Popen([sys.executable, "-m", "segpipe", *words_of(tmp_path)], env=child_environment())
    started = below(process, number)
    process.kill()
    process.wait()
    assert all_end(started)
