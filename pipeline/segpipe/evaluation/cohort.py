"""Evaluate a set of predictions: choose the cases, measure them, sum up, and write the report where one is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.common.api_calls import checked_call
from segpipe.common.files import require_writable, write_json
from segpipe.common.processes import Progress
from segpipe.data import Manifest, Readings, checked_reason, manifest_sha256, open_manifest, readings_of, require_apart
from segpipe.errors import UsageError
from segpipe.evaluation.case_evaluation import CaseResult, evaluate_cases, make_jobs, unused_predictions
from segpipe.evaluation.evaluation_page import PAGE, Figures, draw_figures, figure_options, write_evaluation_page
from segpipe.evaluation.held_out import part_of_training, read_test_set, refuse_trained_cases
from segpipe.evaluation.made_by import made_by
from segpipe.evaluation.postprocessing import Choice, choose_rules, refuse_test_cases, rules_document
from segpipe.evaluation.statistics import LEVEL, Estimate
from segpipe.evaluation.summary import Summary, case_value, summarise, write_metrics


@dataclass(frozen=True)
class Evaluation:
    """What a set of predictions is worth.

    Attributes:
        settings: what the figures depend on besides the data: data set, split, tolerance, bootstrap, seed.
        summary: mean with interval, median and counts of every measure, per label and overall.
        cases: the measures of every case, in the order of the manifest.
        rules: the clean-up rule for each label, where that was asked for.
        figures: what was drawn, and what was not and why.
        unused: label maps among the predictions that belong to no case, where predictions are missing.
        readings: how often the test set has been read; None where no test case was measured.
    """

    settings: dict[str, Any]
    summary: Summary
    cases: list[CaseResult]
    rules: list[Choice] | None = None
    figures: Figures | None = None
    unused: tuple[str, ...] = ()
    readings: Readings | None = None

    @property
    def mean_dice(self) -> Estimate:
        """Mean Dice over cases, each the mean of its labels, with the interval over patients."""
        estimate: Estimate = self.summary.overall["metrics"]["dice"]
        return estimate

    @property
    def case_dice(self) -> dict[str, float | None]:
        """Dice of each case by id, the mean of its labels; 0 where its prediction cannot be used."""
        return {case.id: case_value(case, "dice") for case in self.cases}

    @property
    def label_dice(self) -> dict[str, Estimate]:
        """Mean Dice of each label by name."""
        return {part["name"]: part["metrics"]["dice"] for part in self.summary.labels.values()}

    @property
    def predictions(self) -> dict[str, Any]:
        """Which model made the predictions, as metrics.json has it; ``made_by`` is None where that cannot be told."""
        return made_by({case.id: case.origin for case in self.cases})

    @property
    def failed(self) -> list[CaseResult]:
        """Cases whose prediction is missing or cannot be used; they count as Dice 0."""
        return [case for case in self.cases if case.failure is not None]

    def document(self) -> dict[str, Any]:
        """Return what ``segpipe evaluate --json`` prints, as plain values."""
        document: dict[str, Any] = {
            **self.settings,
            "predictions": self.predictions,
            "summary": self.summary.document(),
        }
        if self.figures is not None:
            document["figures"] = {"files": [*self.figures.files, PAGE], "notes": self.figures.notes}
        if self.rules is not None:
            document["rules"] = rules_document(self.rules, self.settings)["rules"]
        document["failures"] = [{"id": case.id, "reason": case.failure} for case in self.failed]
        return document


@checked_call
def evaluate(
    manifest: str | Path | Manifest,
    predictions: str | Path,
    *,
    out: str | Path | None = None,
    split: str = "test",
    fold: int | None = None,
    data: str | Path | None = None,
    tolerance_mm: float = 1.0,
    workers: int | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    try_postprocessing: bool = False,
    figures: bool = True,
    worst: int = 4,
    gifs: Sequence[str] = (),
    run: str | Path | None = None,
    reason: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure predictions against the truth, per case and label, as ``segpipe evaluate`` does.

    Manifest, predictions and run are read as data: nothing that they name is executed.

    >>> import segpipe
    >>> evaluation = segpipe.evaluate("data/manifest.json", "data/labels", split="validation", fold=0)
    >>> evaluation.mean_dice.mean  # the truth against itself
    1.0
    >>> sorted(evaluation.label_dice)
    ['kidney', 'lesion', 'liver']

    Args:
        manifest: the dataset manifest, which names the true label maps.
        predictions: folder that ``segpipe predict`` wrote, or of ``<case id>.nii.gz`` label maps.
        out: folder for metrics.csv, metrics.json, report.html and figures; None writes nothing.
        split: ``test``, ``validation``, ``training`` or ``all``.
        fold: the fold, for validation and training.
        data: data folder, where it is not the manifest's own.
        tolerance_mm: of NSD, the surface Dice.
        workers: processes; None takes what the work is worth, at most 4.
        bootstrap: draws of patients for the intervals; of cases where patients are unknown.
        seed: of the draws.
        try_postprocessing: choose a clean-up rule per label; never on test cases.
        figures: draw the figures and the page that holds them, where there is an ``out``.
        worst: number of worst cases in the gallery.
        gifs: ids of cases to animate.
        run: folder that ``segpipe train`` wrote, for the learning curves.
        reason: what the test set is read for, in a line, for its ledger.
        progress: called with the number of cases done and of all.

    Raises:
        UsageError: options that do not go together, no such split or fold, or nothing to measure or to read.
        DataError: the manifest cannot be used, or the ledger of test readings beside it; or patients of its
            test set are in training too.
        RefusedError: a clean-up rule was to be chosen on test cases, or the model was trained on cases of the test.
    """
    if not math.isfinite(tolerance_mm):
        raise UsageError("the tolerance must be a finite number of mm", found=tolerance_mm)
    if fold is not None and split not in ("validation", "training"):
        raise UsageError(
            "--fold chooses among training cases",
            found=f"--split {split} --fold {fold}",
            hint=f"leave --fold out, or name --split validation --fold {fold}",
        )
    if not (figures and out) and (gifs or run):
        if out is None:
            raise UsageError("without a folder for the report there is no place for --gif and --run", hint="name out")
        raise UsageError("--no-figures draws neither --gif nor --run", hint="leave --no-figures out")
    predictions, reason = Path(predictions), checked_reason(reason)
    dataset, root = open_manifest(manifest, data)
    cases = dataset.select(split, fold)
    if split == "test":
        require_apart(dataset)
    if try_postprocessing:
        refuse_test_cases(dataset, cases)
    jobs = make_jobs(dataset, cases, root, predictions, tolerance_mm, try_postprocessing)
    options = figure_options(jobs, worst, gifs, None if run is None else Path(run))
    test, sha256 = {case.id for case in dataset.test}, manifest_sha256(manifest)
    if any(job.id in test for job in jobs):
        readings_of(manifest)  # what cannot be counted is not measured
    if out is not None:
        require_writable(out)
    results = evaluate_cases(jobs, workers, progress)
    if split == "test":
        refuse_trained_cases(results, sha256)
    readings = read_test_set(manifest, sha256, results, test, reason)
    summary = summarise(results, dataset.targets, bootstrap, seed)
    unit = "patient" if dataset.knows_patients else "case"
    settings: dict[str, Any] = {
        "dataset": dataset.name,
        "manifest_sha256": sha256,
        "split": split,
        "fold": fold,
        "cases_without_label": len(cases) - len(jobs),
        "tolerance_mm": tolerance_mm,
        "test_readings": None if readings is None else readings.document(),
        "bootstrap": {"draws": bootstrap, "seed": seed, "unit": unit, "level": LEVEL},
    }
    if trained := [each.id for each in results if part_of_training(each.origin, sha256) == "training"]:
        settings["seen_in_training"] = trained
    drawn, rules = None, None
    if out is not None:
        write_metrics(Path(out), results, summary, settings)
        if figures:
            drawn = draw_figures(Path(out), results, dataset, root, predictions, options)
            write_evaluation_page(Path(out), results, summary, settings, drawn)
    if try_postprocessing:
        measured = [result for result in results if result.trials]
        trials, groups = [result.trials for result in measured], [result.group for result in measured]
        rules = choose_rules(trials, groups, dataset.targets, bootstrap, seed)
        if out is not None:
            write_json(Path(out) / "postprocessing.json", rules_document(rules, settings))
    unused = unused_predictions(predictions, jobs) if any(result.missing for result in results) else []
    return Evaluation(settings, summary, results, rules, drawn, tuple(unused), readings)
