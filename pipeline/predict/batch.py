"""A batch of cases: each apart, each whole or absent, and what was finished is never computed again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import SegpipeError
from pipeline.files import write_json
from pipeline.predict.ahead import ReadAhead
from pipeline.predict.beside import files_beside
from pipeline.predict.choice import NotSelected
from pipeline.predict.client import (
    CannotGoOnError,
    Worker,
    WorkerDiedError,
    WorkerMemoryError,
    WorkerTimeoutError,
)
from pipeline.predict.ensemble import about_model, require_agreement
from pipeline.predict.exchange import more_of_request, require_codes, result_of
from pipeline.predict.outcome import Options, Outcome
from pipeline.predict.overlay import draw_overlay
from pipeline.predict.recipe import worker_for
from pipeline.predict.resume import (
    compare_sources,
    finished_series,
    held_by,
    is_done,
    refuse_other_bundle,
    refuse_own_folder,
    refuse_taken,
    refused_series,
)
from pipeline.predict.summary import write_summary
from pipeline.predict.words import without_paths
from pipeline.predict.worklist import WorkItem
from pipeline.results import PARTIAL, RESULT, SEGMENTATION, ResultFolder

if TYPE_CHECKING:
    from pipeline.bundle import Bundle


def predict_cases(
    bundle: Bundle,
    items: Sequence[WorkItem],
    out: Path,
    options: Options,
    *,
    not_selected: Sequence[NotSelected] = (),
    passed_over: Mapping[str, int] | None = None,
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
        not_selected: series that a rule left out, for the summary.
        passed_over: number of files that are no image by class, for the summary.
        worker: to use instead of a new one; it is left running.
        on_outcome: called after each case, from a second thread.
        on_crash: called with the case's id after each death of the worker.

    Raises:
        UsageError: the folder cannot be written to, the disk is full, the model cannot be loaded here.
        DataError: the bundle's config or weights cannot be used.
        RefusedError: the bundle does not pass the gate, or the folder belongs to another bundle, lies in this one or
            is in use, or another scan or something that is no result has a case's name.
    """
    refuse_own_folder(out, bundle)
    files_beside(bundle, options)
    require_agreement(bundle, options.ensemble)
    if any(item.series for item in items):
        require_codes(bundle)
    with held_by(out):
        refuse_other_bundle(out, bundle, options)
        if not options.overwrite:
            compare_sources(out, items)
        folder = ResultFolder(out)
        refuse_taken(folder, items)
        refused_before = refused_series(out)
        batch = _Batch(
            bundle, folder, options, worker or worker_for(bundle, options), on_crash, refused_before
        )
        batch.prepare(items)
        model = {"bundle": bundle.sha256, "name": bundle.name, **about_model(options)}
        folder.record(event="start", **model, cases=len(items))
        for left_out in not_selected:
            folder.record(event="not_selected", id=left_out.id, rule=left_out.rule)

        def sum_up() -> None:
            write_summary(folder, bundle, options, not_selected, passed_over or {})

        try:
            outcomes = batch.run(items, on_outcome)
        except BaseException:
            with contextlib.suppress(SegpipeError, OSError):  # what ended the batch is the thing to say
                sum_up()
            raise
        else:
            sum_up()
            return outcomes
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
    refused_before: dict[str, list[str]]

    def prepare(self, items: Sequence[WorkItem]) -> None:
        """Start the worker where a case is to be computed: a bundle that is refused leaves no line in the folder."""
        done = finished_series(self.folder.root)
        if all(item.refusal is not None or self._is_done(item, done) for item in items):
            return
        try:
            self.worker.start()
        except CannotGoOnError as error:
            raise error.cause from error

    def _is_done(self, item: WorkItem, done: dict[str, str]) -> bool:
        again = self.options.overwrite
        return not again and is_done(self.folder, item, self.bundle, self.options, done)

    def run(self, items: Sequence[WorkItem], on_outcome: Callable[[Outcome], None]) -> list[Outcome]:
        """Finish each case in a second thread, one at a time and in order, while the worker is at the next."""
        done = finished_series(self.folder.root)
        waiting = [item for item in items if item.refusal is None and not self._is_done(item, done)]
        to_compute = {item.id for item in waiting}
        outcomes: list[Outcome] = []

        def complete(finish: Callable[[], Outcome]) -> None:
            outcomes.append(finish())
            on_outcome(outcomes[-1])

        with ThreadPoolExecutor(1) as aside, ReadAhead(waiting, self.worker, self.options) as ahead:
            last: Future[None] | None = None
            for item in items:
                finish = self._computed(item, ahead) if item.id in to_compute else self._passed(item)
                if last is not None:
                    last.result()
                last = aside.submit(complete, finish)
            if last is not None:
                last.result()
        return outcomes

    def _passed(self, item: WorkItem) -> Callable[[], Outcome]:
        if item.refusal is not None:
            return partial(self._refused, item, item.refusal.reason, item.refusal.detail)
        return partial(self._skipped, item)

    def _computed(self, item: WorkItem, ahead: ReadAhead) -> Callable[[], Outcome]:
        """Have the worker compute a case; what is left to do for it."""
        start = time.monotonic()
        try:
            self.worker.start()
            start = time.monotonic()
            source = ahead.description(item)  # of before it is read, so that a later change is noticed
            into, result = self._compute(item, ahead)
        except CannotGoOnError as error:
            raise error.cause from error
        except SegpipeError as error:
            return partial(self._failed, item, error, time.monotonic() - start)
        return partial(self._finished, item, into, result, source, start)

    def _finished(
        self, item: WorkItem, into: Path, result: dict[str, Any], source: dict[str, Any], start: float
    ) -> Outcome:
        draw_overlay(into)
        write_json(into / RESULT, result)
        self.folder.map_case(item.id, [str(path) for path in item.paths], **source)
        self.folder.finish(item.id)
        seconds = round(time.monotonic() - start, 3)
        self.folder.record(event="done", id=item.id, seconds=seconds)
        return Outcome(item.id, "done", seconds, result=result)

    def _skipped(self, item: WorkItem) -> Outcome:
        self.folder.record(event="skipped", id=item.id)
        return Outcome(item.id, "skipped")

    def _compute(self, item: WorkItem, ahead: ReadAhead) -> tuple[Path, dict[str, Any]]:
        """Where the worker wrote a case, and its ``result.json``.

        A case that ends the worker while the next one is read gets another try, alone: it may have been the other.
        """
        meanwhile = ahead.behind(item)
        tries = self.options.retries + (2 if meanwhile else 1)
        for attempt in range(tries):
            into = self._begin(item.id)
            try:
                answer = self._ask(item, into, None if attempt else meanwhile)
            except WorkerMemoryError as error:
                if attempt == 0 and meanwhile is not None:
                    ahead.settle()
                    continue
                limit = f"{(self.options.max_case_memory or 0) / 2**30:.3g} GiB"
                raise SegpipeError(
                    "the case took too much memory", expected=f"at most {limit} (--max-case-memory)"
                ) from error
            except WorkerTimeoutError as error:
                limit = f"{self.options.timeout_s:g} s"
                raise SegpipeError("the case took too long", expected=f"at most {limit}") from error
            except WorkerDiedError as death:
                ahead.settle()
                self.folder.record(event="crashed", id=item.id, attempt=attempt + 1, reason=death.reason)
                self.on_crash(item.id, death)
                reason = death.reason
                continue
            return into, result_of(item, answer, self.bundle, self.options, self.worker.about)
        raise SegpipeError(reason, found=f"{tries} attempts")

    def _ask(self, item: WorkItem, into: Path, meanwhile: Callable[[], None] | None) -> dict[str, Any]:
        paths = [] if item.series is not None else [str(path) for path in item.paths]
        more = more_of_request(item, self.bundle, self.options, into)
        if meanwhile is not None:
            more["meanwhile"] = meanwhile
        return self.worker.segment(paths, str(into / SEGMENTATION), self.options.timeout_s, **more)

    def _begin(self, case_id: str) -> Path:
        try:
            return self.folder.begin(case_id).absolute()
        except SegpipeError as error:
            raise CannotGoOnError(error) from error

    def _failed(self, item: WorkItem, error: SegpipeError, seconds: float) -> Outcome:
        self.folder.abandon(item.id)
        parts = {name: without_paths(text, item) for name, text in error.as_dict().items()}
        parts.pop("case_id", None)
        if reason := getattr(error, "reason", None):  # the voxels of a series, not the computing
            detail = "; ".join(
                parts[name] for name in ("message", "found", "expected", "hint") if name in parts
            )
            return self._refused(item, reason, detail, round(seconds, 3))
        reason = parts.pop("message")
        self.folder.record(event="failed", id=item.id, reason=reason, **parts)
        words = [reason, parts.get("found"), parts.get("expected") and f"expected {parts['expected']}"]
        return Outcome(item.id, "failed", round(seconds, 3), reason="; ".join(word for word in words if word))

    def _refused(self, item: WorkItem, reason: str, detail: str, seconds: float | None = None) -> Outcome:
        paths = [str(path) for path in item.paths]
        if self.refused_before.get(item.id) != paths:
            self.folder.map_case(item.id, paths, refused=reason)
        self.folder.record(event="refused", id=item.id, reason=reason, detail=detail)
        return Outcome(item.id, "refused", seconds, reason, detail)
