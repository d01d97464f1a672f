"""The page of `segpipe tune`: what was tried, which was best, and whether its gain holds on folds drawn anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segpipe.common.console import of_patients, quoted
from segpipe.data import PATIENTS_UNKNOWN
from segpipe.reporting import Section, Table, write_page
from segpipe.studies.comparison_results import FEWEST_PATIENTS
from segpipe.studies.pairing import Pairs
from segpipe.studies.trials import title_of
from segpipe.training import duration

Document = Mapping[str, Any]
WHY_TWO = (
    "The best of many trials looks better than it is on the cases that it was chosen on. So the best and the default "
    "are trained again, with another seed, on folds drawn anew by patient; the best is recommended only where the "
    "interval of this second gain lies above 0. Its settings were chosen on some of these cases, which "
    "the new models did not see."
)


def write_tuning_page(path: Path, document: Document) -> None:
    """Write OUT/tune.html.

    Args:
        path: of the page.
        document: content of ``tune.json``.
    """
    settings = document["settings"]
    lead = (
        f"{settings['dataset']}: {len(document['trials'])} trials, measured on fold {settings['fold']}; "
        f"{duration(document['seconds'])} so far."
    )
    write_page(path, "segpipe tune", [_in_short(document), _gains(document), _trials(document), _space(document)], lead)


def verdict(document: Document) -> str:
    """Say in one line what follows from the search."""
    best = document["best"]
    if best is None:
        return "The search is not finished."
    if best["candidate"] == "default":
        return "The default is the best of what was tried."
    if document["confirmation"] is None:
        why = document["not_confirmed"]
        return f"{best['candidate']} is the best on the fold of the search; not confirmed: {why}."
    if document["recommended"]:
        return f"{best['candidate']} is recommended: its gain holds on folds drawn anew."
    patients = document["confirmation"]["gain"]["patients"]
    if patients < FEWEST_PATIENTS:
        few = f"{of_patients(patients, _knows_patients(document))} cannot show it, {FEWEST_PATIENTS} or more are needed"
        return f"{best['candidate']} is not recommended: {few}. Take the default."
    return f"{best['candidate']} is not recommended: on folds drawn anew its gain may be chance. Take the default."


def _knows_patients(document: Document) -> bool:
    return PATIENTS_UNKNOWN not in document["notes"]


def gain_in_words(document: Document, gain: Document) -> str:
    """Return a paired difference with its interval, and which cases it lacks or has as failed on one side.

    Args:
        document: content of ``tune.json``.
        gain: of its gains.
    """
    mean, low, high = (gain["difference"][name] for name in ("mean", "low", "high"))
    if mean is None:
        return "unknown"
    known = _knows_patients(document)
    interval = (
        f"no interval: too few {'patients' if known else 'cases'}"
        if low is None
        else f"95 % interval {low:+.4f} to {high:+.4f}"
    )
    told = f"{mean:+.4f} Dice ({interval}; {of_patients(gain['patients'], known)})"
    if "left_out_cases" not in gain:  # of an earlier version
        return told
    alone = gain["failed_alone"]
    pairs = Pairs({}, {}, gain["left_out_cases"], tuple(alone["reference"]), tuple(alone["this"]))
    words = pairs.words("the best", "the default")
    return f"{told}. {words}" if words else told


def _in_short(document: Document) -> Section:
    notes = [f"{note}." for note in document["notes"]]
    stopped = [f"{document['stopped']}."] if document["stopped"] else []
    best = document["best"]
    commands = []
    if best is not None:
        commands = [advised_command(document)]
    return Section("In short", paragraphs=[verdict(document), *stopped, *notes], commands=commands)


def advised(document: Document) -> str:
    """Return the name of the candidate to take: the best where it is recommended, else the default."""
    return str(document["best"]["candidate"]) if document["recommended"] else title_of(0)


def advised_command(document: Document) -> str:
    """Return the command that trains the advised candidate on every fold; words in capitals are the reader's."""
    settings = document["settings"]
    taken = document["best"] if document["recommended"] else settings["default"]
    words = ["segpipe train MANIFEST --task", settings["task"], "--runtime", settings["runtime"]]
    words += [f"--{kind} {Path(taken[kind]).name}" for kind in ("network", "loss", "augment")]
    words += [f"--epochs {settings['epochs']}"] if settings["epochs"] is not None else []
    words += [f"--set {quoted(each)}" for each in (*settings["overrides"], *taken.get("overrides", ()))]
    return " ".join([*words, "--folds all --out RUN"])


def _gains(document: Document) -> Section:
    rows = []
    if document["gain_on_the_search_fold"]:
        rows.append(
            [
                "the fold of the search, which it was chosen on",
                gain_in_words(document, document["gain_on_the_search_fold"]),
            ]
        )
    confirmation = document["confirmation"]
    if confirmation:
        what = f"folds drawn anew ({confirmation['folds']} of {confirmation['of']}), seed {confirmation['seed']}"
        rows.append([what, gain_in_words(document, confirmation["gain"])])
    paragraphs = [WHY_TWO]
    if document["not_confirmed"]:
        paragraphs.append(f"Not confirmed: {document['not_confirmed']}.")
    over = "patients" if _knows_patients(document) else "cases"
    columns = ["measured on", f"gain, paired by case, interval over {over}"]
    return Section("Best against default", paragraphs, tables=[Table(columns, rows)] if rows else [])


def _trials(document: Document) -> Section:
    ranked = sorted(document["trials"], key=lambda trial: -(trial["dice"] or -1.0))
    rows = [
        [
            trial["name"],
            trial["dice"],
            trial["state"],
            trial["epochs"],
            None if trial["seconds"] is None else duration(trial["seconds"]),
            ", ".join(f"{name.replace('#', ' ')} {value}" for name, value in trial["point"].items()),
            trial["failure"] or "",
        ]
        for trial in ranked
    ]
    columns = ["trial", "mean Dice out of fold", "state", "epochs", "time", "settings", "failure"]
    paragraphs = [
        "Every trial has the same number of epochs; wider networks take longer for them. A pruned one was "
        "given up, since its validation lay below the median of the others."
    ]
    return Section("What was tried", paragraphs=paragraphs, tables=[Table(columns, rows)])


def _space(document: Document) -> Section:
    rows = [[name, str(value)] for name, value in document["settings"]["space"].items()]
    default = ", ".join(f"{name} {value}" for name, value in document["settings"]["default"].items())
    return Section("What was searched", paragraphs=[f"The default: {default}."], tables=[Table(["what", "in"], rows)])
