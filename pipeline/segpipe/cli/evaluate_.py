"""segpipe evaluate: predictions against the truth, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segpipe.cli.shared_options import Allow, AllowFile, AsJson, DataFolder, RunUnvetted, allowed_names
from segpipe.common.console import Console, some_of
from segpipe.errors import OK, SOME_FAILED

if TYPE_CHECKING:
    from segpipe.evaluation import Choice, Evaluation
    from segpipe.studies import Other


SHOWN_FAILURES = 10


def command(
    manifest: Annotated[Path, typer.Argument(help="The dataset manifest, which names the true label maps.")],
    predictions: Annotated[
        Path, typer.Argument(help="Folder that `segpipe predict` wrote, or of <case id>.nii.gz label maps.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for metrics.csv, metrics.json, report.html and figures.")],
    split: Annotated[str, typer.Option(help="Which cases: test, validation, training, out_of_fold or all.")] = "test",
    fold: Annotated[int | None, typer.Option(help="The fold, for validation and training.")] = None,
    data: DataFolder = None,
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
    reason: Annotated[
        str | None, typer.Option(help="What the test set is read for, in a line, for its ledger.", metavar="TEXT")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Folder of another evaluation of these cases: the paired difference to it.")
    ] = None,
    allow: Allow = None,
    allow_file: AllowFile = None,
    run_unvetted_code: RunUnvetted = False,
    json: AsJson = False,
) -> int:
    """Measure predictions against the truth, per case and label.

    Dice, IoU, precision, recall, specificity; Hausdorff distance (HD), its 95th percentile (HD95), average
    surface distance (ASSD) and surface Dice (NSD) in mm; F1 and Dice by lesion; volumes in mL; calibration error
    (ECE) where `segpipe predict --probabilities` kept them. Means have a 95 % bootstrap interval over patients,
    or over cases where patients are unknown, which the output says. A
    missing or unusable prediction counts as Dice 0, and the exit code is then 4. The table shows the main
    measures; metrics.csv and metrics.json hold all, with every definition.

    report.html shows it all on one page: Dice by case with mean (red) and median (green), and the worst cases with
    the outlines of the prediction (red) and the truth (green); --gif animates cases, --run adds learning curves.

    Each model that is measured on test cases is counted in a ledger beside the manifest, once, with --reason. Cases
    that the model was trained on are not called test cases: that is refused with exit code 5.

    --against OTHER says how much better these predictions are than those that OTHER measured: mean difference of Dice,
    paired by patient, with its interval.

    A manifest that lies in a bundle is used when that bundle passes the checks of `segpipe bundle verify`.

    Example: segpipe evaluate data/manifest.json predictions --out metrics --split test
    """
    console = Console("evaluate", as_json=json)
    from segpipe.bundle import TrustPolicy, require_vetted_sources
    from segpipe.evaluation import evaluate

    require_vetted_sources((manifest, run), TrustPolicy(allowed_names(allow, allow_file), run_unvetted_code))
    other = None if against is None else _other(against, manifest, split, fold, out)
    with console.progress() as bar:
        task = bar.add_task("measuring", total=None)
        evaluation = evaluate(
            manifest,
            predictions,
            out=out,
            split=split,
            fold=fold,
            data=data,
            tolerance_mm=tolerance_mm,
            workers=workers,
            bootstrap=bootstrap,
            seed=seed,
            try_postprocessing=try_postprocessing,
            figures=figures,
            worst=worst,
            gifs=gif or [],
            run=run,
            reason=reason,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    paired = None if other is None else other.paired_with(evaluation)
    _show_measures(console, evaluation)
    if paired is not None:
        console.say(paired.words(out))
    _show_model(console, evaluation)
    _show_readings(console, evaluation)
    if seen := evaluation.settings.get("seen_in_training"):
        console.note(
            f"figures are too good: the model, or the bundle that its training began with, was trained on "
            f"{len(seen)} of {len(evaluation.cases)} cases: {some_of(seen)}"
        )
    if evaluation.figures is not None:
        console.say(f"report.html shows it on one page, with {', '.join(evaluation.figures.files)}")
        for note in evaluation.figures.notes:
            console.say(f"  {note}")
    if evaluation.rules is not None:
        _show_rules(console, evaluation.rules)
    console.document(**evaluation.document(), **({} if paired is None else {"against": paired.document()}))
    failed = [(case.id, case.failure) for case in evaluation.failed]
    _list(console, f"{len(failed)} case(s) failed and count as Dice 0:", failed)
    remarks = [(case.id, case.remark) for case in evaluation.cases if case.remark is not None]
    _list(console, f"{len(remarks)} case(s) have no calibration error:", remarks)
    if evaluation.unused:
        names = some_of(evaluation.unused)
        console.note(f"{len(evaluation.unused)} files there belong to no case of this split: {names}")
    return SOME_FAILED if failed else OK


def _other(against: Path, manifest: Path, split: str, fold: int | None, out: Path) -> Other:
    from segpipe.studies import other_evaluation

    return other_evaluation(against, manifest, split, fold, out)


def _show_measures(console: Console, evaluation: Evaluation) -> None:
    from segpipe.data import PATIENTS_UNKNOWN
    from segpipe.evaluation import TABLE_COLUMNS

    settings, summary = evaluation.settings, evaluation.summary
    over = f"{settings['bootstrap']['unit']}s"
    title = f"{settings['dataset']}, {settings['split']}: means over cases, 95 % interval over {over}"
    console.table(title, TABLE_COLUMNS, summary.rows())
    names = ["counted", "missing", "failed", "missed", "false_positive", "absent", "undefined_distances"]
    if any(part["counts"].get("not_annotated") for _, part in summary.parts()):
        names.append("not_annotated")
    console.table(
        "Cases by label",
        ["label", *(name.replace("_", " ") for name in names)],
        [[label, *(part["counts"].get(name) for name in names)] for label, part in summary.parts()],
    )
    if over == "cases":
        console.say(f"{PATIENTS_UNKNOWN}, and intervals too narrow")
    if settings["cases_without_label"]:
        console.say(f"{settings['cases_without_label']} cases of the split have no label: nothing to measure")


def _show_model(console: Console, evaluation: Evaluation) -> None:
    made_by, untied = evaluation.predictions["made_by"], evaluation.predictions["untied"]
    if made_by is not None:
        bundle = made_by["bundle"]
        console.say(f"All label maps are as {bundle['name']} {bundle['version']} made them ({bundle['sha256'][:12]})")
    elif untied:
        case_id, reason = next(iter(untied.items()))
        console.say(
            f"Which model made {len(untied)} of the label maps is not known ({case_id}: {reason}): "
            "`segpipe export --evaluation` does not take these figures"
        )


def _show_readings(console: Console, evaluation: Evaluation) -> None:
    readings = evaluation.readings
    if readings is None:
        return
    if readings.count is not None:
        models = "1 model has" if readings.count == 1 else f"{readings.count} models have"
        console.say(f"{models} been measured on this test set so far, this one among them")
    if readings.note:
        console.note(f"this reading of the test set is not in its ledger: {readings.note}")


def _show_rules(console: Console, choices: Sequence[Choice]) -> None:
    rows = []
    for choice in choices:
        rule = choice.rule
        words = ["largest component"] if rule and rule.keep_largest else []
        words += [f"at least {rule.min_volume_ml} mL"] if rule and rule.min_volume_ml else []
        best = max((gain.mean for gain in choice.gains if gain.mean is not None), default=None)
        gain = None if best is None else f"{best:+.4f}"
        rows.append([choice.name, ", ".join(words) or "none helps", f"{choice.before:.4f}", gain])
    console.table("Clean-up rules", ["label", "rule", "Dice before", "largest mean gain"], rows)


def _list(console: Console, heading: str, reasons: Sequence[tuple[str, str | None]]) -> None:
    if reasons:
        console.note(heading)
    for id, reason in reasons[:SHOWN_FAILURES]:
        console.note(f"  {id}: {reason}")
    if len(reasons) > SHOWN_FAILURES:
        console.note(f"  and {len(reasons) - SHOWN_FAILURES} more; metrics.json names them all")
