"""One batch on several processes: fixed shares, one result folder, the same files as one process writes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from segpipe.cli.app import run
from segpipe.common.result_folder import STATE, append_line
from segpipe.common.subprocesses import Ended
from segpipe.errors import SegpipeError
from segpipe.prediction import in_processes
from segpipe.prediction.batch_summary import BatchProgress, Outcome
from segpipe.prediction.options import Options
from tiny_batches import results_of
from tiny_bundle import write_scan


@dataclass(frozen=True)
class Named:
    id: str


def write_scans(folder: Path, number: int, bad: tuple[int, ...] = ()) -> None:
    folder.mkdir(parents=True)
    for index in range(number):
        write_scan(folder / f"case{index:03d}.nii.gz")
        if index in bad:
            path = folder / f"case{index:03d}.nii.gz"
            path.write_bytes(path.read_bytes()[:-300])


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
        append_line(self.out / STATE, {"event": "crashed", "id": arguments["shard"], "reason": "killed"})
        append_line(self.out / STATE, {"event": "failed", "id": arguments["shard"], "reason": f"try {len(self.asked)}"})
        return Ended(-9, {}) if first or self.always else Ended(0, {"result": None})

    def stop(self) -> None:
        pass


def test_a_process_that_dies_is_asked_for_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    last_words: list[str] = []

    class Told(BatchProgress):
        def finished(self, outcome: Outcome) -> None:
            seen.append(outcome.id)

        def crashed(self, case_id: str, death: in_processes.WorkerDiedError) -> None:
            last_words.extend(death.last_words)

    cases: Any = [Named("0/2"), Named("1/2")]
    children = Dying(tmp_path)
    monkeypatch.setattr(in_processes, "Subprocesses", lambda: children)
    options = Options.parse({"workers": 2, "overwrite": True})
    asked = {"bundle": "b", "overwrite": True}
    outcomes = in_processes.predict_in_processes(asked, tmp_path, cases, options, Told())
    assert [outcome.id for outcome in outcomes] == ["0/2", "1/2"] and sorted(seen) == ["0/2", "1/2"]
    assert len(children.asked) == 4 and all(each["overwrite"] for each in children.asked)
    assert len(last_words) == 4 and all("without --workers they are shown" in each for each in last_words)
    monkeypatch.setattr(in_processes, "Subprocesses", lambda: Dying(tmp_path, always=True))
    with pytest.raises(SegpipeError, match=r"process \d of 2: the process was killed"):
        in_processes.predict_in_processes(asked, tmp_path, cases, options, Told())


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
