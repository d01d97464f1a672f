"""The page of `segpipe auto`: what was chosen and why, what it may be believed, and how long it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.reporting import Section, Table, write_page
from segpipe.training import duration

Document = Mapping[str, Any]
TRUST = (
    "The figure is of the fold models: each case is measured by the one model that did not see it. It is not of the "
    "ensemble in the bundle, which nobody has measured on cases that its members had not seen."
)


def write_auto_page(path: Path, state: Document, search: Document, out_of_fold: Document) -> None:
    """Write OUT/auto.html.

    Args:
        path: of the page.
        state: content of ``auto.json``.
        search: content of ``search.json``.
        out_of_fold: content of ``out_of_fold.json`` of the training that was chosen.
    """
    facts = state["steps"]["import"]["decided"]
    sections = [
        _in_short(state, out_of_fold),
        _candidates(search),
        _plan(search),
        _cases(out_of_fold),
        _time(state, search),
        _what_next(state),
    ]
    lead = (
        f"{facts['dataset']}: {facts['cases']} training cases, {', '.join(facts['labels'])}; a budget of "
        f"{duration(state['settings']['budget_seconds'])}."
    )
    write_page(path, "segpipe auto", sections, lead)


def times(state: Document, search: Document) -> list[tuple[str, float | None, float]]:
    """Return what was done, the seconds that were foreseen for it where they were, and those that it took.

    Args:
        state: content of ``auto.json``.
        search: content of ``search.json``.
    """
    steps = state["steps"]
    rows: list[tuple[str, float | None, float]] = [
        (name, None, steps[name]["seconds"]) for name in ("import", "check", "split", "fingerprint")
    ]
    rows.append(("planning", None, search["planning_seconds"]))
    jobs = search.get("jobs", 1)
    beside = f", {jobs} at the same time" if jobs > 1 else ""
    measured, foreseen = steps["search"]["seconds"] - search["planning_seconds"], 0.0
    for name, plan in search["plans"].items():
        last = [entry for entry in search["rounds"] if name in entry["training_seconds"]][-1]
        runs, took = len(last["folds"]), last["training_seconds"][name] / jobs
        measured -= took
        foreseen += runs * plan["estimate"]["prediction_s"] / jobs
        rows.append((f"training {name}, folds: {runs}{beside}", runs * training_seconds(plan["estimate"]) / jobs, took))
    rows.append(("measuring the cases of the folds", foreseen, max(0.0, measured)))
    rows.append(("export", None, steps["export"]["seconds"]))
    return rows


def training_seconds(estimate: Document) -> float:
    """Return the seconds of one run that a plan foresees for its session: building, loading, training, validation."""
    return float(sum(estimate[name] for name in ("startup_s", "loading_s", "training_s", "validation_s")))


def _in_short(state: Document, out_of_fold: Document) -> Section:
    figure = out_of_fold["figure"]
    took, budget = state["result"]["seconds"], state["settings"]["budget_seconds"]
    paragraphs = [TRUST]
    if out_of_fold["patients"]["note"]:
        paragraphs.append(f"{out_of_fold['patients']['note']}.")
    paragraphs += [f"{note}." for note in state["notes"] if note != out_of_fold["patients"]["note"]]
    raw, corrected = figure["raw"], figure["corrected"]
    among = "corrected for the choice among candidates" if figure["candidates"] > 1 else "the same: nothing was chosen"
    return Section(
        "In short",
        paragraphs=paragraphs,
        figures=[
            (_dice(raw["mean"]), f"mean Dice out of fold ({_dice(raw['low'])} to {_dice(raw['high'])})"),
            (_dice(corrected["mean"]), among),
            (str(len(out_of_fold["cases"])), "cases, each measured once"),
            (duration(took), f"of {duration(budget)}"),
        ],
    )


def _candidates(search: Document) -> Section:
    paragraphs = [
        "All candidates train the first fold for the same time; the better half trains the next one, until one is "
        "left. Nothing is decided on cases that a model was trained on."
    ]
    if search["given_up"]:
        paragraphs.append(f"{search['given_up']}.")
    rows = [
        [", ".join(map(str, entry["folds"])), name, entry["out_of_fold_dice"].get(name), _outcome(entry, name)]
        for entry in search["rounds"]
        for name in entry["trained"]
    ]
    return Section(
        f"Which training: {search['chosen']}",
        paragraphs=paragraphs,
        tables=[Table(["folds", "candidate", "mean Dice out of fold", "then"], rows)],
    )


def _outcome(entry: Document, name: str) -> str:
    if name in entry["failed"]:
        return f"failed: {entry['failed'][name]}"
    if len(entry["trained"]) == 1:
        return "is taken"
    return "goes on" if name in entry["kept"] else "is given up"


def _plan(search: Document) -> Section:
    plan = search["plans"][search["chosen"]]
    rows = [[rule["name"], _short(rule["value"]), rule["why"]] for rule in plan["rules"]]
    return Section("How it is trained", paragraphs=plan["notes"], tables=[Table(["what", "value", "why"], rows)])


def _cases(out_of_fold: Document) -> Section:
    ranked = sorted(out_of_fold["cases"], key=lambda case: case["mean_dice"] or 0.0)
    rows = [[case["id"], case["fold"], case["mean_dice"], case["failure"] or ""] for case in ranked[:10]]
    tables = [Table(["case", "fold", "mean Dice", "failure"], rows, "The ten worst cases: look at these first")]
    folds = [[row["fold"], row["cases"], row["epochs"], row["mean_dice"]["mean"]] for row in out_of_fold["folds"]]
    tables.append(Table(["fold", "cases", "epochs", "mean Dice"], folds))
    chosen = [[choice["what"], choice["chosen"], _number(choice["candidates"])] for choice in out_of_fold["selected"]]
    tables.append(
        Table(["chosen on these cases", "what", "among"], chosen, "All that was chosen by out-of-fold figures")
    )
    return Section("What the fold models do", tables=tables)


def _time(state: Document, search: Document) -> Section:
    rows = [
        [name, "–" if foreseen is None else duration(foreseen), duration(real)]
        for name, foreseen, real in times(state, search)
    ]
    rows.append(["in all", duration(state["settings"]["budget_seconds"]), duration(state["result"]["seconds"])])
    return Section("Time", tables=[Table(["what", "foreseen", "took"], rows, "The whole was foreseen as the budget")])


def _what_next(state: Document) -> Section:
    commands = [
        f"segpipe bundle verify {state['result']['bundle']}",
        f"segpipe predict {state['result']['bundle']} SCANS RESULTS",
    ]
    return Section("What next", paragraphs=["In the folder of this page:"], commands=commands)


def _number(candidates: int | Sequence[Any]) -> int:
    return candidates if isinstance(candidates, int) else len(candidates)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        parts = {name: part for name, part in value.items() if name not in ("keys", "allow_missing_keys")}
        return ", ".join(f"{name.replace('_target_', 'transform')} {_short(part)}" for name, part in parts.items())
    return str(value)


def _dice(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
