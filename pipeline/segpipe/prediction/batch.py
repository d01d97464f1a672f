"""Predict a batch of cases: each apart, each whole or absent, and what was finished is never computed again.

`predict` opens bundles, selects cases and hands them to a worker one after another; while it computes one, the next is
read, and the one before is finished in a second thread.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from segpipe.bundle import Bundle, TrainedCases, judge_mirror, open_bundle
from segpipe.common.api_calls import checked_call
from segpipe.common.files import write_json
from segpipe.common.result_folder import OVERLAY, RESULT, SLICE, STATE, hashes_of, require_plain_files
from segpipe.common.shards import WAIT, held_by
from segpipe.errors import DataError, RefusedError, SegpipeError, UsageError
from segpipe.prediction.batch_summary import BatchProgress, BatchResult, Outcome, redact, result_document, write_summary
from segpipe.prediction.cases import NotSelected, cases_as_listed, select_cases
from segpipe.prediction.client import CannotGoOnError, Worker, WorkerDiedError, WorkerMemoryError, WorkerTimeoutError
from segpipe.prediction.file_cases import InputCase
from segpipe.prediction.in_processes import predict_in_processes
from segpipe.prediction.judging import has_dicom, judged_anew, put_aside, rewrite
from segpipe.prediction.options import Options, PredictKeywords, require_agreement
from segpipe.prediction.places import Places
from segpipe.prediction.protocol import CaseFiles, Load, Loaded, Segment, Segmented
from segpipe.prediction.resume import EarlierResults, describe_source, refuse_own_folder
from segpipe.quality import Judged, read_rules, shipped_rules

AnyPath = str | PathLike[str]
TRUST = ("allow", "run_unvetted_code", "require_signature", "allow_unisolated")


@checked_call
def predict(
    bundle: Bundle | AnyPath,
    inputs: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    progress: BatchProgress | None = None,
    **options: Unpack[PredictKeywords],
) -> BatchResult:
    """Segment NIfTI images and DICOM series into a result folder, each into a folder of its own.

    One bad case never stops the rest. The same call again skips what is finished. The model lives in a process of its
    own, which vets the bundle before anything of it runs.

    >>> import segpipe
    >>> batch = segpipe.predict("bundles/hippocampus_mri", "scan.nii.gz", "results", device="cpu")
    >>> [(outcome.id, outcome.status) for outcome in batch.outcomes]
    [('scan', 'done')]
    >>> sorted(batch.outcomes[0].result["volumes_ml"])
    ['Anterior', 'Posterior']

    Args:
        bundle: opened, or its path.
        inputs: folders (searched below), files, or one manifest.
        out: the result folder; made, or gone on with.
        progress: is told how it goes.
        options: see `segpipe.prediction.PredictKeywords`.

    Raises:
        UsageError: a wrong option, no such input, two cases of one name, or the folder cannot be written to.
        DataError: nothing to segment was found, or the bundle cannot be used.
        RefusedError: the bundle does not pass the gate, or the folder belongs to another bundle, lies in this one or
            is in use, or another scan or something that is no result has a case's name. A file that changed since its
            case was finished fails that case alone, whose result stays.
    """
    return _predict(bundle, inputs, Path(out), progress or BatchProgress(), options)


def predict_listed(
    cases: Sequence[str],
    *,
    bundle: AnyPath,
    inputs: Sequence[AnyPath],
    out: AnyPath,
    **options: Unpack[PredictKeywords],
) -> BatchResult:
    """Compute one process's share of a batch: the cases that its parent listed, whatever came or went since.

    Args:
        cases: ids, of this share.
        bundle: its path.
        inputs: as of `predict`.
        out: the result folder.
        options: as of `predict`, with ``shard``.

    Raises:
        SegpipeError: as `predict`.
    """
    return _predict(bundle, inputs, Path(out), BatchProgress(), options, cases)


def _predict(
    bundle: Bundle | AnyPath,
    inputs: AnyPath | Sequence[AnyPath],
    out: Path,
    progress: BatchProgress,
    options: PredictKeywords,
    listed: Sequence[str] | None = None,
) -> BatchResult:
    keywords: dict[str, Any] = dict(options)
    allow, unvetted, key, unisolated = (keywords.pop(name, None) for name in TRUST)
    rules_file = keywords.pop("rules", None)
    members = (bundle, *keywords.pop("ensemble", ()))
    if (allow or unvetted or key or unisolated) and any(isinstance(member, Bundle) for member in members):
        given = [name for name in TRUST if name in options]
        hint = "give its terms to open_bundle, or its path here"
        raise UsageError("the bundle is open already", found=", ".join(given), hint=hint)
    judged = Options.parse(keywords)
    bundle, *others = [
        member
        if isinstance(member, Bundle)
        else open_bundle(
            member, allow=allow or (), run_unvetted_code=bool(unvetted), key=key, allow_unisolated=bool(unisolated)
        )
        for member in members
    ]
    rules = shipped_rules(bundle.root)
    rules = rules if rules_file is None else read_rules(rules_file, rules)
    mirror = judge_mirror(judged.model, (bundle, *others))
    judged = replace(judged, ensemble=tuple(others), model=mirror, rules=rules)
    selected = select_cases(
        [Path(path) for path in ([inputs] if isinstance(inputs, (str, PathLike)) else inputs)],
        bundle.of_scans.metadata,
        max(1, len(bundle.of_scans.channels)),
        judged,
        out,
        progress.reading,
    )
    if listed is not None:
        cases = cases_as_listed(selected.cases, listed)
    else:
        cases = selected.cases if judged.shard is None else judged.shard.of(selected.cases)
    progress.started(len(cases))
    if judged.workers > 1:
        named = _by_paths(members, inputs, out, options)
        outcomes = predict_in_processes(named, out, cases, judged, progress)
        return BatchResult(bundle, outcomes, selected.not_selected, selected.passed_over)
    outcomes = predict_cases(
        bundle,
        cases,
        out,
        judged,
        not_selected=selected.not_selected,
        passed_over=selected.passed_over,
        on_outcome=progress.finished,
        on_crash=progress.crashed,
    )
    return BatchResult(bundle, outcomes, selected.not_selected, selected.passed_over)


def _by_paths(
    members: Sequence[Bundle | AnyPath], inputs: AnyPath | Sequence[AnyPath], out: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call in another process, which opens the bundles itself.

    Raises:
        UsageError: one of them is open already.
    """
    if any(isinstance(member, Bundle) for member in members):
        raise UsageError("the bundle is open already", found="workers", hint="give its path: each process opens it")
    first, *others = members
    every = [inputs] if isinstance(inputs, (str, PathLike)) else list(inputs)
    return {
        **{name: value for name, value in options.items() if name != "workers"},
        **({"ensemble": others} if others else {}),
        "bundle": first,
        "inputs": every,
        "out": out,
    }


def predict_cases(
    bundle: Bundle,
    cases: Sequence[InputCase],
    out: Path,
    options: Options,
    *,
    not_selected: Sequence[NotSelected] = (),
    passed_over: Mapping[str, int] | None = None,
    worker: Worker | None = None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    on_crash: Callable[[str, WorkerDiedError], None] = lambda case_id, death: None,
) -> list[Outcome]:
    """Segment cases into a result folder, which is held for the time of the batch.

    Args:
        bundle: opened.
        cases: the cases.
        out: the result folder.
        options: of the batch.
        not_selected: series that a rule left out, for the summary.
        passed_over: number of files that are no image by class, for the summary.
        worker: to use instead of a new one; it is left running.
        on_outcome: called after each case, from a second thread.
        on_crash: called with the case's id after each death of the worker.

    Raises:
        SegpipeError: as `predict`.
    """
    options.outputs.extra_files(bundle.labels, bundle.activation)
    require_agreement(bundle, options.ensemble)
    model = {"bundle": bundle.sha256, "name": bundle.name, **options.about_model()}
    refuse_own_folder(out, bundle)
    if any(case.series for case in cases):
        _require_codes(bundle)
    busy = RefusedError("another prediction is writing to this folder", path=out, hint=WAIT)
    with held_by(out, options.shard, busy, STATE), contextlib.ExitStack() as open_now:
        earlier = EarlierResults(out, bundle, cases, options)
        folder = earlier.folder
        open_now.callback(folder.close)
        batch = _Batch(bundle, earlier, options, cases, worker, on_crash)
        if worker is None:
            open_now.callback(batch.worker.close)
        batch.start()  # before a line is written to the folder: a bundle that is refused leaves none
        try:
            folder.record(event="start", **model, cases=len(cases))
            for left_out in not_selected:
                folder.record(event="not_selected", id=left_out.id, rule=left_out.rule)
            outcomes = batch.run(cases, on_outcome)
        except BaseException:
            with contextlib.suppress(SegpipeError, OSError):  # what ended the batch is the thing to say
                write_summary(folder, bundle, options, not_selected, passed_over or {})
            raise
        write_summary(folder, bundle, options, not_selected, passed_over or {})
        return outcomes


def make_worker(bundle: Bundle, options: Options, places: Places) -> Worker:
    """Return the worker of a bundle, not started yet."""
    recipe = bundle.recipe(options.model, options.ensemble)
    unlimited = options.model.max_memory is None and options.max_case_memory is None
    load = Load(recipe=recipe, policy=bundle.policy, keeps_memory=unlimited)
    return Worker(load, places, options.max_case_memory)


def _require_codes(bundle: Bundle) -> None:
    """Read what the bundle says its labels mean in DICOM, before a case fails of it."""
    from segpipe.dicom import label_infos

    label_infos(bundle.labels, {"name": bundle.name, "codes": bundle.metadata.get("codes")})


class _Batch:
    """Cases under way."""

    def __init__(
        self,
        bundle: Bundle,
        earlier: EarlierResults,
        options: Options,
        cases: Sequence[InputCase],
        worker: Worker | None,
        on_crash: Callable[[str, WorkerDiedError], None],
    ) -> None:
        self.bundle, self.earlier, self.folder, self.options = bundle, earlier, earlier.folder, options
        self.on_crash = on_crash
        self.trained = TrainedCases.of([member.root for member in (bundle, *options.ensemble)])
        self.judged_anew: dict[str, Judged] = {}
        for case_id, result in list(earlier.done.items()):
            if (anew := judged_anew(result, options.rules)) is not None:
                if has_dicom(result) and "nifti" not in result["files"]:  # there is nothing to write it from
                    del earlier.done[case_id]
                else:
                    self.judged_anew[case_id] = anew
        kept = {*earlier.done, *earlier.changed}
        self.to_compute = {case.id: case for case in cases if case.refusal is None and case.id not in kept}
        self.described: dict[str, Future[dict[str, Any]]] = {}
        if worker is None:
            bundles, to_read = (bundle, *options.ensemble), self.to_compute.values()
            worker = make_worker(
                bundle, options, Places.of(self.folder.partial, bundles, to_read, options.model.device)
            )
        self.worker = worker

    def start(self) -> None:
        """Start the worker, where a case is to be computed.

        Raises:
            SegpipeError: it cannot be, as where the bundle is refused.
        """
        try:
            if self.to_compute:
                self.worker.start()
        except CannotGoOnError as error:
            raise error.cause from error

    def run(self, cases: Sequence[InputCase], on_outcome: Callable[[Outcome], None]) -> list[Outcome]:
        """Finish each case in a second thread, one at a time and in order, while the worker is at the next."""
        following = dict(itertools.pairwise(self.to_compute))
        outcomes: list[Outcome] = []

        def complete(finish: Callable[[], Outcome]) -> None:
            outcomes.append(finish())
            on_outcome(outcomes[-1])

        with ThreadPoolExecutor(1) as finishing, ThreadPoolExecutor(1) as describing:
            last: Future[None] | None = None
            for case in cases:
                if case.id in self.to_compute:
                    finish = self._compute(case, self._prefetch(following.get(case.id), describing))
                elif case.refusal is not None:
                    finish = partial(self._refuse, case, case.refusal.reason, case.refusal.detail)
                elif case.id in self.earlier.changed:
                    finish = partial(self._fail, case, self.earlier.changed[case.id], 0.0)
                else:
                    finish = partial(self._skip, case)
                if last is not None:
                    last.result()
                last = finishing.submit(complete, finish)
            if last is not None:
                last.result()
        return outcomes

    def _prefetch(self, case_id: str | None, describing: ThreadPoolExecutor) -> Callable[[], None] | None:
        """Return what describes the next case's files, then has the worker read them, one case ahead; or None.

        Only the streaming engine prefetches. With a limit of time nothing is prefetched, so that all of it is the
        case's own.
        """
        loaded = self.worker.loaded
        streams = loaded is not None and loaded.engine == "streaming"
        if case_id is None or not streams or self.options.timeout is not None:
            return None
        case = self.to_compute[case_id]

        def describe() -> dict[str, Any]:
            source = describe_source(case)
            self.worker.prefetch(_files_of(case))
            return source

        def begin() -> None:
            self.described[case.id] = describing.submit(describe)

        return begin

    def _compute(self, case: InputCase, prefetch: Callable[[], None] | None) -> Callable[[], Outcome]:
        """Have the worker compute a case; return what is left to do for it."""
        start = time.monotonic()
        try:
            self.worker.start()
            start = time.monotonic()
            return self._segment(case, prefetch, start)
        except CannotGoOnError as error:
            raise error.cause from error
        except SegpipeError as error:
            return partial(self._fail, case, error, time.monotonic() - start)

    def _segment(self, case: InputCase, prefetch: Callable[[], None] | None, start: float) -> Callable[[], Outcome]:
        """Ask the worker for a case, until it lives through it.

        A case that ends the worker while the next one is read gets another try, alone: it may have been the other.
        """
        options, files, reason = self.options, _files_of(case), ""
        described = self.described.pop(case.id, None)  # before it is read, so that a later change is noticed
        source = describe_source(case) if described is None else described.result()
        tries = options.retries + (2 if prefetch else 1)
        for attempt in range(tries):
            try:
                folder = self.folder.begin(case.id).absolute()
            except SegpipeError as error:
                raise CannotGoOnError(error) from error
            request = Segment(case=files, folder=str(folder), outputs=options.outputs, rules=options.rules)
            try:
                segmented = self.worker.segment(request, options.timeout, None if attempt else prefetch)
                require_plain_files(folder, segmented.files.values())
                judged = Judged.of(segmented.quality, segmented.flags, options.rules, self.bundle.root)
                return partial(self._finish, case, folder, segmented, judged, self.worker.start(), source, start)
            except WorkerMemoryError as error:
                if attempt > 0 or prefetch is None:
                    limit = f"{(options.max_case_memory or 0) / 2**30:.3g} GiB"
                    raise SegpipeError(
                        "the case took too much memory", expected=f"at most {limit} (--max-case-memory)"
                    ) from error
            except WorkerTimeoutError as error:
                limit = f"{options.timeout:g} s"
                raise SegpipeError("the case took too long", expected=f"at most {limit}") from error
            except WorkerDiedError as death:
                reason = death.reason
                self.folder.record(event="crashed", id=case.id, attempt=attempt + 1, reason=reason)
                self.on_crash(case.id, death)
            for following in self.described.values():  # nothing more is said to a worker that has died
                following.exception()
        raise SegpipeError(reason, found=f"{tries} attempts")

    def _finish(
        self,
        case: InputCase,
        folder: Path,
        segmented: Segmented,
        judged: Judged,
        loaded: Loaded,
        source: dict[str, Any],
        start: float,
    ) -> Outcome:
        if (folder / SLICE).is_file():
            from segpipe.reporting import draw_overlay

            draw_overlay(folder / SLICE, folder / OVERLAY)
        if judged.is_held:
            segmented = replace(segmented, files=put_aside(folder, segmented.files))
        result = result_document(case, segmented, loaded, self.bundle, self.options) | judged.as_result()
        images = source.get("sha256", [])
        result |= {"source_sha256": images, "sha256": hashes_of(folder)}
        result["training"] = None if self.trained is None else self.trained.judge(case.id, images)
        write_json(folder / RESULT, result)
        self.folder.map_case(case.id, [str(path) for path in case.paths], **source, **case.uids)
        self.folder.finish(case.id)
        seconds = round(time.monotonic() - start, 3)
        self.folder.record(event="done", id=case.id, seconds=seconds)
        return Outcome(case.id, "done", seconds, result=result)

    def _skip(self, case: InputCase) -> Outcome:
        result = self.earlier.done[case.id]
        if case.id in self.judged_anew:
            try:
                result = self._judge_anew(case, result, self.judged_anew[case.id])
            except DataError as error:
                return self._fail(case, error, 0.0)
        self.folder.record(event="skipped", id=case.id)
        return Outcome(case.id, "skipped", result=result)

    def _judge_anew(self, case: InputCase, result: dict[str, Any], judged: Judged) -> dict[str, Any]:
        folder = self.folder.begin(case.id)
        series = case.series if has_dicom(result) else None
        result = rewrite(judged, result, self.folder.final(case.id), folder, self.bundle, series)
        write_json(folder / RESULT, result)
        self.folder.finish(case.id)
        self.folder.record(event="judged", id=case.id, decision=result["decision"])
        return result

    def _fail(self, case: InputCase, error: SegpipeError, seconds: float) -> Outcome:
        self.folder.abandon(case.id)
        parts = {name: redact(text, case) for name, text in error.as_dict().items()}
        parts.pop("case_id", None)
        words = {"found": "found ", "expected": "expected ", "hint": ""}
        details = [f"{before}{parts[name]}" for name, before in words.items() if name in parts]
        if reason := getattr(error, "reason", None):  # the voxels of a series, not the computing
            return self._refuse(case, reason, "; ".join([parts["message"], *details]), round(seconds, 3))
        reason, detail = parts["message"], "; ".join(details) or None
        self.folder.record(event="failed", id=case.id, reason=reason, detail=detail)
        return Outcome(case.id, "failed", round(seconds, 3), reason, detail)

    def _refuse(self, case: InputCase, reason: str, detail: str, seconds: float | None = None) -> Outcome:
        paths = [str(path) for path in case.paths]
        if self.earlier.refused.get(case.id) != paths:
            self.folder.map_case(case.id, paths, refused=reason, **case.uids)
        self.folder.record(event="refused", id=case.id, reason=reason, detail=detail)
        return Outcome(case.id, "refused", seconds, reason, detail)


def _files_of(case: InputCase) -> CaseFiles:
    """Return a case as the worker gets it, which works in another folder."""
    if case.series is None:
        paths = tuple(str(path.absolute()) for path in case.paths)
        return CaseFiles(id=case.id, paths=paths, registered=case.registered, covariates=dict(case.covariates))
    return CaseFiles(id=case.id, series=_absolute(case.series.as_dict()))


def _absolute(series: dict[str, Any]) -> dict[str, Any]:
    files = [str(Path(name).absolute()) for name in series["files"]]  # what registers it is not read again
    return {**series, "files": files, "further": [_absolute(member) for member in series["further"]]}
