"""The state of a batch on disk, with a stand-in for the worker."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segpipe.bundle import Bundle, open_bundle
from segpipe.common.files import cannot_write, sha256_of, write_json
from segpipe.common.folder_lock import locked
from segpipe.common.partial import PARTIAL
from segpipe.common.result_folder import SEGMENTATION, STATE, ResultFolder, read_events
from segpipe.errors import DataError, RefusedError, UsageError
from segpipe.inference import ModelOptions
from segpipe.prediction import batch
from segpipe.prediction.batch import predict_cases
from segpipe.prediction.batch_summary import Outcome, redact
from segpipe.prediction.client import CannotGoOnError, WorkerDiedError, WorkerTimeoutError
from segpipe.prediction.file_cases import InputCase
from segpipe.prediction.options import Options, Outputs
from segpipe.prediction.protocol import Loaded, Segment, Segmented


class FakeWorker:
    """Writes a file, or does what ``deeds`` has for the case's file name."""

    def __init__(self, **deeds: Callable[[int], None]) -> None:
        self.deeds = deeds
        self.calls: list[str] = []
        self.loaded = Loaded()

    def start(self) -> Loaded:
        return self.loaded

    def close(self) -> None:
        raise AssertionError("a worker that was lent is not closed")

    def segment(self, request: Segment, timeout_s: float | None = None, meanwhile: Any = None) -> Segmented:
        name = Path(request.case.paths[0]).name
        self.calls.append(name)
        (Path(request.folder) / SEGMENTATION).write_bytes(b"labels")
        if name in self.deeds:
            self.deeds[name](self.calls.count(name))
        return Segmented(voxels={"x": 1}, volumes_ml={"x": 0.1}, flags={}, files={"nifti": SEGMENTATION}, seconds={})


def raises(error: BaseException, times: int = 99) -> Callable[[int], None]:
    def deed(call: int) -> None:
        if call <= times:
            raise error

    return deed


def bundle(sha256: str = "a" * 64, **changes: Any) -> Bundle:
    return Bundle(
        root=Path("/b"),
        name="tiny",
        version="1",
        metadata={},
        inference={},
        config_file=Path("/b/c"),
        weights=Path("/b/w"),
        sha256=sha256,
        intact=None,
        labels={0: "background", 1: "x"},
        channels=["MRI"],
        **changes,
    )


def items(*names: str) -> list[InputCase]:
    return [InputCase(name, (Path("/scans") / name,)) for name in names]


def run(out: Path, worker: FakeWorker, *names: str, sha256: str = "a" * 64, **options: Any) -> dict[str, str]:
    outcomes = predict_cases(bundle(sha256), items(*names), out, Options(**options), worker=worker)  # type: ignore[arg-type]
    return {outcome.id: outcome.status for outcome in outcomes}


def partial(out: Path) -> list[Path]:
    return list((out / PARTIAL).rglob("*"))


DIED = WorkerDiedError("the worker crashed with SIGSEGV", ["last line of /home/jane"])


def test_finished_cases_are_not_computed_again(tmp_path: Path) -> None:
    first = FakeWorker(b=raises(DataError("bad", path="/scans/b", found="/scans/b is bad")))
    assert run(tmp_path, first, "a", "b", "c") == {"a": "done", "b": "failed", "c": "done"}
    before = (tmp_path / "a/segmentation.nii.gz").stat().st_mtime_ns
    second = FakeWorker()
    assert run(tmp_path, second, "a", "b", "c") == {"a": "skipped", "b": "done", "c": "skipped"}
    assert second.calls == ["b"]
    assert (tmp_path / "a/segmentation.nii.gz").stat().st_mtime_ns == before
    assert run(tmp_path, FakeWorker(), "a", overwrite=True) == {"a": "done"}
    assert not (tmp_path / PARTIAL).exists()


def test_a_skipped_case_has_the_result_of_before(tmp_path: Path) -> None:
    results = [
        predict_cases(bundle(), items("a"), tmp_path, Options(), worker=FakeWorker())[0].result  # type: ignore[arg-type]
        for _ in range(2)
    ]
    assert results[0]["volumes_ml"] == {"x": 0.1} and results[1] == json.loads(json.dumps(results[0]))


def test_state_names_bundle_and_ids_but_no_path(tmp_path: Path) -> None:
    worker = FakeWorker(b=raises(DataError("bad", path="/scans/b", found="/scans/b and /home/jane/x.nii")))
    run(tmp_path, worker, "a", "b")
    events = read_events(tmp_path)
    assert [event["event"] for event in events] == ["start", "done", "failed"]
    assert events[0]["bundle"] == "a" * 64
    assert events[2]["detail"] == "found b and (path)"
    for name in ("predictions.jsonl", "a/result.json"):
        assert "/" not in (tmp_path / name).read_text()
    result = json.loads((tmp_path / "a/result.json").read_text())
    assert result["schema_version"] == 1 and result["bundle"]["sha256"] == "a" * 64
    assert result["route"] == "typed" and result["volumes_ml"] == {"x": 0.1}
    mapping = tmp_path / "mapping.jsonl"
    assert json.loads(mapping.read_text()) == {"id": "a", "paths": ["/scans/a"]}
    assert mapping.stat().st_mode & 0o777 == 0o600


def test_a_result_says_whether_the_bundle_was_trained_on_the_case(tmp_path: Path) -> None:
    root, scan = tmp_path / "bundle", tmp_path / "scan.nii"
    scan.write_bytes(b"voxels")
    image = {"image": "a.nii", "label": "a_seg.nii", "sha256": {"a.nii": sha256_of(scan)}}
    write_json(root / "configs/manifest.json", {"training": [{"id": "a", **image}], "test": []})
    split = {"training": ["a"], "validation": ["v"]}
    write_json(root / "provenance.json", {"split": split, "manifest": {"sha256": "c" * 64}})
    cases = [InputCase("renamed", (scan,)), *items("a", "v", "new")]
    model = replace(bundle(), root=root)
    predict_cases(model, cases, tmp_path / "out", Options(), worker=FakeWorker())  # type: ignore[arg-type]
    said = {case.id: json.loads((tmp_path / "out" / case.id / "result.json").read_text())["training"] for case in cases}
    assert said["renamed"] == {"image": "training", "case": None, "manifests": ["c" * 64]}
    assert (said["a"]["case"], said["v"]["case"], said["new"]["case"]) == ("training", "validation", None)
    run(tmp_path / "other", FakeWorker(), "a")
    assert json.loads((tmp_path / "other/a/result.json").read_text())["training"] is None


def test_a_case_that_crashes_the_worker_is_tried_again(tmp_path: Path) -> None:
    crashes: list[str] = []
    worker = FakeWorker(a=raises(DIED, times=1), b=raises(DIED))
    outcomes = predict_cases(
        bundle(),
        items("a", "b", "c"),
        tmp_path,
        Options(retries=1),
        worker=worker,  # type: ignore[arg-type]
        on_crash=lambda case_id, death: crashes.append(case_id),
    )
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "done"]
    assert worker.calls == ["a", "a", "b", "b", "c"] and crashes == ["a", "b", "b"]
    assert "SIGSEGV" in str(outcomes[1].reason) and "jane" not in (tmp_path / "predictions.jsonl").read_text()


def test_a_case_over_its_time_is_failed_at_once(tmp_path: Path) -> None:
    worker = FakeWorker(a=raises(WorkerTimeoutError()))
    assert run(tmp_path, worker, "a", "b", timeout=0.5) == {"a": "failed", "b": "done"}
    assert worker.calls == ["a", "b"]


def test_another_bundle_is_refused_unless_overwrite(tmp_path: Path) -> None:
    run(tmp_path, FakeWorker(), "a", "b")
    with pytest.raises(RefusedError, match="another bundle"):
        run(tmp_path, FakeWorker(), "a", sha256="c" * 64)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, FakeWorker(b=raises(KeyboardInterrupt())), "a", "b", sha256="c" * 64, overwrite=True)
    # the interrupted take-over goes on: only what this very bundle finished is skipped
    assert run(tmp_path, FakeWorker(), "a", "b", sha256="c" * 64) == {"a": "skipped", "b": "done"}


def test_results_of_another_ensemble_or_otherwise_mirrored_are_not_kept(tmp_path: Path) -> None:
    run(tmp_path, FakeWorker(), "a", "b")
    mirrored = ModelOptions(mirror=("x",), mirror_untrained=True)
    with pytest.raises(RefusedError, match="otherwise mirrored"):
        run(tmp_path, FakeWorker(), "a", model=mirrored)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, FakeWorker(b=raises(KeyboardInterrupt())), "a", "b", model=mirrored, overwrite=True)
    # the interrupted take-over goes on: what is left of the unmirrored results is computed again
    assert run(tmp_path, FakeWorker(), "a", "b", model=mirrored) == {"a": "skipped", "b": "done"}


def test_without_an_overlay_the_result_says_so_and_it_is_made_up_for_later(tmp_path: Path) -> None:
    class Plain(FakeWorker):
        def segment(self, request: Segment, *more: Any) -> Segmented:
            not_written = {} if request.outputs.overlay else {"overlay": "it was not asked for"}
            return replace(super().segment(request, *more), not_written=not_written)

    def again(overlay: bool) -> str:
        return run(tmp_path, Plain(), "a", outputs=Outputs(overlay=overlay))["a"]

    assert [again(False), again(False), again(True), again(True), again(False)] == [
        "done",
        "skipped",
        "done",
        "skipped",
        "skipped",
    ]


def test_another_scan_of_the_same_name_is_refused(tmp_path: Path) -> None:
    run(tmp_path, FakeWorker(), "a")
    other = [InputCase("a", (Path("/elsewhere/a"),))]
    with pytest.raises(RefusedError, match="another file"):
        predict_cases(bundle(), other, tmp_path, Options(), worker=FakeWorker())  # type: ignore[arg-type]


def test_a_second_batch_in_the_same_folder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with locked(tmp_path, RefusedError("busy"), name=STATE):
        under_way = ResultFolder(tmp_path).begin("a")
        with pytest.raises(RefusedError, match="another prediction"):
            run(tmp_path, FakeWorker(), "b")
        assert under_way.is_dir()


def test_an_interruption_keeps_what_is_finished_and_nothing_partial(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, FakeWorker(b=raises(KeyboardInterrupt())), "a", "b", "c")
    assert (tmp_path / "a/result.json").is_file() and not (tmp_path / "b").exists()
    assert not partial(tmp_path)


def test_an_older_result_outlives_a_kill_in_the_middle_of_its_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, FakeWorker(), "a")
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.parent.parent.name == PARTIAL:
            os._exit(137)
        return rename(self, target)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(Path, "rename", killed)
        try:
            run(tmp_path, FakeWorker(), "a", overwrite=True)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137
    assert not (tmp_path / "a").exists()
    assert run(tmp_path, FakeWorker(), "a") == {"a": "skipped"}
    assert (tmp_path / "a/segmentation.nii.gz").is_file()


def full_disk(path: Path) -> UsageError:
    return cannot_write(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def test_a_full_disk_in_the_worker_stops_the_batch(tmp_path: Path) -> None:
    worker = FakeWorker(b=raises(CannotGoOnError(full_disk(tmp_path))))
    with pytest.raises(UsageError, match="No space left"):
        run(tmp_path, worker, "a", "b", "c")
    assert worker.calls == ["a", "b"] and not partial(tmp_path)
    assert run(tmp_path, FakeWorker(), "a", "b", "c") == {"a": "skipped", "b": "done", "c": "done"}


@pytest.mark.parametrize("call", ["begin", "finish", "map_case"])
def test_a_full_disk_in_the_parent_stops_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    original = getattr(ResultFolder, call)

    def fails(self: ResultFolder, case_id: str, *rest: Any) -> Any:
        if case_id == "b":
            raise full_disk(self.root)
        return original(self, case_id, *rest)

    monkeypatch.setattr(ResultFolder, call, fails)
    with pytest.raises(UsageError, match="cannot write"):
        run(tmp_path, FakeWorker(), "a", "b", "c")
    assert (tmp_path / "a/result.json").is_file() and not (tmp_path / "b").exists() and not partial(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        run(tmp_path / "file/out", FakeWorker(), "a")


def test_words_for_a_report_hold_no_path() -> None:
    item = InputCase("case-1", (Path("/data/Jane Doe.nii.gz"),))
    text = "cannot open /data/Jane Doe.nii.gz (Jane Doe.nii.gz) beside '/tmp/x y'; 3/4 of 1 mm/s"
    assert redact(text, item) == "cannot open case-1 (case-1) beside '(path) y'; 3/4 of 1 mm/s"


def test_words_for_a_report_hold_no_part_of_a_folder_with_blanks_nor_a_bare_stem() -> None:
    item = InputCase("case-1", (Path("/data/Jane Doe/Doe Jane.nii.gz"),))
    text = "no /data/Jane Doe/other.img and no 'Doe Jane' or Doe Jane_seg"
    assert redact(text, item) == "no (path) and no 'case-1' or Doe Jane_seg"


def test_a_file_named_by_an_ordinary_word_leaves_the_sentence_alone() -> None:
    item = InputCase("image-1", (Path("/data/a/image.nii.gz"),))
    text = "the image cannot be read: image.nii.gz, /data/a/image.nii.gz"
    assert redact(text, item) == "the image cannot be read: image-1, image-1"


def test_a_folder_that_is_no_result_is_never_replaced(tmp_path: Path) -> None:
    scan = tmp_path / "p1" / "p1.nii.gz"
    scan.parent.mkdir()
    scan.write_bytes(b"the only copy")
    for options in (Options(), Options(overwrite=True)):
        with pytest.raises(RefusedError, match="no result"):
            predict_cases(bundle(), [InputCase("p1", (scan,))], tmp_path, options, worker=FakeWorker())  # type: ignore[arg-type]
    folder = ResultFolder(tmp_path)  # and where it appears only while the case is computed
    (folder.begin("p1") / "result.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot write"):
        folder.finish("p1")
    assert scan.read_bytes() == b"the only copy"


@pytest.mark.parametrize("out", ["b", "b/deep/er", "b/../b/out"])
def test_results_never_go_into_the_bundle(tmp_path: Path, out: str) -> None:
    inside = replace(bundle(), root=tmp_path / "b")
    (tmp_path / "b").mkdir()
    with pytest.raises(RefusedError, match="lies in the bundle"):
        predict_cases(inside, items("a"), tmp_path / out, Options(), worker=FakeWorker())  # type: ignore[arg-type]
    assert list((tmp_path / "b").iterdir()) == []


def test_state_that_is_damaged_or_odd_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    odd = "/scans/\udcff\u2028\x85.nii"  # not UTF-8, and with what Python takes for ends of lines
    for _ in range(2):
        worker: Any = FakeWorker()
        outcomes = predict_cases(bundle(), [InputCase("a", (Path(odd),))], tmp_path, Options(), worker=worker)
    assert [outcome.status for outcome in outcomes] == ["skipped"]
    with pytest.raises(RefusedError, match="another file"):
        run(tmp_path, FakeWorker(), "a")
    for name in ("predictions.jsonl", "mapping.jsonl"):
        with (tmp_path / name).open("ab") as stream:
            stream.write(b'{"id": "\xff\xfe')
    assert run(tmp_path, FakeWorker(), "b") == {"b": "done"}


def test_a_scan_that_changed_since_fails_alone_and_its_result_stays(tmp_path: Path) -> None:
    scan, other, out = tmp_path / "a.nii", tmp_path / "b.nii", tmp_path / "out"
    scan.write_bytes(b"first")

    def again(*more: InputCase, **options: Any) -> list[Outcome]:
        worker: Any = FakeWorker()
        return predict_cases(bundle(), [InputCase("a", (scan,)), *more], out, Options(**options), worker=worker)

    def statuses(*more: InputCase, **options: Any) -> list[str]:
        return [outcome.status for outcome in again(*more, **options)]

    assert statuses() == ["done"]
    os.utime(scan, (1, 1))  # a copy of the same content
    assert statuses() == ["skipped"]
    scan.write_bytes(b"other")
    before = (out / "a/result.json").read_bytes()
    other.write_bytes(b"b")
    failed, done = again(InputCase("b", (other,)))
    assert (failed.status, done.status) == ("failed", "done")
    assert "has changed since" in str(failed.reason) and "--overwrite" in str(failed.detail)
    assert (out / "a/result.json").read_bytes() == before
    (row,) = (case for case in json.loads((out / "summary.json").read_text())["cases"] if case["id"] == "a")
    assert row["state"] == "done" and "changed since" in row["detail"]
    assert statuses() == ["failed"]
    (out / "a").rename(tmp_path / "moved away")  # as the hint says
    assert statuses() == ["done"]
    scan.write_bytes(b"third")
    assert statuses(overwrite=True) == ["done"]
    assert statuses() == ["skipped"]
    assert "first" not in (out / "mapping.jsonl").read_text()


@pytest.mark.parametrize("error", [CannotGoOnError(RefusedError("the bundle is refused")), KeyboardInterrupt()])
def test_what_ends_the_batch_while_the_model_loads_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    class NotLoaded(FakeWorker):
        def start(self) -> Loaded:
            raise error

    with pytest.raises((RefusedError, KeyboardInterrupt)):
        run(tmp_path, NotLoaded(), "a")
    assert read_events(tmp_path) == [] and not (tmp_path / PARTIAL).exists()


@pytest.mark.parametrize(
    ("limits", "keeps"),
    [
        ({}, True),
        ({"max_case_memory": 2**33}, False),  # what was kept of a large case would end the next one
        ({"model": ModelOptions(max_memory=2**33)}, False),
    ],
)
def test_freed_memory_is_kept_where_no_limit_counts_it(tiny_bundle: Path, limits: dict[str, Any], keeps: bool) -> None:
    opened = open_bundle(tiny_bundle)
    places: Any = None
    assert batch.make_worker(opened, Options(**limits), places).load.keeps_memory == keeps


def test_a_case_is_finished_while_the_worker_is_at_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computing, finishing = threading.Event(), threading.Event()
    original = batch.result_document

    def slow(case: InputCase, *rest: Any) -> dict[str, Any]:
        if case.id == "a":
            finishing.set()
            assert computing.wait(30)  # until the worker is at b
        return original(case, *rest)

    def deed(call: int) -> None:
        assert finishing.wait(30)  # a is not finished yet
        computing.set()

    monkeypatch.setattr(batch, "result_document", slow)
    seen: list[str] = []
    predict_cases(
        bundle(),
        items("a", "b", "c"),
        tmp_path,
        Options(),
        worker=FakeWorker(b=deed),  # type: ignore[arg-type]
        on_outcome=lambda outcome: seen.append(outcome.id),
    )
    assert seen == ["a", "b", "c"]
    assert [event["event"] for event in read_events(tmp_path)] == ["start", "done", "done", "done"]
