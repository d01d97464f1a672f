"""Work over cases: in order, in one process or several, and a death costs one case."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import segpipe
from segpipe.common import processes
from segpipe.common.processes import child_environment, over_cases, usable_cores, workers_to_read


def square_unless_3(number: int) -> int:
    if number == 3:
        os._exit(9)
    return number * number


def refuse_2(number: int) -> int:
    if number == 2:
        raise ValueError("two")
    return number


def heeds_ctrl_c(_: int) -> bool:
    return signal.getsignal(signal.SIGINT) != signal.SIG_IGN


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    seen: list[int] = []
    assert over_cases(abs, [-3, -1, -2], workers, lambda job: 0, seen.append) == [3, 1, 2]
    assert sorted(seen) == [-3, -2, -1]


def test_a_process_that_dies_costs_its_case_alone() -> None:
    seen: list[int] = []
    assert over_cases(square_unless_3, [2, 3, 4, 5], 2, lambda job: -job, seen.append) == [4, -3, 16, 25]
    assert sorted(seen) == [2, 3, 4, 5]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_ends_the_batch(workers: int) -> None:
    with pytest.raises(ValueError, match="two"):
        over_cases(refuse_2, [1, 2, 3], workers, lambda job: 0)


def test_ctrl_c_is_left_to_the_parent() -> None:
    assert over_cases(heeds_ctrl_c, [1, 2], 2, lambda job: True) == [False, False]


def test_processes_are_started_for_large_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / str(number) for number in range(20)]
    for file in files[:-1]:
        file.write_bytes(b"x" * 1000)
    monkeypatch.setattr(processes, "usable_cores", lambda: 64)
    assert workers_to_read(files) == 1
    monkeypatch.setattr(processes, "BYTES_WORTH_A_WORKER", 7000)
    assert workers_to_read(files) == 2
    monkeypatch.setattr(processes, "BYTES_WORTH_A_WORKER", 10)
    assert workers_to_read(files) == processes.MOST_WORKERS
    for file in files[:-1]:
        file.unlink()
    with gzip.open(files[0].with_suffix(".gz"), "wb") as stream:
        stream.write(bytes(500_000))
    scans = [files[0].with_suffix(".gz")] * 8
    monkeypatch.setattr(processes, "BYTES_OF_WORKERS", 2_000_000)
    monkeypatch.setattr(processes, "WORKER_BYTES", 110_000)
    assert workers_to_read(scans) == 2, "each holds half as much again as the unpacked file"
    monkeypatch.setattr(processes, "BYTES_OF_WORKERS", 200_000)
    assert workers_to_read(scans) == 1
    monkeypatch.undo()
    assert usable_cores() >= 1


def test_a_container_has_the_cores_that_it_is_given(tmp_path: Path) -> None:
    for text, cores in (("50000 100000", 1), ("max 100000", usable_cores()), ("", usable_cores())):
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert usable_cores(tmp_path / "cpu.max") == cores
    assert usable_cores(tmp_path / "none") >= 1


def test_a_child_runs_the_package_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("here", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "segpipe.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    command = [sys.executable, "-c", "import segpipe; print(segpipe.__file__)"]
    done = subprocess.run(
        command, cwd=tmp_path / "here", env=child_environment(), check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == segpipe.__file__
