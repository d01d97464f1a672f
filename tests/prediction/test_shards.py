"""One batch on several processes: fixed shares, one result folder, the same files as one process writes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.cli.app import run
from segpipe.common.folder_lock import locked
from segpipe.common.result_folder import STATE, append_line, read_events
from segpipe.common.subprocesses import Ended
from segpipe.errors import RefusedError, SegpipeError, UsageError
from segpipe.prediction import in_processes
from segpipe.prediction.batch_summary import BatchProgress, Outcome
from segpipe.prediction.options import Options
from segpipe.prediction.shards import SHARDS, Shard, held_by
from tiny_bundle import write_scan

N = 30


@dataclass(frozen=True)
class Named:
    id: str


@given(st.lists(st.text("abc1-", min_size=1, max_size=6), unique=True, max_size=40), st.integers(1, 9))
def test_every_case_is_in_one_share(ids: list[str], number: int) -> None:
    cases = [Named(id) for id in ids]
    shares = [Shard(index, number).of(cases) for index in range(number)]
    assert sorted(case.id for share in shares for case in share) == sorted(ids)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert all(share == [case for case in cases if case in share] for share in shares)
    assert Shard(0, number).of(list(reversed(cases))) == list(reversed(shares[0]))  # whatever the order


@pytest.mark.parametrize("text", ["3/3", "1", "-1/3", "0/0", "a/b", "1/2/3", "0.5/2", ""])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageError, match="share"):
        Shard.parse(text)


def test_who_may_work_in_a_folder_at_the_same_time(tmp_path: Path) -> None:
    with held_by(tmp_path, Shard(0, 2)):
        with held_by(tmp_path, Shard(1, 2)):
            assert sorted(path.name for path in (tmp_path / SHARDS).iterdir()) == ["0_of_2", "1_of_2"]
        for other, words in (
            (Shard(0, 2), "this share"),
            (Shard(0, 3), "another number"),
            (None, "another prediction"),
        ):
            with pytest.raises(RefusedError, match=words), held_by(tmp_path, other):
                pass
    assert not (tmp_path / SHARDS).exists()
    (tmp_path / SHARDS).mkdir()
    (tmp_path / SHARDS / "0_of_2").touch()  # of one that was killed
    with held_by(tmp_path, Shard(2, 3)):
        pass
    with held_by(tmp_path), pytest.raises(RefusedError), held_by(tmp_path, Shard(2, 3)):
        pass


def test_a_folder_is_locked_without_a_file(tmp_path: Path) -> None:
    busy = UsageError("busy")
    with locked(tmp_path, busy, name=None), pytest.raises(UsageError, match="busy"), locked(tmp_path, busy, name=None):
        pass
    with locked(tmp_path, busy, name=None, shared=True), locked(tmp_path, busy, name=None, shared=True):
        assert list(tmp_path.iterdir()) == []


def write_scans(folder: Path, number: int, bad: tuple[int, ...] = ()) -> None:
    folder.mkdir(parents=True)
    for index in range(number):
        write_scan(folder / f"case{index:03d}.nii.gz")
        if index in bad:
            path = folder / f"case{index:03d}.nii.gz"
            path.write_bytes(path.read_bytes()[:-300])


def results_of(out: Path) -> dict[str, Any]:
    """Return what a folder holds, without times and the process's own figures."""
    files: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        if path.is_dir() or path.name in (STATE, "mapping.jsonl", "report.html"):
            continue
        content: Any = path.read_bytes()
        if path.suffix == ".json":
            content = without_times(json.loads(content))
        if path.name == "summary.csv":
            rows = csv.DictReader(content.decode().splitlines())
            content = [{name: cell for name, cell in row.items() if name != "seconds"} for row in rows]
        files[str(path.relative_to(out))] = content
    return files


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        dropped = ("seconds", "peak_memory_mb", "max_memory")
        return {name: without_times(part) for name, part in value.items() if name not in dropped}
    return [without_times(part) for part in value] if isinstance(value, list) else value


@pytest.mark.usefixtures("one_worker")
def test_the_shares_together_write_what_one_process_writes(tiny_bundle: Path, tmp_path: Path, capsys) -> None:
    write_scans(tmp_path / "in", 5, bad=(3,))
    common = ["predict", str(tiny_bundle), str(tmp_path / "in")]
    assert run([*common, str(tmp_path / "whole")]) == 4
    codes = [run([*common, str(tmp_path / "shared"), "--shard", f"{index}/3"]) for index in range(3)]
    assert codes == [4, 0, 0]  # case003 is the fourth of five
    assert results_of(tmp_path / "shared") == results_of(tmp_path / "whole")
    capsys.readouterr()
    assert run([*common, str(tmp_path / "shared"), "--shard", "0/3", "--workers", "2"]) == 2
    assert "--shard and --workers" in capsys.readouterr().err


def test_each_process_has_its_part_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(in_processes, "usable_cores", lambda: 8)
    (tmp_path / "gpus/0").mkdir(parents=True)
    (tmp_path / "gpus/1").mkdir()
    monkeypatch.setattr(in_processes, "GPUS", tmp_path / "none")
    parts = in_processes._own_parts(Options.parse({"workers": 3, "max_memory": 900}), 3)
    assert parts == [{"threads": 2, "max_memory": 300}] * 3
    monkeypatch.setattr(in_processes, "GPUS", tmp_path / "gpus")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices = [part["device"] for part in in_processes._own_parts(Options.parse({"workers": 3}), 3)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert in_processes.visible_gpus() == 1
    assert "device" not in in_processes._own_parts(Options.parse({"workers": 3, "device": "cpu"}), 3)[0]


class Dying:
    """Calls of which the first of each share dies; with ``always`` every one does."""

    def __init__(self, out: Path, always: bool = False) -> None:
        self.out, self.always = out, always
        self.asked: list[dict[str, Any]] = []

    def call(self, name: str, arguments: dict[str, Any]) -> Ended:
        first = arguments["shard"] not in [each["shard"] for each in self.asked]
        self.asked.append(dict(arguments))
        append_line(self.out / STATE, {"event": "failed", "id": arguments["shard"], "reason": f"try {len(self.asked)}"})
        return Ended(-9, {}) if first or self.always else Ended(0, {"result": None})

    def stop(self) -> None:
        pass


def test_a_process_that_dies_is_asked_for_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Told(BatchProgress):
        def finished(self, outcome: Outcome) -> None:
            seen.append(outcome.id)

    cases: Any = [Named("0/2"), Named("1/2")]
    children = Dying(tmp_path)
    monkeypatch.setattr(in_processes, "Subprocesses", lambda: children)
    options = Options.parse({"workers": 2, "overwrite": True})
    asked = {"bundle": "b", "overwrite": True}
    outcomes = in_processes.predict_in_processes(asked, tmp_path, cases, options, Told())
    assert [outcome.id for outcome in outcomes] == ["0/2", "1/2"] and sorted(seen) == ["0/2", "1/2"]
    assert len(children.asked) == 4 and all(each["overwrite"] for each in children.asked)
    monkeypatch.setattr(in_processes, "Subprocesses", lambda: Dying(tmp_path, always=True))
    with pytest.raises(SegpipeError, match=r"process \d of 2: the process was killed"):
        in_processes.predict_in_processes(asked, tmp_path, cases, options, Told())


@pytest.mark.slow
def test_cases_in_two_processes_one_of_which_is_killed(tiny_bundle: Path, tmp_path: Path, capsys) -> None:
    bad = tuple(range(7, N, 20))
    write_scans(tmp_path / "in", N, bad)
    common = ["predict", str(tiny_bundle), str(tmp_path / "in")]
    assert run([*common, str(tmp_path / "whole"), "--threads", "1"]) == 4
    out = tmp_path / "shared"
    words = [sys.executable, "-m", "segpipe", *common, str(out), "--threads", "1", "--workers", "2", "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed = kill_at_random(process, out)
    output, errors = process.communicate()
    assert process.returncode == 4, errors
    assert killed.result, "no process was there to be killed"
    document = json.loads(output)
    assert document["counts"] == {"done": N - len(bad), "skipped": 0, "failed": len(bad), "refused": 0}
    assert [case["id"] for case in document["cases"]] == [f"case{index:03d}" for index in range(N)]
    done = [event["id"] for event in read_events(out) if event["event"] == "done"]
    assert len(done) == len(set(done)) == N - len(bad)  # nothing twice
    assert results_of(out) == results_of(tmp_path / "whole")
    assert not (out / ".partial").exists() and not (out / SHARDS).exists()


class kill_at_random:  # noqa: N801 - used as a call
    """Kill one of the processes that compute shares, once some cases are done."""

    def __init__(self, process: subprocess.Popen[str], out: Path) -> None:
        self.result: int | None = None
        self._process, self._out = process, out
        threading.Thread(target=self._kill, daemon=True).start()

    def _kill(self) -> None:
        rng = np.random.default_rng()
        wanted = int(rng.integers(2, N // 2))
        while self._process.poll() is None:
            if len(list(self._out.glob("case*"))) >= wanted:
                shares = psutil.Process(self._process.pid).children()
                self.result = shares[int(rng.integers(len(shares)))].pid
                os.kill(self.result, signal.SIGKILL)
                return
            time.sleep(0.05)


@pytest.mark.slow
def test_what_ends_the_batch_in_one_process_ends_it_with_its_own_words(tiny_bundle: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "in", 4)
    out = tmp_path / "out"
    (out / "case002").mkdir(parents=True)
    (out / "case002" / "scan.dcm").touch()  # somebody's own folder
    words = [sys.executable, "-m", "segpipe", "predict", str(tiny_bundle), str(tmp_path / "in"), str(out)]
    done = subprocess.run([*words, "--workers", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "has the name of a case's result" in done.stderr and "Traceback" not in done.stderr
