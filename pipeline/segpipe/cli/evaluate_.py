"""segpipe evaluate: predictions against the truth, with intervals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segpipe.cli.shared_options import Allow, RunUnvetted
from segpipe.common.console import Console
from segpipe.errors import OK, SOME_FAILED, UsageError

if TYPE_CHECKING:
    from segpipe.evaluation import CaseResult, Choice, Job, Summary


SHOWN_FAILURES = 10


def command(
    manifest: Annotated[Path, typer.Argument(help="The dataset manifest, which names the true label maps.")],
    predictions: Annotated[
        Path, typer.Argument(help="Folder that `segpipe predict` wrote, or of <case id>.nii.gz label maps.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for metrics.csv, metrics.json, report.html and figures.")],
    split: Annotated[str, typer.Option(help="Which cases: test, validation, training or all.")] = "test",
    fold: Annotated[int | None, typer.Option(help="The fold, for validation and training.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data folder, where it is not the manifest's own.")] = None,
    tolerance_mm: Annotated[float, typer.Option(min=0, help="Tolerance of NSD, the surface Dice.")] = 1.0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default what the work is worth, at most 4.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=100, max=100_000, help="Draws of patients for the intervals.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    try_postprocessing: Annotated[
        bool, typer.Option("--try-postprocessing", help="Choose a clean-up rule per label; never on test cases.")
    ] = False,
    figures: Annotated[bool, typer.Option(help="Draw the figures and the page that holds them.")] = True,
    worst: Annotated[int, typer.Option(min=0, max=50, help="Worst cases to show in the gallery.")] = 4,
    gif: Annotated[
        list[str] | None, typer.Option(metavar="CASE", help="Case to animate, slice by slice; may be repeated.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder that `segpipe train` wrote, for the learning curves.")
    ] = None,
    allow: Allow = None,
    run_unvetted_code: RunUnvetted = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Measure predictions against the truth, per case and label.

    Dice, IoU, precision, recall, specificity; Hausdorff distance (HD), its 95th percentile (HD95), average
    surface distance (ASSD) and surface Dice (NSD) in mm; F1 and Dice by lesion; volumes in mL; calibration error
    (ECE) where `segpipe predict --probabilities` kept them. Means have a 95 % bootstrap interval over patients. A
    missing or unusable prediction counts as Dice 0, and the exit code is then 4. The table shows the main
    measures; metrics.csv and metrics.json hold all, with every definition.

    report.html shows it all on one page: Dice by case with mean (red) and median (green), and the worst cases with
    the outlines of the prediction (red) and the truth (green); --gif animates cases, --run adds learning curves.

    A manifest that lies in a bundle is used when that bundle passes the checks of `segpipe bundle verify`.

    Example: segpipe evaluate data/manifest.json predictions --out metrics --split test
    """
    console = Console("evaluate", as_json=json)
    from segpipe import evaluation as stage
    from segpipe.bundle import TrustPolicy, require_vetted_sources
    from segpipe.common.files import require_writable, sha256_of, write_json
    from segpipe.data import data_root, load_manifest, some_of
    from segpipe.evaluation import refuse_test_cases, rules_document, summary_document

    if not math.isfinite(tolerance_mm):
        raise UsageError("the tolerance must be a finite number of mm", found=tolerance_mm)
    if fold is not None and split not in ("validation", "training"):
        raise UsageError(
            "--fold chooses among training cases",
            found=f"--split {split} --fold {fold}",
            hint=f"leave --fold out, or name --split validation --fold {fold}",
        )
    if not figures and (gif or run):
        raise UsageError("--no-figures draws neither --gif nor --run", hint="leave --no-figures out")
    require_vetted_sources((manifest, run), TrustPolicy(tuple(allow or ()), run_unvetted_code))
    dataset = load_manifest(manifest)
    cases = dataset.select(split, fold)
    if try_postprocessing:
        refuse_test_cases(dataset, cases)
    root = data_root(manifest, data)
    jobs = stage.make_jobs(dataset, cases, root, predictions, tolerance_mm, try_postprocessing)
    wanted = stage.wanted_figures(jobs, worst, gif or [], run)
    require_writable(out)
    results = _measure(console, jobs, workers)
    summary = stage.summarise(results, dataset.foreground, bootstrap, seed)
    settings: dict[str, Any] = {
        "dataset": dataset.name,
        "manifest_sha256": sha256_of(manifest),
        "split": split,
        "fold": fold,
        "cases_without_label": len(cases) - len(jobs),
        "tolerance_mm": tolerance_mm,
        "bootstrap": {"draws": bootstrap, "seed": seed, "unit": "patient", "level": 0.95},
    }
    stage.write_report(out, results, summary, settings)
    document: dict[str, Any] = {**settings, "summary": summary_document(summary)}
    _show(console, summary, settings)
    if figures:
        drawn = stage.draw_figures(out, results, dataset, root, predictions, wanted)
        stage.write_evaluation_page(out, results, summary, settings, drawn)
        document["figures"] = {"files": [*drawn.files, stage.PAGE], "notes": drawn.notes}
        console.say(f"report.html shows it on one page, with {', '.join(drawn.files)}")
        for note in drawn.notes:
            console.say(f"  {note}")
    if try_postprocessing:
        choices = stage.choose_rules(results, dataset.foreground, bootstrap, seed)
        rules = rules_document(choices, settings)
        write_json(out / "postprocessing.json", rules)
        document["rules"] = rules["rules"]
        _show_rules(console, choices)
    failed = [result for result in results if result.failure is not None]
    document["failures"] = [{"id": result.id, "reason": result.failure} for result in failed]
    console.document(**document)
    _show_failures(console, failed)
    _show_remarks(console, [result for result in results if result.remark is not None])
    others = stage.other_files(predictions, jobs) if any(result.missing for result in failed) else []
    if others:
        console.note(f"{len(others)} files there belong to no case of this split: {some_of(others)}")
    return SOME_FAILED if failed else OK


def _measure(console: Console, jobs: list[Job], workers: int | None) -> list[CaseResult]:
    from segpipe.evaluation import choose_workers, evaluate_cases

    with console.progress() as bar:
        task = bar.add_task("measuring", total=len(jobs))
        return evaluate_cases(jobs, workers or choose_workers(jobs), lambda: bar.advance(task))


def _show(console: Console, summary: Summary, settings: dict[str, Any]) -> None:
    from segpipe.evaluation import TABLE_COLUMNS, parts, table_rows

    console.table(
        f"{settings['dataset']}, {settings['split']}: means over cases, 95 % interval over patients",
        TABLE_COLUMNS,
        table_rows(summary),
    )
    names = ["counted", "missing", "failed", "missed", "false_positive", "absent", "undefined_distances"]
    console.table(
        "Cases by label",
        ["label", *(name.replace("_", " ") for name in names)],
        [[name, *(part["counts"].get(column) for column in names)] for name, part in parts(summary)],
    )
    if settings["cases_without_label"]:
        console.say(f"{settings['cases_without_label']} cases of the split have no label: nothing to measure")


def _show_rules(console: Console, choices: list[Choice]) -> None:
    rows = []
    for choice in choices:
        rule = choice.rule
        words = ["largest component"] if rule and rule.keep_largest else []
        words += [f"at least {rule.min_volume_ml} mL"] if rule and rule.min_volume_ml else []
        best = max((gain.mean for gain in choice.gains if gain.mean is not None), default=None)
        gain = None if best is None else f"{best:+.4f}"
        rows.append([choice.name, ", ".join(words) or "none helps", f"{choice.before:.4f}", gain])
    console.table("Clean-up rules", ["label", "rule", "Dice before", "largest mean gain"], rows)


def _show_failures(console: Console, failed: list[CaseResult]) -> None:
    if failed:
        console.note(f"{len(failed)} case(s) failed and count as Dice 0:")
        _list(console, [(result.id, result.failure) for result in failed])


def _show_remarks(console: Console, remarked: list[CaseResult]) -> None:
    if remarked:
        console.note(f"{len(remarked)} case(s) have no calibration error:")
        _list(console, [(result.id, result.remark) for result in remarked])


def _list(console: Console, reasons: list[tuple[str, str | None]]) -> None:
    for id, reason in reasons[:SHOWN_FAILURES]:
        console.note(f"  {id}: {reason}")
    if len(reasons) > SHOWN_FAILURES:
        console.note(f"  and {len(reasons) - SHOWN_FAILURES} more; metrics.json names them all")
