"""The case behind the one that is computed is prefetched, and never costs the other one its turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_batch import DIED, FakeWorker, raises, run

from segpipe.cli.app import run as cli
from segpipe.common.result_folder import RESULT, read_events
from segpipe.errors import SOME_FAILED
from segpipe.prediction.client import WorkerMemoryError, WorkerTimeoutError
from segpipe.prediction.protocol import CaseFiles, Loaded, Segment, Segmented
from tiny_bundle import write_scan


class Streaming(FakeWorker):
    """Notes what it is to prefetch, and whether it was asked to during each call."""

    def __init__(self, **deeds: Callable[[int], None]) -> None:
        super().__init__(**deeds)
        self.loaded = Loaded(engine="streaming")
        self.read: list[str] = []
        self.told: list[bool] = []

    def prefetch(self, case: CaseFiles) -> None:
        self.read.append(case.id)

    def segment(self, request: Segment, timeout_s: float | None = None, meanwhile: Any = None) -> Segmented:
        self.told.append(meanwhile is not None)
        if meanwhile is not None:
            meanwhile()
        return super().segment(request)


def test_each_case_but_the_first_is_prefetched(tmp_path: Path) -> None:
    worker = Streaming()
    assert set(run(tmp_path, worker, "a", "b", "c").values()) == {"done"}
    assert (worker.read, worker.told) == (["b", "c"], [True, True, False])


def test_finished_cases_are_not_prefetched(tmp_path: Path) -> None:
    run(tmp_path, FakeWorker(), "b")
    worker = Streaming()
    assert run(tmp_path, worker, "a", "b", "c") == {"a": "done", "b": "skipped", "c": "done"}
    assert (worker.calls, worker.read) == (["a", "c"], ["c"])


@pytest.mark.parametrize("end", [DIED, WorkerMemoryError()])
def test_a_case_that_ends_the_worker_while_another_is_read_is_tried_alone(tmp_path: Path, end: Exception) -> None:
    worker = Streaming(a=raises(end, times=1))
    assert run(tmp_path, worker, "a", "b", retries=0) == {"a": "done", "b": "done"}
    assert (worker.calls, worker.told, worker.read) == (["a", "a", "b"], [True, False, False], ["b"])


def test_a_case_that_ends_it_alone_too_fails(tmp_path: Path) -> None:
    worker = Streaming(a=raises(DIED))
    assert run(tmp_path, worker, "a", "b", retries=1) == {"a": "failed", "b": "done"}
    assert worker.calls == ["a", "a", "a", "b"]
    assert [event["attempt"] for event in read_events(tmp_path) if event["event"] == "crashed"] == [1, 2, 3]


def test_a_limit_of_time_is_the_case_s_own(tmp_path: Path) -> None:
    worker = Streaming(a=raises(WorkerTimeoutError()))
    assert run(tmp_path, worker, "a", "b", timeout=5) == {"a": "failed", "b": "done"}
    assert worker.calls == ["a", "b"] and worker.read == [] and not any(worker.told)


@pytest.mark.usefixtures("one_worker")
def test_cases_by_a_real_worker_are_as_alone(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = [write_scan(tmp_path / "in" / f"s{seed}.nii.gz", seed) for seed in range(4)]
    scans[2].write_bytes(b"no image")
    assert cli(["predict", str(tiny_bundle), str(tmp_path / "in"), str(tmp_path / "out"), "--json"]) == SOME_FAILED
    cases = {case["id"]: case for case in json.loads(capsys.readouterr().out)["cases"]}
    assert cases["s2"]["status"] == "failed" and "NIfTI" in cases["s2"]["reason"]
    for id in ("s0", "s1", "s3"):
        assert cli(["predict", str(tiny_bundle), str(tmp_path / f"in/{id}.nii.gz"), str(tmp_path / "alone")]) == 0
        alone = json.loads((tmp_path / "alone" / id / RESULT).read_text())
        assert alone["voxels"] == json.loads((tmp_path / "out" / id / RESULT).read_text())["voxels"]
        both = [(tmp_path / folder / id / "segmentation.nii.gz").read_bytes() for folder in ("out", "alone")]
        assert both[0] == both[1]
