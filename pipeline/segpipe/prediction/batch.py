"""Words for reports and state files: without paths and file names.

From the slice that the worker left beside a case's results to a picture.

What the parent of a batch does for the next case while the worker computes one.

A batch of cases: each apart, each whole or absent, and what was finished is never computed again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from segpipe.common.files import write_json, write_whole
from segpipe.common.result_folder import OVERLAY, PARTIAL, RESULT, SEGMENTATION, SLICE, ResultFolder
from segpipe.data import nifti_stem
from segpipe.errors import SegpipeError
from segpipe.prediction.cases import WorkItem
from segpipe.prediction.client import CannotGoOnError, Worker, WorkerDiedError, WorkerMemoryError, WorkerTimeoutError
from segpipe.prediction.options import Options, Outcome, about_model, extra_output_files, require_agreement
from segpipe.prediction.protocol import more_of_request, require_codes, result_of, worker_for
from segpipe.prediction.resume import (
    compare_sources,
    describe_source,
    finished_series,
    held_by,
    is_done,
    refuse_other_bundle,
    refuse_own_folder,
    refuse_taken,
    refused_series,
)
from segpipe.prediction.series_filter import NotSelected
from segpipe.prediction.summary import write_summary

if TYPE_CHECKING:
    from segpipe.bundle import Bundle


PATH_LIKE = re.compile(r"(?<!\w)/[^\s'\"]+")


def redact_paths(text: str, item: WorkItem) -> str:
    """The text with paths and file names of the case replaced by its id."""
    for path in item.paths:
        for name in (str(path), os.path.realpath(path)):
            text = text.replace(name, item.id)
        if not item.is_dicom:  # whose files may be called 1, 2, 3
            text = text.replace(path.name, item.id)
            text = re.sub(rf"(?<!\w){re.escape(nifti_stem(path))}(?!\w)", item.id, text)
    for folder in dict.fromkeys(path.parent for path in item.paths):  # as a whole: it may hold blanks
        for name in (str(folder), os.path.realpath(folder)):
            text = text.replace(name + "/", "/")
    return PATH_LIKE.sub("(path)", text)


def draw_overlay(folder: Path) -> None:
    """Draw the case's slice, and remove what it was drawn from.

    Raises:
        UsageError: the picture cannot be written, or the disk is full.
    """
    path = folder / SLICE
    if not path.is_file():
        return
    import numpy as np

    from segpipe.reporting import OverlaySlice, overlay

    with np.load(path) as kept:
        x, y, z = (float(edge) for edge in kept["spacing_mm"])
        shown = OverlaySlice(kept["image"], kept["labels"], (x, y, z), int(kept["normal"]), int(kept["regions"]))
        picture = overlay(shown)
    with write_whole(folder / OVERLAY) as stream:
        stream.write(picture)
    path.unlink()


class Prefetching:
    """Describes the next case's files, then has the worker read them, one case ahead.

    Only the streaming engine reads ahead. With a limit of time nothing is read ahead, so that all of it is the case's.

    Args:
        items: the cases that will be computed, in order.
        worker: that computes them.
        options: of the batch.
    """

    def __init__(self, items: Sequence[WorkItem], worker: Worker, options: Options) -> None:
        self._next = {item.id: following for item, following in itertools.pairwise(items)}
        self._worker, self._options = worker, options
        self._aside = ThreadPoolExecutor(1)
        self._described: dict[str, Future[dict[str, Any]]] = {}

    def __enter__(self) -> Prefetching:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._aside.shutdown(cancel_futures=True)

    def behind(self, item: WorkItem) -> Callable[[], None] | None:
        """What begins to read the case behind this one, to be called when this one is under way; None for nothing."""
        following = self._next.get(item.id)
        streams = self._worker.about.get("engine") == "streaming"
        if following is None or not streams or self._options.timeout_s is not None:
            return None

        def begin() -> None:
            self._described[following.id] = self._aside.submit(self._tell, following)

        return begin

    def description(self, item: WorkItem) -> dict[str, Any]:
        """What tells the case's files again, as they were before they were read."""
        described = self._described.pop(item.id, None)
        return describe_source(item) if described is None else described.result()

    def settle(self) -> None:
        """Wait until nothing more is said to a worker that has died."""
        for described in self._described.values():
            described.exception()

    def _tell(self, item: WorkItem) -> dict[str, Any]:
        description = describe_source(item)
        self._worker.prefetch(item.id, [str(path) for path in item.paths], _series_of(item))
        return description


def _series_of(item: WorkItem) -> dict[str, Any] | None:
    if item.series is None:
        return None
    from segpipe.dicom import as_plain

    return as_plain(item.series)


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
        bundle: what `segpipe.bundle.open.open_bundle` gave.
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
    extra_output_files(bundle, options)
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
        batch = _Batch(bundle, folder, options, worker or worker_for(bundle, options), on_crash, refused_before)
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

        with ThreadPoolExecutor(1) as aside, Prefetching(waiting, self.worker, self.options) as ahead:
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

    def _computed(self, item: WorkItem, ahead: Prefetching) -> Callable[[], Outcome]:
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

    def _compute(self, item: WorkItem, ahead: Prefetching) -> tuple[Path, dict[str, Any]]:
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
        parts = {name: redact_paths(text, item) for name, text in error.as_dict().items()}
        parts.pop("case_id", None)
        if reason := getattr(error, "reason", None):  # the voxels of a series, not the computing
            detail = "; ".join(parts[name] for name in ("message", "found", "expected", "hint") if name in parts)
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
