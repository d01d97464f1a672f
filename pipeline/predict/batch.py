"""A batch of cases: each apart, each whole or absent, and what was finished is never computed again."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.console import SCHEMA_VERSION
from pipeline.errors import SegpipeError
from pipeline.files import write_json
from pipeline.manifest import nifti_stem
from pipeline.predict.client import CannotGoOnError, Worker, WorkerDiedError, WorkerTimeoutError
from pipeline.predict.resume import (
    compare_sources,
    describe_source,
    held_by,
    is_done,
    refuse_other_bundle,
    refuse_own_folder,
    refuse_taken,
)
from pipeline.predict.worklist import WorkItem
from pipeline.results import PARTIAL, PROBABILITIES, RESULT, SEGMENTATION, ResultFolder

if TYPE_CHECKING:
    from pipeline.bundle import Bundle

PATH_LIKE = re.compile(r"(?<!\w)/[^\s'\"]+")


@dataclass(frozen=True)
class Outcome:
    """How a case ended: ``done``, ``skipped`` (finished before) or ``failed`` (with a reason)."""

    id: str
    status: str
    seconds: float | None = None
    reason: str | None = None
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How a batch is run.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda:N``.
        threads: CPU threads of the worker; None leaves torch's choice.
        timeout_s: seconds for one case; None for no limit.
        retries: how often a case is tried again after the worker died of it.
        overwrite: compute finished cases again, and take over a folder of another bundle.
        max_memory: bytes that the worker may take; None for what the machine has.
        probabilities: write the probabilities of all classes beside the labels.
    """

    device: str = "auto"
    threads: int | None = None
    timeout_s: float | None = None
    retries: int = 1
    overwrite: bool = False
    max_memory: int | None = None
    probabilities: bool = False


def worker_for(bundle: Bundle, options: Options) -> Worker:
    """The worker of a bundle, not started yet."""
    typed = None if bundle.outside else bundle.preprocessing
    return Worker(
        {
            "root": str(bundle.root.absolute()),
            "inference": bundle.inference,
            "weights": str(bundle.weights.absolute()),
            "channels": max(1, len(bundle.channels)),
            "labels": bundle.labels,
            "preprocessing": typed.to_config() if typed else None,
            "device": options.device,
            "threads": options.threads,
            "windowing": windowing_of(bundle),
            "cleanup": list(bundle.cleanup),
            "max_memory": options.max_memory,
        }
    )


def windowing_of(bundle: Bundle) -> dict[str, Any] | None:
    """The fields of `pipeline.inference.streaming.Windowing`, None where the bundle is not of the closed form."""
    if bundle.outside:
        return None
    return {
        "roi_size": bundle.roi_size,
        "overlap": bundle.overlap,
        "batch": bundle.sw_batch_size,
        "mode": bundle.window_mode,
        "activation": bundle.activation,
    }


def predict_cases(
    bundle: Bundle,
    items: Sequence[WorkItem],
    out: Path,
    options: Options,
    *,
    worker: Worker | None = None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    on_crash: Callable[[str, WorkerDiedError], None] = lambda case_id, death: None,
) -> list[Outcome]:
    """Segment the cases into a result folder; one bad case never stops the rest.

    Args:
        bundle: what `pipeline.bundle.open_bundle` gave.
        items: the cases.
        out: the result folder; it is held for the time of the batch.
        options: device, limits, overwrite.
        worker: to use instead of a new one; it is left running.
        on_outcome: called after each case.
        on_crash: called with the case's id after each death of the worker.

    Raises:
        UsageError: the folder cannot be written to, the disk is full, the model cannot be loaded here.
        DataError: the bundle's config or weights cannot be used.
        RefusedError: the folder belongs to another bundle, lies in this one or is in use, or another scan or
            something that is no result has a case's name.
    """
    refuse_own_folder(out, bundle)
    with held_by(out):
        refuse_other_bundle(out, bundle, options.overwrite)
        if not options.overwrite:
            compare_sources(out, items)
        folder = ResultFolder(out)
        refuse_taken(folder, items)
        batch = _Batch(bundle, folder, options, worker or worker_for(bundle, options), on_crash)
        folder.record(event="start", bundle=bundle.sha256, name=bundle.name, cases=len(items))
        try:
            return batch.run(items, on_outcome)
        finally:
            if worker is None:
                batch.worker.close()
            for item in items:
                folder.abandon(item.id)
            with contextlib.suppress(OSError):
                (folder.root / PARTIAL).rmdir()


@dataclass
class _Batch:
    bundle: Bundle
    folder: ResultFolder
    options: Options
    worker: Worker
    on_crash: Callable[[str, WorkerDiedError], None]

    def run(self, items: Sequence[WorkItem], on_outcome: Callable[[Outcome], None]) -> list[Outcome]:
        outcomes = []
        for item in items:
            if not self.options.overwrite and is_done(self.folder, item.id, self.bundle):
                self.folder.record(event="skipped", id=item.id)
                outcome = Outcome(item.id, "skipped")
            else:
                outcome = self._one(item)
            outcomes.append(outcome)
            on_outcome(outcome)
        return outcomes

    def _one(self, item: WorkItem) -> Outcome:
        start = time.monotonic()
        try:
            self.worker.start()
            start = time.monotonic()
            source = describe_source(item)  # before it is read, so that a later change is noticed
            result = self._compute(item)
        except CannotGoOnError as error:
            raise error.cause from error
        except SegpipeError as error:
            return self._failed(item, error, time.monotonic() - start)
        self.folder.map_case(item.id, [str(path) for path in item.paths], **source)
        self.folder.finish(item.id)
        seconds = round(time.monotonic() - start, 3)
        self.folder.record(event="done", id=item.id, seconds=seconds)
        return Outcome(item.id, "done", seconds, result=result)

    def _compute(self, item: WorkItem) -> dict[str, Any]:
        for attempt in range(self.options.retries + 1):
            into = self._begin(item.id)
            paths = [str(path) for path in item.paths]
            more = {"probabilities": str(into / PROBABILITIES)} if self.options.probabilities else {}
            try:
                answer = self.worker.segment(paths, str(into / SEGMENTATION), self.options.timeout_s, **more)
            except WorkerTimeoutError as error:
                limit = f"{self.options.timeout_s:g} s"
                raise SegpipeError("the case took too long", expected=f"at most {limit}") from error
            except WorkerDiedError as death:
                self.folder.record(event="crashed", id=item.id, attempt=attempt + 1, reason=death.reason)
                self.on_crash(item.id, death)
                reason = death.reason
                continue
            result = self._result(item, answer)
            self._write(into / RESULT, result)
            return result
        raise SegpipeError(reason, found=f"{self.options.retries + 1} attempts")

    def _begin(self, case_id: str) -> Path:
        try:
            return self.folder.begin(case_id).absolute()
        except SegpipeError as error:
            raise CannotGoOnError(error) from error

    def _write(self, path: Path, result: dict[str, Any]) -> None:
        try:
            write_json(path, result)
        except SegpipeError as error:
            raise CannotGoOnError(error) from error

    def _failed(self, item: WorkItem, error: SegpipeError, seconds: float) -> Outcome:
        self.folder.abandon(item.id)
        parts = {name: without_paths(text, item) for name, text in error.as_dict().items()}
        parts.pop("case_id", None)
        reason = parts.pop("message")
        self.folder.record(event="failed", id=item.id, reason=reason, **parts)
        words = [reason, parts.get("found"), parts.get("expected") and f"expected {parts['expected']}"]
        return Outcome(item.id, "failed", round(seconds, 3), reason="; ".join(word for word in words if word))

    def _result(self, item: WorkItem, answer: dict[str, Any]) -> dict[str, Any]:
        about = self.worker.about
        bundle = self.bundle
        return {
            "schema_version": SCHEMA_VERSION,
            "id": item.id,
            "bundle": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
            "route": "stock" if bundle.outside else "typed",
            "route_reasons": list(bundle.outside),
            **answer,
            "engine": about.get("engine"),
            "engine_reasons": about.get("engine_reasons"),
            "device": about.get("device"),
            "threads": about.get("threads"),
            "versions": about.get("versions"),
        }


def without_paths(text: str, item: WorkItem) -> str:
    """Words for a report: paths and file names of the case replaced by its id."""
    for path in item.paths:
        for name in (str(path), os.path.realpath(path), path.name):
            text = text.replace(name, item.id)
        text = re.sub(rf"(?<!\w){re.escape(nifti_stem(path))}(?!\w)", item.id, text)
        for folder in (str(path.parent), os.path.realpath(path.parent)):  # as a whole: it may hold blanks
            text = text.replace(folder + "/", "/")
    return PATH_LIKE.sub("(path)", text)
