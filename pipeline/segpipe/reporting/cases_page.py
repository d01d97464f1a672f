"""The page of a batch: every case with a picture, its volumes and what is odd about it, and why some have no result."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segpipe.common.result_folder import NOT_ASKED_FOR, OVERLAY
from segpipe.reporting.case_overlay import legend, reduced
from segpipe.reporting.html import Insert, Picture, Section, Table, write_page

MOST_BYTES = 24_000_000  # of all pictures, which take a third more in the page


def write_cases_page(
    path: Path,
    title: str,
    rows: Sequence[tuple[Mapping[str, Any], Path]],
    labels: Mapping[int, str],
    notice: str,
    not_selected: Sequence[tuple[str, str]],
    passed_over: Mapping[str, int],
    insert: Insert | None = None,
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: of the page.
        title: of the page.
        rows: each case as the summary has it, and the file of its picture, where there is one.
        labels: value to name, without background.
        notice: what the results are not for.
        not_selected: id of a series that was left out, and the rule.
        passed_over: files that are no image, by class.
        insert: what stands below the title, such as the viewer.

    Raises:
        UsageError: it cannot be written.
    """
    done = [row for row in rows if row[0]["state"] == "done"]
    unfinished = [case for case, _ in rows if case["state"] != "done"]
    odd = [case for case, _ in done if is_to_look_at(case)]
    figures = [
        (str(len(done)), "with a result"),
        (str(len(unfinished)), "without: failed or refused"),
        (str(len(odd)), "to look at: decision, flags or notes"),
    ]
    held = [case for case, _ in done if case.get("decision") == "hold" and not case.get("released")]
    if any(case.get("decision") for case, _ in done):
        figures.append((str(len(held)), "held: look at them first"))
    sections = [Section("All cases", [notice], figures=figures)]
    if unfinished:
        table = Table(
            ("case", "state", "reason", "detail"),
            [(case["id"], case["state"], case["reason"], case["detail"]) for case in unfinished],
        )
        sections.append(Section("Without a result", tables=[table]))
    if done:
        cases = [case for case, _ in done]
        sections += [*_quality(cases, labels), _volumes(cases, labels), _pictures(done, labels)]
    if not_selected or passed_over:
        sections.append(_left_out(not_selected, passed_over))
    write_page(path, title, sections, "Automatic segmentation; check each one before it is used.", insert)


def is_to_look_at(case: Mapping[str, Any]) -> bool:
    """Return whether something is odd about a finished case, beside what it was not asked for."""
    return any(not words.endswith(NOT_ASKED_FOR) for words in remarks(case))


def remarks(case: Mapping[str, Any]) -> list[str]:
    """Return what is odd about a finished case, in words."""
    flags = case.get("flags") or {}
    words = [f"{_decided(case)}: {'; '.join(case['reasons'])}"] if case.get("decision") in ("look", "hold") else []
    words += ["empty"] if flags.get("empty") else []
    if flags.get("touches_border"):
        words.append(f"touches the border: {', '.join(flags['touches_border'])}")
    if flags.get("far_spacing") == "yes":
        words.append("spacing far from the training data")
    if flags.get("far_intensity") == "yes":
        words.append("intensity far from the training data")
    if flags.get("orientation_unknown"):
        words.append("the image does not say which side is which")
    if case.get("reason"):
        words.append(f"{case['reason']} ({case['detail']})")
    words += case.get("notes", [])
    refused: dict[str, list[str]] = {}
    for name, why in case.get("not_written", {}).items():
        refused.setdefault(why, []).append(name)
    return words + [f"no {', '.join(names)}: {why}" for why, names in refused.items()]


def _decided(case: Mapping[str, Any]) -> str:
    return "held, then released" if case.get("released") else {"look": "look at it", "hold": "held"}[case["decision"]]


def _quality(cases: Sequence[Mapping[str, Any]], labels: Mapping[int, str]) -> list[Section]:
    """Return what was judged of each case; nothing where no case was."""
    judged = [case for case in cases if case.get("quality") and case.get("decision")]
    if not judged:
        return []
    columns = ["case", "decision", "distance", "p", *(f"Dice of {name}" for name in labels.values())]
    columns += [*(f"{name} (mL)" for name in labels.values()), "reasons", "unusual"]
    rows = []
    for case in sorted(judged, key=lambda case: ("hold", "look", "ok").index(case["decision"])):
        quality, volumes = case["quality"], case["volumes_ml"] or {}
        decision = "released" if case.get("released") else case["decision"]
        row = [case["id"], decision, quality["distance"], quality["p_value"]]
        row += [_with_bound(quality["dice"].get(name), quality["dice_low"].get(name)) for name in labels.values()]
        row += [_with_interval(volumes.get(name), quality["volume_ml"].get(name)) for name in labels.values()]
        rows.append([*row, "; ".join(case["reasons"]), "; ".join(quality["findings"])])
    share = f"{100 * judged[0]['quality']['level']:g} %"
    words = [
        "Predicted, not measured: how good a result is expected to be, and how far the case is from those that were "
        "calibrated (1: the 95th percentile of these). No decision is a clinical verification.",
        f"In brackets a lower bound of the Dice and an interval of the true volume; each holds for {share} of cases "
        "like those that were calibrated. None is given where a case is not like them, or is held.",
    ]
    return [Section("Decisions", words, tables=[Table(columns, rows)])]


def _with_bound(dice: float | None, low: float | None) -> str | None:
    return None if dice is None else f"{dice:.2f}" + ("" if low is None else f" ({low:.2f} or more)")


def _with_interval(volume: float | None, ends: Sequence[float] | None) -> str | None:
    return None if volume is None else f"{volume:.4g}" + ("" if ends is None else f" ({ends[0]:.4g} to {ends[1]:.4g})")


def _volumes(cases: Sequence[Mapping[str, Any]], labels: Mapping[int, str]) -> Section:
    columns = ["case", *(f"{name} (mL)" for name in labels.values()), "seconds", "remarks"]
    cells = []
    for case in cases:
        volumes = [(case["volumes_ml"] or {}).get(name) for name in labels.values()]
        cells.append([case["id"], *volumes, case["seconds"], "; ".join(remarks(case))])
    flags = [case["flags"] or {} for case in cases]
    unknown = any("unknown" in (flag.get("far_spacing"), flag.get("far_intensity")) for flag in flags)
    words = ["The bundle does not say what spacing or intensity its training data had."] if unknown else []
    return Section("Volumes", words, tables=[Table(columns, cells)])


def _pictures(rows: Sequence[tuple[Mapping[str, Any], Path]], labels: Mapping[int, str]) -> Section:
    pictures = []
    for case, file in rows:
        with contextlib.suppress(OSError):  # none was asked for
            words = f"slice of {case['id']} with outlines"
            pictures.append(Picture(file.read_bytes(), words, _caption(case), small=True))
    names = Picture(legend(labels), "colours of the labels")
    words = "Of each case the slice with most labelled voxels; seen from the feet or from the front, so that the "
    words += "patient's right is on the left, or from the side, with the front on the left."
    total = sum(len(picture.content) for picture in pictures)
    said = [words]
    if total > MOST_BYTES:  # the browser has to open the page
        factor = math.sqrt(MOST_BYTES / total)
        pictures = [replace(picture, content=reduced(picture.content, factor)) for picture in pictures]
        said.append(f"So many are drawn at {100 * factor:.0f} % of their size; each case has the whole one, {OVERLAY}.")
    return Section("Overlays", said, pictures=[names, *pictures])


def _caption(case: Mapping[str, Any]) -> str:
    words = remarks(case) + _where_to_look(case)
    return case["id"] + (f": {'; '.join(words)}" if words else "")


def _where_to_look(case: Mapping[str, Any]) -> list[str]:
    """Return the slices in which the network doubts most, in words."""
    doubt = case.get("doubtful_slices") or {}
    if not doubt.get("slices"):
        return []
    numbers = ", ".join(str(each["slice"]) for each in doubt["slices"])
    return [f"most doubt in {doubt['plane']} slices {numbers} (of 0 to {doubt['count'] - 1})"]


def _left_out(not_selected: Sequence[tuple[str, str]], passed_over: Mapping[str, int]) -> Section:
    words = [f"Files passed over: {', '.join(f'{n} {kind}' for kind, n in passed_over.items())}."]
    tables = [Table(("series", "left out by"), not_selected)] if not_selected else []
    return Section("Not segmented on purpose", words if passed_over else [], tables=tables)
