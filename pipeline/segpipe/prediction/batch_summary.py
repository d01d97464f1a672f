"""What a batch says of its cases: how each ended, its ``result.json``, and a table and a page of all.

The summary is read from the folder, so that it is right after a resume.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from segpipe.bundle import untrained_note
from segpipe.common.console import SCHEMA_VERSION
from segpipe.common.files import read_json, write_csv, write_json
from segpipe.common.folder_lock import locked
from segpipe.common.grids import registered_note
from segpipe.common.image_names import image_stem
from segpipe.common.nifti import read_header
from segpipe.common.result_folder import OVERLAY, REPORT, RESULT, SUMMARY_CSV, SUMMARY_JSON, ResultFolder, read_events
from segpipe.errors import SegpipeError, UsageError
from segpipe.inference import bfloat16_note
from segpipe.prediction.cases import NotSelected
from segpipe.prediction.file_cases import InputCase
from segpipe.prediction.judging import about_quality, count_decisions, not_judged_note
from segpipe.prediction.options import Options
from segpipe.prediction.protocol import Loaded, Segmented

if TYPE_CHECKING:
    from segpipe.bundle import Bundle
    from segpipe.prediction.client import WorkerDiedError
    from segpipe.reporting import Insert


NOT_A_DEVICE = "Research and engineering use. Not a medical device, not for diagnosis or treatment."
ENDS = ("done", "failed", "refused")
ORDINARY_WORD = re.compile(r"[a-z]+")  # of a sentence rather than of a name, such as `image`
PATH_LIKE = re.compile(r"(?<!\w)/[^\s'\"]+")
FLAGS = ("empty", "touches_border", "far_spacing", "far_intensity", "orientation_unknown")


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        id: of the case.
        status: ``done``, ``skipped`` (finished before), ``failed``, or ``refused`` (a DICOM series that is no volume).
        seconds: that it took.
        reason: why it has no result: what went wrong, of what is refused in a word.
        detail: what was found, what was expected and what to do, where that is known.
        result: ``result.json``, of a skipped case that of before; empty where nothing was segmented.
    """

    id: str
    status: str
    seconds: float | None = None
    reason: str | None = None
    detail: str | None = None
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def decision(self) -> str | None:
        """Whether the result is ``ok``, to ``look`` at, or on ``hold``; None where nothing was judged."""
        return self.result.get("decision")

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, in words."""
        return tuple(self.result.get("reasons", ()))


@dataclass(frozen=True)
class BatchResult:
    """What became of a batch.

    Attributes:
        bundle: that it was predicted with.
        outcomes: of each case.
        not_selected: series that a rule left out.
        passed_over: number of files that are no image, by class.
    """

    bundle: Bundle
    outcomes: list[Outcome]
    not_selected: list[NotSelected] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Number of cases by status."""
        statuses = [outcome.status for outcome in self.outcomes]
        return {status: statuses.count(status) for status in ("done", "skipped", "failed", "refused")}

    @property
    def decisions(self) -> dict[str, int]:
        """Number of results by decision: ``ok``, ``look``, ``hold``, ``released`` and ``not_judged``."""
        return count_decisions([outcome.result for outcome in self.outcomes if outcome.result])


class BatchProgress:
    """What is called while a batch runs; override what is to be seen."""

    def reading(self, done: int, total: int) -> None:
        """Take note that the headers of so many files were read."""

    def started(self, total: int) -> None:
        """Take note that so many cases were selected."""

    def finished(self, outcome: Outcome) -> None:
        """Take note that a case has ended; called from a second thread."""

    def crashed(self, case_id: str, death: WorkerDiedError) -> None:
        """Take note that the worker died of a case."""


def result_document(
    case: InputCase, segmented: Segmented, loaded: Loaded, bundle: Bundle, options: Options
) -> dict[str, Any]:
    """Return ``result.json``."""
    metadata = [each.metadata for each in (bundle, *options.ensemble)]
    return {
        "schema_version": SCHEMA_VERSION,
        "id": case.id,
        "bundle": bundle.facts,
        "labels": {name: value for value, name in sorted(bundle.labels.items()) if value},
        "model": bundle.model,
        "route": "stock" if bundle.unsupported else "typed",
        "route_reasons": list(bundle.unsupported),
        "source": "dicom" if case.series else "nifti",
        "notes": [
            *(case.series.notes if case.series else _registered_notes(case)),
            *untrained_note(options.model, metadata),
            *bfloat16_note(options.model.precision, metadata, loaded.runtime or "", options.model.mirror),
        ],
        **vars(segmented),
        "beside": options.outputs.extra_files(bundle.labels, bundle.activation),
        **options.about_model(),
        **vars(loaded),
    }


def _registered_notes(case: InputCase) -> list[str]:
    if not case.registered:
        return []
    first, *others = [read_header(path) for path in case.paths]
    notes = [registered_note(first, header, index) for index, header in enumerate(others, 1)]
    return [note for note in notes if note]


def redact(text: str, case: InputCase) -> str:
    """Return a text for reports and state files: paths and file names of the case are replaced by its id."""
    for path in case.paths:
        for name in (str(path), os.path.realpath(path)):
            text = text.replace(name, case.id)
        if not case.is_dicom:  # whose files may be called 1, 2, 3
            text = text.replace(path.name, case.id)
            stem = image_stem(path)
            if not ORDINARY_WORD.fullmatch(stem):
                text = re.sub(rf"(?<!\w){re.escape(stem)}(?!\w)", case.id, text)
    for folder in dict.fromkeys(path.parent for path in case.paths):  # as a whole: it may hold blanks
        for name in (str(folder), os.path.realpath(folder)):
            text = text.replace(name + "/", "/")
    return PATH_LIKE.sub("(path)", text)


def write_summary(
    folder: ResultFolder,
    bundle: Bundle,
    options: Options,
    not_selected: Sequence[NotSelected],
    passed_over: Mapping[str, int],
) -> None:
    """Write ``summary.csv``, ``summary.json`` and ``report.html``: every case that was ever tried in this folder.

    Raises:
        UsageError: one of them cannot be written.
    """
    from segpipe.reporting import write_cases_page

    hint = "give the same command again: what is finished is kept"
    busy = UsageError("another process has been writing the summary for minutes", path=folder.root, hint=hint)
    wait_s = 600 if options.viewer else 60  # volumes are read again
    with locked(folder.root, busy, name=None, wait_s=wait_s):  # who writes last has seen what all others finished
        cases = collect(folder)
        labels = [name for value, name in sorted(bundle.labels.items()) if value]
        counts = {state: sum(case["state"] == state for case in cases) for state in ENDS}
        decisions = count_decisions([case for case in cases if case["state"] == "done"])
        write_json(
            folder.root / SUMMARY_JSON,
            {
                "schema_version": SCHEMA_VERSION,
                "notice": NOT_A_DEVICE,
                "bundle": bundle.facts,
                **options.about_model(),
                "counts": {**counts, "not_selected": len(not_selected)},
                "decisions": decisions,
                "cases": cases,
                "not_selected": [{"id": left_out.id, "rule": left_out.rule} for left_out in not_selected],
                "passed_over": dict(passed_over),
            },
        )
        columns = ["id", "state", "decision", "reasons", "reason", "detail", "source", "seconds"]
        columns += [*(f"{name}_ml" for name in labels), *FLAGS, "not_written", "notes"]
        rows = [_csv_row(case, labels) for case in cases]
        rows += [
            {"id": each.id, "state": "not_selected", "reason": each.rule, "detail": each.advice}
            for each in not_selected
        ]
        write_csv(folder.root / SUMMARY_CSV, rows, columns)
        write_cases_page(
            folder.root / REPORT,
            f"{bundle.name} {bundle.version}: {len(cases)} cases",
            [(case, folder.final(case["id"]) / OVERLAY) for case in cases],
            {value: name for value, name in bundle.labels.items() if value},
            " ".join([NOT_A_DEVICE, *([f"{note}."] if (note := not_judged_note(decisions)) else [])]),
            [(left_out.id, left_out.rule) for left_out in not_selected],
            passed_over,
            _viewer(folder, bundle) if options.viewer else None,
        )


def _viewer(folder: ResultFolder, bundle: Bundle) -> Insert:
    """Return what the page needs to show the volumes of the finished cases."""
    from segpipe.viewer import cases_of_results, viewer_insert

    names = {value: name for value, name in bundle.labels.items() if value}
    return viewer_insert(cases_of_results(folder.root, names), "`segpipe view` shows it.")


def collect(folder: ResultFolder) -> list[dict[str, Any]]:
    """Return every case that was tried in a folder, sorted by id: what is whole there, else how it ended last."""
    last: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    for event in read_events(folder.root):
        if event.get("event") in ENDS and "id" in event:
            last[event["id"]] = event
            if event["event"] == "done":
                seconds[event["id"]] = event["seconds"]
    finished = {path.parent.name for path in folder.root.glob(f"*/{RESULT}")}
    rows = []
    for id in sorted(finished | {id for id, event in last.items() if event["event"] != "done"}):
        ended = last.get(id, {"event": "done"})
        rows.append(_finished(folder, id, ended, seconds) if id in finished else _unfinished(id, ended))
    return rows


def _finished(folder: ResultFolder, id: str, ended: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    try:
        result = read_json(folder.final(id) / RESULT)
    except SegpipeError:
        result = {}
    is_older = ended["event"] != "done"
    return {
        "id": id,
        "state": "done",
        "reason": "an older result was kept" if is_older else None,
        "detail": f"computed again, the case {ended['event']}: {ended.get('reason')}" if is_older else None,
        "source": result.get("source", "nifti"),
        "seconds": seconds.get(id),
        "volumes_ml": result.get("volumes_ml"),
        "flags": result.get("flags"),
        "files": result.get("files"),
        "not_written": result.get("not_written", {}),
        "notes": result.get("notes", []),
        "doubtful_slices": result.get("doubtful_slices"),
        "isolation": result.get("isolation"),
        **about_quality(result),
    }


def _unfinished(id: str, ended: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": id,
        "state": ended["event"],
        "reason": ended.get("reason"),
        "detail": ended.get("detail"),
        "source": "dicom" if ended["event"] == "refused" and id.startswith("dcm-") else None,
        "seconds": None,
        "volumes_ml": None,
        "flags": None,
        "files": None,
        "not_written": {},
        "notes": [],
        "doubtful_slices": None,
        "isolation": None,
        **about_quality({}),
    }


def _csv_row(case: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    volumes, flags = case["volumes_ml"] or {}, case["flags"] or {}
    row = {name: case[name] for name in ("id", "state", "reason", "detail", "source", "seconds")}
    row |= {"decision": case["decision"], "reasons": "; ".join(case["reasons"])}
    row |= {f"{name}_ml": volumes.get(name) for name in labels}
    row |= {name: _cell(flags.get(name)) for name in FLAGS}
    return {**row, "not_written": "; ".join(case["not_written"]), "notes": "; ".join(case["notes"])}


def _cell(flag: Any) -> Any:
    if isinstance(flag, bool):
        return "yes" if flag else "no"
    return "; ".join(flag) if isinstance(flag, list) else flag
