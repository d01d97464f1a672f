"""The report: a page that stands alone, and the same in Markdown for a repository."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.compare.cells import Place
from pipeline.compare.pictures import FIGURES, Figure
from pipeline.compare.results import Row, best_row
from pipeline.compare.tables import COLUMNS, as_markdown, label_table, main_table, sentences
from pipeline.compare.variants import Settings, fragment_name, is_path
from pipeline.files import write_text
from pipeline.report.html import Picture, Section, Table, write_page

PAGE, MARKDOWN = "report.html", "compare.md"


def write_report(
    place: Place,
    rows: Sequence[Row],
    figures: Sequence[Figure],
    settings: Settings,
    document: Mapping[str, Any],
) -> None:
    """Write report.html and compare.md; neither names a path.

    Args:
        place: where.
        rows: the table.
        figures: drawn already.
        settings: for the command.
        document: compare.json with its results.
    """
    lead = _lead(settings, document)
    notes = _notes(settings, document)
    about = _environment(document["results"]["environment"])
    command = repeat_command(settings)
    columns, lines = label_table(rows)
    sections = [
        Section("In short", figures=_key_figures(rows, document["results"]), paragraphs=sentences(rows)),
        Section(
            "Table",
            paragraphs=notes,
            tables=[Table(COLUMNS, _dashed(main_table(rows))), Table(columns, _dashed(lines), "Mean Dice by label")],
        ),
        *(
            Section(each.title, pictures=[_picture(place, each)])
            for each in figures
        ),
        Section("Do it again", paragraphs=about, commands=[command, TENSORBOARD]),
    ]  # fmt: skip
    title = f"Comparison on {document['settings']['dataset']}"
    write_page(place.out / PAGE, title, sections, lead)
    parts = [
        f"# {title}",
        lead,
        as_markdown(COLUMNS, main_table(rows)),
        "\n".join(f"- {text}" for text in sentences(rows)),
        "\n\n".join(notes),
        as_markdown(columns, lines),
        *(f"## {each.title}\n\n![{each.alt}]({FIGURES}/{each.file})\n\n{each.caption}" for each in figures),
        "## Do it again",
        f"    {command}\n    {TENSORBOARD}",
        "\n\n".join(about),
    ]
    write_text(place.out / MARKDOWN, "\n\n".join(part for part in parts if part) + "\n")


TENSORBOARD = "tensorboard --logdir OUT/tensorboard"


def repeat_command(settings: Settings) -> str:
    """The command, MANIFEST, DATA and OUT standing for the user's own places; files by their name alone."""
    words = ["segpipe", "compare", "MANIFEST", "--data", "DATA", "--task", _shown(settings.task)]
    words += [
        "--network",
        ",".join(map(_shown, settings.networks)),
        "--loss",
        ",".join(map(_shown, settings.losses)),
    ]
    words += ["--one-at-a-time"] if settings.one_at_a_time else []
    budget = ("--steps", settings.steps) if settings.steps is not None else ("--minutes", settings.minutes)
    pairs = [
        budget, ("--folds", ",".join(map(str, settings.folds))), ("--seeds", ",".join(map(str, settings.seeds))),
        ("--split", settings.split), ("--augment", _shown(settings.augment)), ("--runtime", _shown(settings.runtime)),
        ("--threads", settings.threads), ("--workers", settings.workers),
    ]  # fmt: skip
    words += [word for option, value in pairs if value is not None for word in (option, f"{value}")]
    words += [word for override in settings.overrides for word in ("--set", override)]
    return shlex.join([*words, "--out", "OUT"])


def _shown(fragment: str) -> str:
    return f"{fragment_name(fragment)}.yaml" if is_path(fragment) else fragment


def _dashed(lines: Sequence[Sequence[str | None]]) -> list[list[str]]:
    """All cells as text, so that a column stands under its name also where some have no number."""
    return [["–" if cell is None else cell for cell in line] for line in lines]


def _key_figures(rows: Sequence[Row], results: Mapping[str, Any]) -> list[tuple[str, str]]:
    best = best_row(list(rows))
    if best is None:
        return [("–", "no run was finished")]
    finished = sum(row.facts["runs"]["finished"] for row in rows)
    return [
        (f"{best.estimate.mean:.3f}", f"highest mean Dice: {best.name}"),
        (f"{rows[0].estimate.mean:.3f}" if rows[0].dice else "–", f"the reference: {rows[0].name}"),
        (str(results["cases"]), f"cases of {results['patients']} patients"),
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
        f"{results['patients']} patients."
    )


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
    padded = [f"{name}: {note}" for name, about in document["variants"].items() for note in about["notes"]]
    failures = [f"Failed: {each['run']}: {each['reason']}." for each in document["results"]["failures"]]
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


def _picture(place: Place, figure: Figure) -> Picture:
    return Picture((place.out / FIGURES / figure.file).read_bytes(), figure.alt, figure.caption)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
