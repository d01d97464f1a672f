"""One batch on several processes: fixed shares, one result folder, the same files as one process writes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segpipe.cli.app import run
from segpipe.common.files import write_json
from segpipe.common.result_folder import MAPPING, RESULT, STATE, append_line, read_events
from segpipe.common.subprocesses import Ended
from segpipe.errors import SegpipeError
from segpipe.prediction import batch, in_processes
from segpipe.prediction.batch_summary import BatchProgress, Outcome
from segpipe.prediction.cases import cases_as_listed
from segpipe.prediction.file_cases import InputCase
from segpipe.prediction.options import Options
from segpipe.prediction.resume import EarlierResults
from segpipe.quality import Rules
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


class OneAfterAnother:
    """Calls in this process, in any order but never together; a scan arrives before the second."""

    def __init__(self, arriving: Path, gone: Path) -> None:
        self.arriving, self.gone = arriving, gone
        self.lock = threading.Lock()
        self.asked: list[str] = []

    def call(self, name: str, arguments: dict[str, Any]) -> Ended:
        module, _, function = name.rpartition(".")
        with self.lock:
            if self.asked:
                self.arriving.touch()
                self.gone.unlink()
            self.asked.append(name)
            asked = {key: value for key, value in arguments.items() if key not in ("threads", "max_memory")}
            getattr(import_module(module), function)(**asked)
        return Ended(0, {"result": None})

    def stop(self) -> None:
        pass


def recorded(bundle: Any, cases: Sequence[InputCase], out: Path, options: Options, **more: Any) -> list[Outcome]:
    """Say of each case that it is done or refused, as a batch does, and compute nothing."""
    for case in cases:
        if case.refusal is None:
            write_json(out / case.id / RESULT, {"id": case.id})
        reason = case.refusal and case.refusal.reason
        append_line(out / STATE, {"event": "refused" if reason else "done", "id": case.id, "reason": reason})
    return []


def test_what_arrives_or_goes_while_processes_begin_is_in_no_other_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(6):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/case{index:03d}.nii.gz").touch()
    model = SimpleNamespace(of_scans=SimpleNamespace(metadata={}, channels=("image",)), root=tmp_path)
    for name, value in {
        "open_bundle": lambda path, **terms: model,
        "shipped_rules": lambda root: Rules(),
        "judge_mirror": lambda options, bundles: options,
        "predict_cases": recorded,
    }.items():
        monkeypatch.setattr(batch, name, value)
    children = OneAfterAnother(tmp_path / "in/case000a.nii.gz", tmp_path / "in/case005.nii.gz")
    monkeypatch.setattr(in_processes, "Subprocesses", lambda: children)
    ended = batch.predict(tmp_path / "bundle", tmp_path / "in", tmp_path / "out", workers=2).outcomes
    assert [outcome.id for outcome in ended] == [f"case{index:03d}" for index in range(6)]
    assert [outcome.status for outcome in ended[:5]] == ["done"] * 5
    assert (ended[5].status, ended[5].reason) in (("refused", "gone"), ("done", None))  # by whose it is
    events = [event["id"] for event in read_events(tmp_path / "out")]
    assert len(events) == len(set(events)) == 6


def test_a_case_that_is_gone_is_refused_though_it_was_finished_before(tmp_path: Path) -> None:
    write_json(tmp_path / "scan" / RESULT, {"id": "scan"})
    append_line(tmp_path / MAPPING, {"id": "scan", "paths": ["/in/scan.nii.gz"], "stat": [[1, 2]], "sha256": ["00"]})
    cases = cases_as_listed([], ["scan"])
    bundle: Any = SimpleNamespace(sha256="1")
    earlier = EarlierResults(tmp_path, bundle, cases, Options())
    earlier.folder.close()
    assert earlier.done == {} and [case.refusal.reason for case in cases if case.refusal] == ["gone"]


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
