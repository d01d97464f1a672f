"""``out_of_fold.json``: the figures of a cross-validation's models, and what was chosen by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from segpipe.bundle import weights_of
from segpipe.common.files import read_json
from segpipe.data import Manifest, patients_note
from segpipe.evaluation import (
    CANDIDATES,
    METHOD,
    Choice,
    Evaluation,
    Selection,
    bootstrap_mean,
    corrected_for_selection,
    rules_document,
)
from segpipe.training.seeds import spread
from segpipe.training.several_runs import Series

SCHEMA_VERSION = 1
OF = (
    "each case by the model of the fold that left it out: figures of the fold models, not of an ensemble of them nor "
    "of a model that was trained on all cases"
)


def fold_rows(
    series: Series, dataset: Manifest, evaluation: Evaluation, weights: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Return a row for each fold: its model, and the mean Dice of the cases that it left out.

    Args:
        series: the runs.
        dataset: the cases that were measured.
        evaluation: of all of them.
        weights: fold to SHA-256 of the weights.
    """
    rows = []
    for fold in series.values:
        cases = {case.id: case.group for case in dataset.select("validation", fold)}
        scores = {case_id: score for case_id, score in evaluation.case_dice.items() if case_id in cases}
        rows.append(
            {
                "fold": fold,
                "folder": series.folder(fold).name,
                "epochs": read_json(series.folder(fold) / "run.json", "run record")["epochs"],
                "weights": {"file": weights_of(series.folder(fold)).name, "sha256": weights[fold]},
                "cases": len(cases),
                "patients": len(set(cases.values())),
                "mean_dice": asdict(bootstrap_mean(list(scores.values()), [cases[case_id] for case_id in scores])),
            }
        )
    return rows


def out_of_fold_document(
    rows: Sequence[Mapping[str, Any]], dataset: Manifest, evaluation: Evaluation
) -> dict[str, Any]:
    """Return all of ``out_of_fold.json`` of one training, which was chosen among nothing.

    Args:
        rows: of `fold_rows`.
        dataset: all its cases.
        evaluation: of those that were measured.
    """
    settings = evaluation.settings
    folds = {case.id: case.fold for case in dataset.training}
    dice = [row["mean_dice"]["mean"] for row in rows if row["mean_dice"]["mean"] is not None]
    groups = {case.id: case.group for case in dataset.training}
    figure = corrected_for_selection({"this": evaluation.case_dice}, groups, "this")
    choices = evaluation.rules or []
    return {
        "schema_version": SCHEMA_VERSION,
        "of": OF,
        **{name: settings[name] for name in ("dataset", "manifest_sha256", "tolerance_mm", "bootstrap")},
        "patients": {"known": dataset.knows_patients, "rule": dataset.patient_rule, "note": patients_note(dataset)},
        "folds": list(rows),
        "spread": spread(dice),
        "figure": _figure(figure),
        "selected": [_rule_selection(choice) for choice in choices],
        "postprocessing": _postprocessing(choices, evaluation, figure),
        "summary": evaluation.summary.document(),
        "cases": [
            {
                "id": case.id,
                "fold": folds[case.id],
                "failure": case.failure,
                "mean_dice": evaluation.case_dice[case.id],
                "labels": [{"name": measure.name, "dice": measure.dice} for measure in case.measures],
            }
            for case in evaluation.cases
        ],
    }


def choose_among(
    document: Mapping[str, Any], candidates: Mapping[str, Mapping[str, Any]], chosen: str, dataset: Manifest
) -> dict[str, Any]:
    """Return a document with the choice of its training among several, and its figure corrected for it.

    Args:
        document: of the one that was chosen.
        candidates: name to document of each, the chosen one among them.
        chosen: its name.
        dataset: for the patients.
    """
    scores = {name: {case["id"]: case["mean_dice"] for case in each["cases"]} for name, each in candidates.items()}
    groups = {case.id: case.group for case in dataset.training}
    figure = corrected_for_selection(scores, groups, chosen)
    choice = {
        "what": "training",
        "chosen": chosen,
        "candidates": [
            {
                "name": name,
                "mean_dice": each["figure"]["raw"]["mean"],
                "cases": len(each["cases"]),
                "folds": [row["fold"] for row in each["folds"]],
            }
            for name, each in candidates.items()
        ],
    }
    kept = [selected for selected in document["selected"] if selected["what"] != "training"]
    postprocessing = _with_rules(figure, document["postprocessing"]["labels"])
    return {
        **document,
        "figure": _figure(figure),
        "selected": [choice, *kept],
        "postprocessing": {**document["postprocessing"], **postprocessing},
    }


def _figure(selection: Selection) -> dict[str, Any]:
    return {
        "measure": "mean Dice",
        "raw": asdict(selection.raw),
        "corrected": {"mean": selection.mean, "low": selection.low, "high": selection.high},
        "candidates": selection.candidates,
        "chosen_again": selection.again,
        "method": METHOD if selection.candidates > 1 else "one training: nothing was chosen by this figure",
    }


def _rule_selection(choice: Choice) -> dict[str, Any]:
    return {"what": f"post-processing of {choice.name}", "chosen": _words(choice), "candidates": len(CANDIDATES) + 1}


def _words(choice: Choice) -> str:
    if choice.rule is None:
        return "none"
    words = ["largest component"] if choice.rule.keep_largest else []
    words += [f"at least {choice.rule.min_volume_ml} mL"] if choice.rule.min_volume_ml else []
    return ", ".join(words)


def _postprocessing(choices: Sequence[Choice], evaluation: Evaluation, figure: Selection) -> dict[str, Any]:
    """Return the rules that help, and what the figure would be with them; the fold models are measured without."""
    labels = [_rule_gain(position, choice, evaluation) for position, choice in enumerate(choices)]
    rules = rules_document(choices, evaluation.settings)["rules"]
    return {"applied": False, "rules": rules, "labels": labels, **_with_rules(figure, labels)}


def _with_rules(figure: Selection, labels: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    chosen = [label for label in labels if label["raw_gain"] is not None]
    if not chosen or figure.raw.mean is None or figure.mean is None:
        return {"raw": None, "corrected": None}
    raw, corrected = (sum(label[name] for label in chosen) / len(labels) for name in ("raw_gain", "corrected_gain"))
    return {"raw": figure.raw.mean + raw, "corrected": figure.mean + corrected}


def _rule_gain(position: int, choice: Choice, evaluation: Evaluation) -> dict[str, Any]:
    """Return what the rule of a label gains in its Dice, as it looks and corrected for the choice among all rules."""
    gain: dict[str, Any] = {"name": choice.name, "rule": _words(choice), "raw_gain": None, "corrected_gain": None}
    if choice.rule is None:
        return gain
    groups = {case.id: case.group for case in evaluation.cases}
    known = {case.id: case.trials[position] for case in evaluation.cases if case.trials}
    trials = {case_id: trial for case_id, trial in known.items() if trial is not None}
    gains: dict[str, dict[str, float | None]] = {"none": dict.fromkeys(trials, 0.0)}
    for index, rule in enumerate(CANDIDATES):
        gains[str(rule)] = {case_id: trial.after[index] - trial.before for case_id, trial in trials.items()}
    selection = corrected_for_selection(gains, {case_id: groups[case_id] for case_id in trials}, str(choice.rule))
    return {**gain, "raw_gain": selection.raw.mean, "corrected_gain": selection.mean}
