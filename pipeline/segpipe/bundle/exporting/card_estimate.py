"""What a card says of a model that has no figure of its own: an ensemble of all folds, or a model of all cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segpipe.bundle.exporting.markdown import figure, number, table
from segpipe.data import PATIENTS_UNKNOWN

Document = Mapping[str, Any]
RULE = "post-processing of "


def estimate_in_short(metadata: Document) -> str | None:
    """Return the corrected figure of the fold models, in a few words that say whose it is; None where there is none."""
    estimate = metadata.get("estimate")
    if not estimate:
        return None
    what = f"{estimate['measure']} {figure(estimate['corrected'])}"
    return f"not itself; its fold models have {what} on the cases that they left out"


def estimate_paragraphs(metadata: Document) -> list[str]:
    """Return whose figures there are, the figures raw and corrected, and what was chosen by them.

    Empty for a model that left cases out itself: it has figures of its own.
    """
    estimate, members = metadata.get("estimate"), metadata.get("members") or []
    data = metadata["training_data"]
    whole = data["training_cases"] and not data["validation_cases"]
    if not estimate:
        if not (members or whole):
            return []
        seen = f"all its {data['training_cases']} cases were trained on" if whole else "its members saw all cases"
        return [f"No validation figure of this model: {seen}."]
    unknown = estimate["note"] == PATIENTS_UNKNOWN
    patients = "unknown patients" if unknown else f"{estimate['patients']} patients"
    left_out = f"{estimate['cases']} cases of {patients}, each by the model that did not see it"
    models = f"{estimate['folds']} models of the same training, each without one fold"
    length = ", and of another length" if estimate["other_length"] else ""
    if members:
        head = (
            f"No validation figure of this ensemble: together its members saw every case. The figures below are of the "
            f"fold models, its members, not of this ensemble: {left_out}."
        )
    else:
        head = (
            f"No validation figure of this model: it was trained on all {data['training_cases']} cases. It is "
            f"estimated by {models}{length}; the figures below are theirs, not this model's: {left_out}."
        )
    rows = [
        ("as measured", figure(estimate["raw"])),
        (_corrected(estimate["candidates"]), figure(estimate["corrected"])),
    ]
    means = f"In brackets the 95% bootstrap interval over {'cases' if unknown else 'patients'}."
    parts = [head, table([f"{estimate['measure']} of the fold models", "mean"], rows), f"{means}{_method(estimate)}"]
    return [
        *parts,
        *_chosen(estimate),
        *_rules(metadata, estimate),
        *([f"**{_sentence(estimate['note'])}**"] if estimate["note"] else []),
    ]


def _corrected(candidates: int) -> str:
    return (
        "corrected (nothing was chosen)"
        if candidates == 1
        else f"corrected for the choice among {candidates} trainings"
    )


def _method(estimate: Document) -> str:
    return "" if estimate["candidates"] == 1 else f" Correction: {estimate['method'].rstrip('.')}."


def _chosen(estimate: Document) -> list[str]:
    """Write all that was chosen by these figures but rules for labels."""
    chosen = [_words(each) for each in estimate["selected"] if not each["what"].startswith(RULE)]
    return [f"Chosen by them: {'; '.join(chosen)}."] if chosen else []


def _rules(metadata: Document, estimate: Document) -> list[str]:
    """Write which rules for labels were tried on these cases, and whether this bundle applies any."""
    tried = [_words(each) for each in estimate["selected"] if each["what"].startswith(RULE)]
    if not tried:
        return []
    if not metadata["postprocessing"]:
        return [f"Tried on them, and not applied here: {'; '.join(tried)}."]
    with_rules = {name: number(value, 3) or "-" for name, value in estimate["with_postprocessing"].items()}
    return [
        f"Chosen by them: {'; '.join(tried)}. The figures above are without any rule; with the chosen ones "
        f"they are {with_rules['raw']} as measured, and {with_rules['corrected']} corrected for the choice of rules."
    ]


def _words(choice: Document) -> str:
    return f"{choice['what']}: {choice['chosen']}, of {choice['candidates']}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
