"""What a batch says of its cases: how each ended, its ``result.json``, and a table and a page of all.

The summary is read from the folder, so that it is right after a resume.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.bundle import untrained_note
from segpipe.common.console import SCHEMA_VERSION
from segpipe.common.files import read_json, write_csv, write_json
from segpipe.common.folder_lock import locked
from segpipe.common.grids import registered_note
from segpipe.common.image_names import image_stem
from segpipe.common.nifti import read_header
from segpipe.common.result_folder import (
    OVERLAY,
    REPORT,
    RESULT,
    SUMMARY_CSV,
    SUMMARY_JSON,
    ResultFolder,
    decision_of,
    read_events,
)
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
VIEWER = 'id="v-data"'  # in a page that has it
OF_CASES = ("schema_version", "notice", "counts", "decisions", "cases")  # keys of a summary that are made anew
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
    masks_given = bundle.first_stage is not None and "first_stage" not in segmented.seconds
    return {
        "schema_version": SCHEMA_VERSION,
        "id": case.id,
        "bundle": bundle.facts,
        "labels": {name: value for value, name in sorted(bundle.labels.items()) if value},
        "model": bundle.model,
        "route": "stock" if bundle.unsupported else "typed",
        "route_reasons": list(bundle.unsupported),
        "source": "dicom" if case.series else "nifti",
        **({} if bundle.first_stage is None else {"masks_given": masks_given}),
        **vars(segmented),
        "notes": [
            *(case.series.notes if case.series else _registered_notes(case)),
            *segmented.notes,
            *untrained_note(options.model, metadata),
            *bfloat16_note(options.model.precision, metadata, loaded.runtime or "", options.model.mirror),
            *(["the masks were given with the case: the first stage was not run"] if masks_given else []),
        ],
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
    labels = {value: name for value, name in sorted(bundle.labels.items()) if value}
    about = {
        "bundle": bundle.facts,
        **options.about_model(),
        "not_selected": [{"id": left_out.id, "rule": left_out.rule} for left_out in not_selected],
        "passed_over": dict(passed_over),
    }
    advice = {left_out.id: left_out.advice for left_out in not_selected}
    _write(folder.root, about, labels, advice, viewer=options.viewer)


def refresh_summary(root: str | Path) -> bool:
    """Write the summary of a result folder anew from what lies there now, such as after a release.

    Args:
        root: of a result folder.

    Returns:
        Whether there was one to write anew.

    Raises:
        UsageError: it cannot be written.
        DataError: the summary that is there cannot be read.
    """
    from segpipe.viewer import NO_NIIVUE

    root = Path(root)
    if not (root / SUMMARY_JSON).is_file():
        return False
    before = read_json(root / SUMMARY_JSON, "summary")
    about = {name: value for name, value in before.items() if name not in OF_CASES}
    with (root / SUMMARY_CSV).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    advice = {row["id"]: row["detail"] or None for row in rows if row.get("state") == "not_selected"}
    results = [read_json(path, "result") for path in sorted(root.glob(f"*/{RESULT}"))]
    named: dict[str, int] = next(
        (result["labels"] for result in results if isinstance(result, dict) and result.get("labels")), {}
    )
    columns = [column.removesuffix("_ml") for column in (rows[0] if rows else {}) if column.endswith("_ml")]
    labels = {value: name for name, value in named.items()} or dict(enumerate(columns, 1))
    page = (root / REPORT).read_text(encoding="utf-8") if (root / REPORT).is_file() else ""
    _write(root, about, labels, advice, viewer=VIEWER in page or NO_NIIVUE in page)
    return True


def _write(
    root: Path, about: Mapping[str, Any], labels: Mapping[int, str], advice: Mapping[str, str | None], *, viewer: bool
) -> None:
    """Write the three files: ``about`` the batch, with every case that lies there now.

    Args:
        root: of the folder.
        about: the bundle, the model, and what was left out.
        labels: value to name.
        advice: what to do about series that were left out, by id.
        viewer: put volumes into the page.
    """
    from segpipe.reporting import write_cases_page

    hint = "give the same command again: what is finished is kept"
    busy = UsageError("another process has been writing the summary for minutes", path=root, hint=hint)
    wait_s = 600 if viewer else 60  # volumes are read again
    with locked(root, busy, name=None, wait_s=wait_s):  # who writes last has seen what all others finished
        cases, left_out = collect(root), about["not_selected"]
        counts = {state: sum(case["state"] == state for case in cases) for state in ENDS}
        decisions = count_decisions([case for case in cases if case["state"] == "done"])
        document = {"schema_version": SCHEMA_VERSION, "notice": NOT_A_DEVICE, **about, "cases": cases}
        document |= {"counts": {**counts, "not_selected": len(left_out)}, "decisions": decisions}
        write_json(root / SUMMARY_JSON, document)
        names = list(labels.values())
        columns = ["id", "state", "decision", "reasons", "reason", "detail", "source", "seconds"]
        columns += [*(f"{name}_ml" for name in names), *FLAGS, "not_written", "notes"]
        rows = [_csv_row(case, names) for case in cases]
        rows += [
            {"id": each["id"], "state": "not_selected", "reason": each["rule"], "detail": advice.get(each["id"])}
            for each in left_out
        ]
        write_csv(root / SUMMARY_CSV, rows, columns)
        write_cases_page(
            root / REPORT,
            f"{_made_by(about)}: {len(cases)} cases",
            [(case, root / case["id"] / OVERLAY) for case in cases],
            labels,
            " ".join([NOT_A_DEVICE, *([f"{note}."] if (note := not_judged_note(decisions)) else [])]),
            [(each["id"], each["rule"]) for each in left_out],
            about["passed_over"],
            _viewer(root, labels) if viewer else None,
        )


def _made_by(about: Mapping[str, Any]) -> str:
    """Return in words what made the results of a folder; older summaries name one bundle alone."""
    bundles = [about["bundle"], *about.get("ensemble", ())]
    axes = about.get("mirror", ())
    named = " + ".join(f"{bundle['name']} {bundle['version']}" for bundle in bundles)
    return named + (f", mirrored along {', '.join(axes)}" if axes else "")


def _viewer(root: Path, labels: Mapping[int, str]) -> Insert:
    """Return what the page needs to show the volumes of the finished cases."""
    from segpipe.viewer import cases_of_results, viewer_insert

    return viewer_insert(cases_of_results(root, labels), "`segpipe view` shows it.")


def collect(root: Path) -> list[dict[str, Any]]:
    """Return every case that was tried in a folder, sorted by id: what is whole there, else how it ended last."""
    last: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    for event in read_events(root):
        if event.get("event") in ENDS and "id" in event:
            last[event["id"]] = event
            if event["event"] == "done":
                seconds[event["id"]] = event["seconds"]
    finished = {path.parent.name for path in root.glob(f"*/{RESULT}")}
    rows = []
    for id in sorted(finished | {id for id, event in last.items() if event["event"] != "done"}):
        ended = last.get(id, {"event": "done"})
        rows.append(_finished(root, id, ended, seconds) if id in finished else _unfinished(id, ended))
    return rows


def _finished(root: Path, id: str, ended: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    try:
        result = read_json(root / id / RESULT)
    except SegpipeError:
        result = {}
    result = result if isinstance(result, dict) else {}  # damaged
    is_older = ended["event"] != "done"
    return {
        "id": id,
        "state": "done",
        "reason": "an older result was kept" if is_older else None,
        "detail": f"tried again, the case {ended['event']}: {ended.get('reason')}" if is_older else None,
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
    row |= {"decision": decision_of(case), "reasons": "; ".join(case["reasons"])}
    row |= {f"{name}_ml": volumes.get(name) for name in labels}
    row |= {name: _cell(flags.get(name)) for name in FLAGS}
    return {**row, "not_written": "; ".join(case["not_written"]), "notes": "; ".join(case["notes"])}


def _cell(flag: Any) -> Any:
    if isinstance(flag, bool):
        return "yes" if flag else "no"
    return "; ".join(flag) if isinstance(flag, list) else flag
