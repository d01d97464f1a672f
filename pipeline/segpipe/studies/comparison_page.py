"""What a comparison leaves beside its runs: compare.csv, figures, report.html, and compare.md for a repository.

The main table is the same on the terminal, on the page and in Markdown. None of them names a path.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from segpipe.common.console import counted, some_of
from segpipe.common.files import write_csv, write_text
from segpipe.evaluation import Estimate
from segpipe.reporting import Picture, Section, Table, write_page
from segpipe.studies.comparison_figures import FIGURES, Figure, draw_figures
from segpipe.studies.comparison_results import Row, as_p, best_row, gather, in_words, plain_results
from segpipe.studies.comparison_state import State, Study
from segpipe.studies.variants import Settings, fragment_name, is_path

COLUMNS = (
    "variant",
    "Dice [95 % interval]",
    "difference [95 % interval]",
    "p",
    "steps",
    "s/step",
    "minutes",
    "parameters",
    "memory MB",
)
REFERENCE = "reference"
TENSORBOARD = "tensorboard --logdir OUT/tensorboard"


def write_outcome(study: Study, state: State, gifs: Sequence[str] = ()) -> list[Row]:
    """Gather the finished runs and write table, figures and report; older ones are replaced.

    Args:
        study: what is compared.
        state: of the comparison; it gets the results and is not written.
        gifs: ids of cases to animate; empty for the best variant's worst and median.

    Raises:
        UsageError: the folder cannot be written to.
    """
    rows = gather(study, state)
    state.document["results"] = plain_results(rows, study, state)
    write_csv(study.out / "compare.csv", _case_lines(rows), _case_columns(rows))
    _write_report(study, rows, draw_figures(rows, study, gifs), state.document)
    return rows


def _write_report(study: Study, rows: Sequence[Row], figures: Sequence[Figure], document: Mapping[str, Any]) -> None:
    """Write the page and the Markdown, of figures that are drawn already."""
    lead = _lead(study.settings, document)
    notes = _notes(study.settings, document)
    environment = _environment(document["results"]["environment"])
    command = _repeat_command(study.settings)
    columns, lines = _label_table(rows)
    words = sentences(rows, document["results"]["patients_known"])
    sections = [
        Section("In short", figures=_key_figures(rows, document["results"]), paragraphs=words),
        Section(
            "Table",
            paragraphs=notes,
            tables=[Table(COLUMNS, _dashed(main_table(rows))), Table(columns, _dashed(lines), "Mean Dice by label")],
        ),
        *(Section(figure.title, pictures=[_picture(study, figure)]) for figure in figures),
        Section("Do it again", paragraphs=environment, commands=[command, TENSORBOARD]),
    ]
    title = f"Comparison on {document['settings']['dataset']}"
    write_page(study.out / "report.html", title, sections, lead)
    parts = [
        f"# {title}",
        lead,
        _as_markdown(COLUMNS, main_table(rows)),
        "\n".join(f"- {text}" for text in words),
        "\n\n".join(notes),
        _as_markdown(columns, lines),
        *(f"## {figure.title}\n\n![{figure.alt}]({FIGURES}/{figure.file})\n\n{figure.caption}" for figure in figures),
        "## Do it again",
        f"    {command}\n    {TENSORBOARD}",
        "\n\n".join(environment),
    ]
    write_text(study.out / "compare.md", "\n\n".join(part for part in parts if part) + "\n")


def _repeat_command(settings: Settings) -> str:
    """Return the command, MANIFEST, DATA and OUT standing for the user's own places; files by their name alone."""
    words = ["segpipe", "compare", "MANIFEST", "--data", "DATA", "--task", _shown(settings.task)]
    words += ["--network", ",".join(map(_shown, settings.networks)), "--loss", ",".join(map(_shown, settings.losses))]
    words += ["--one-at-a-time"] if settings.one_at_a_time else []
    budget = ("--steps", settings.steps) if settings.steps is not None else ("--minutes", settings.minutes)
    pairs = [
        budget,
        ("--folds", ",".join(map(str, settings.folds))),
        ("--seeds", ",".join(map(str, settings.seeds))),
        ("--split", settings.split),
        ("--augment", _shown(settings.augment)),
        ("--runtime", _shown(settings.runtime)),
        ("--threads", settings.threads),
        ("--workers", settings.workers),
    ]
    words += [word for option, value in pairs if value is not None for word in (option, f"{value}")]
    words += [word for override in settings.overrides for word in ("--set", override)]
    return shlex.join([*words, "--out", "OUT"])


def _shown(fragment: str) -> str:
    return f"{fragment_name(fragment)}.yaml" if is_path(fragment) else fragment


def _dashed(lines: Sequence[Sequence[str | None]]) -> list[list[str]]:
    """Return all cells as text, so that a column stands under its name also where some have no number."""
    return [["–" if cell is None else cell for cell in line] for line in lines]


def _key_figures(rows: Sequence[Row], results: Mapping[str, Any]) -> list[tuple[str, str]]:
    best = best_row(rows)
    if best is None:
        return [("–", "no run was finished")]
    finished = sum(row.facts["runs"]["finished"] for row in rows)
    return [
        (f"{best.estimate.mean:.3f}", f"highest mean Dice: {best.name}"),
        (f"{rows[0].estimate.mean:.3f}" if rows[0].dice else "–", f"the reference: {rows[0].name}"),
        (str(results["cases"]), f"cases of {_patients(results)}"),
        (str(finished), "runs"),
    ]


def _lead(settings: Settings, document: Mapping[str, Any]) -> str:
    results = document["results"]
    if settings.steps is not None:
        budget = f"{settings.steps} optimiser steps, as whole epochs"
    else:
        budget = f"{settings.minutes:g} minutes, as the epochs that were timed to fit"
    cases = "the test cases" if settings.split == "test" else "the validation cases of the folds"
    return (
        f"{len(results['rows'])} variants under the same data, folds ({_listed(settings.folds)}), seeds "
        f"({_listed(settings.seeds)}) and budget ({budget} for each run), measured on {cases}: {results['cases']} of "
        f"{_patients(results)}."
    )


def _patients(results: Mapping[str, Any]) -> str:
    return f"{results['patients']} patients" if results["patients_known"] else "unknown patients, each counted as one"


def _notes(settings: Settings, document: Mapping[str, Any]) -> list[str]:
    notes = [
        "Dice is the mean over cases of the mean over labels (a case's folds and seeds are averaged first), with "
        "its 95 % bootstrap interval over patients. Difference and p are against the first row, paired by patient: "
        "Wilcoxon signed-rank test, two-sided, corrected after Holm. Memory is the largest resident memory of the "
        "training process; seconds per step leave validation out, minutes are of the whole training."
    ]
    if settings.split == "validation":
        notes.append(
            "Each run's best epoch was chosen on the same validation cases, so all figures are a little too good."
        )
    if len(settings.seeds) == 1:
        notes.append(
            "Every variant was trained with one seed: the interval tells how patients differ, not how a second "
            "training would. A small difference may turn round with another seed."
        )
    padded = [f"{name}: {note}" for name, variant in document["variants"].items() for note in variant["notes"]]
    failures = [f"Failed: {failure['run']}: {failure['reason']}." for failure in document["results"]["failures"]]
    return notes + [f"{text}." for text in padded] + failures


def _environment(environment: Mapping[str, Any] | None) -> list[str]:
    if not environment:
        return []
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    hardware = environment["hardware"]
    machine = f"{hardware['processor']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB"
    gpus = f", {', '.join(hardware['gpus'])}" if hardware["gpus"] else ""
    return [
        f"Versions: {versions}. Revision: {environment['git_revision'] or 'unknown'}.",
        f"Machine: {machine}{gpus}.",
    ]


def _picture(study: Study, figure: Figure) -> Picture:
    return Picture((study.out / FIGURES / figure.file).read_bytes(), figure.alt, figure.caption)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def main_table(rows: Sequence[Row]) -> list[list[str | None]]:
    """Return a line for each variant in the order of `COLUMNS`; None where there is nothing to say."""
    return [_line(row, first=row is rows[0]) for row in rows]


def _label_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str | None]]]:
    """Return column names and lines of the mean Dice by label."""
    names = _labels(rows)
    lines: list[list[str | None]] = [[row.name, *(_number(row.labels.get(name)) for name in names)] for row in rows]
    return ["variant", *names], lines


def sentences(rows: Sequence[Row], patients_known: bool) -> list[str]:
    """Say what each variant's figures mean beside the reference's, and which cases failed or have none."""
    compared = [(row, row.comparison) for row in rows if row.comparison is not None]
    tests = sum(comparison.p is not None for _, comparison in compared)
    words = [in_words(row.name, rows[0].name, comparison, tests, patients_known) for row, comparison in compared]
    for row in rows:
        words += [f"{row.name}: {_missing(row)}."] if _missing(row) else []
        if row.failed:
            words.append(f"{row.name}: {counted(len(row.failed), 'case')} failed ({some_of(row.failed)}), Dice 0.")
        if row.without_dice:
            words.append(
                f"{row.name}: {counted(len(row.without_dice), 'case')} in no mean ({some_of(row.without_dice)}): "
                "no label is there, and none was found."
            )
    return words


def _case_columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns of `_case_lines`."""
    return ["variant", "network", "loss", "fold", "seed", "case", "dice", *_labels(rows), "failed"]


def _case_lines(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    """Yield a line for each run and case: Dice as the mean over labels, and of each label."""
    for row in rows:
        for run in row.runs:
            for case, dice in run.dice.items():
                yield {
                    "variant": row.name,
                    "network": row.facts["network"],
                    "loss": row.facts["loss"],
                    "fold": run.cell.fold,
                    "seed": run.cell.seed,
                    "case": case,
                    "dice": dice,
                    **{label: scores.get(case) for label, scores in run.by_label.items()},
                    "failed": int(case in run.failed),
                }


def _labels(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.labels))


def _as_markdown(columns: Sequence[str], lines: Iterable[Sequence[str | None]]) -> str:
    """Return a table in Markdown; numbers to the right."""
    head = [f"| {' | '.join(columns)} |", "|" + "|".join(["---", *["---:"] * (len(columns) - 1)]) + "|"]
    body = [f"| {' | '.join('–' if cell is None else cell for cell in line)} |" for line in lines]
    return "\n".join([*head, *body])


def _line(row: Row, first: bool) -> list[str | None]:
    facts, comparison = row.facts, row.comparison
    difference = None if comparison is None else _estimate(comparison.difference, "+", 4)
    return [
        row.name + (f" ({_missing(row)})" if _missing(row) else ""),
        _estimate(row.estimate, "", 3),
        REFERENCE if first else difference,
        None if comparison is None or comparison.p_holm is None else as_p(comparison.p_holm),
        ", ".join(map(str, facts["steps"])) or None,
        _number(facts["seconds_per_step"], 3),
        _number(facts["minutes"], 1),
        f"{facts['parameters']:,}",
        _number(facts["peak_memory_mb"], 0),
    ]


def _missing(row: Row) -> str:
    runs = row.facts["runs"]
    return "" if runs["finished"] == runs["planned"] else f"{runs['finished']} of {runs['planned']} runs"


def _estimate(estimate: Estimate, sign: str, digits: int) -> str | None:
    mean, low, high = (_number(value, digits, sign) for value in (estimate.mean, estimate.low, estimate.high))
    return mean if mean is None or low is None else f"{mean} [{low}, {high}]"


def _number(value: float | None, digits: int = 3, sign: str = "") -> str | None:
    return None if value is None else f"{value:{sign}.{digits}f}"
