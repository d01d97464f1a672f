"""What a bundle says of the one that its training began with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any

from segpipe.bundle.lineage import seen_before
from segpipe.common.console import some_of

NAMED = ("name", "version", "sha256")


def parents_together(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``parent`` of an ensemble's record: the first member's, with what those of all of them saw.

    Args:
        records: ``run.json`` of each member.
    """
    parents = [record["parent"] for record in records if "parent" in record]
    if not parents:
        return {}
    overlap = {
        "is_known": all(each["overlap"]["is_known"] for each in parents),
        "cases": {case_id: how for each in parents for case_id, how in each["overlap"]["cases"].items()},
    }
    seen = reduce(or_, map(seen_before, parents)).document()
    return {"parent": {**parents[0], "overlap": overlap, "seen": seen}}


def parent_metadata(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``training`` of ``metadata.json`` says of the parent; nothing where there is none."""
    parent = record.get("parent")
    if parent is None:
        return {}
    ancestors, before = [], parent["parent"]
    while before is not None:
        ancestors.append({name: before[name] for name in NAMED})
        before = before["parent"]
    facts = {name: parent[name] for name in (*NAMED, "freeze", "other_preprocessing")}
    seen = {"seen": sorted(parent["overlap"]["cases"]), "seen_is_known": parent["overlap"]["is_known"]}
    return {"parent": {**facts, **seen, "ancestors": ancestors}}


def parent_in_words(metadata: Mapping[str, Any]) -> str | None:
    """Return for the card which bundle the training began with; None where it began by chance."""
    parent = (metadata.get("training") or {}).get("parent")
    if parent is None:
        return None
    line = [f"{each['name']} {each['version']} ({each['sha256'][:12]})" for each in (parent, *parent["ancestors"])]
    words = [", which began with ".join(line)]
    words += [f"its {parent['freeze']} was kept as it was"] if parent["freeze"] else []
    words += [f"images are prepared in another way than its own: {each}" for each in parent["other_preprocessing"]]
    return "; ".join(words)


def seen_paragraphs(metadata: Mapping[str, Any]) -> list[str]:
    """Return for the card how far figures may be of cases that the parent saw; nothing where none can be."""
    parent = (metadata.get("training") or {}).get("parent") or {}
    if seen := parent.get("seen"):
        return [
            "**The bundle that the training began with had seen cases of validation and test, whose figures are too "
            f"good: {some_of(seen)}.**"
        ]
    if parent.get("seen_is_known") is False:
        return [
            "The training began with a bundle that does not say of all its cases which images they were: figures of "
            "cases that are among these are too good."
        ]
    return []


def initial_weights_in_words(metadata: Mapping[str, Any]) -> list[str]:
    """Return for the card what is needed to train again beside the data; nothing where that is nothing."""
    parent = (metadata.get("training") or {}).get("parent")
    if parent is None:
        return []
    return [
        f"`PARENT` is the bundle {parent['name']} {parent['version']}, with whose weights the training began. "
        "`segpipe reproduce` makes the weights of its first step from them, as `initial.pt` in its run folder: "
        "`INITIAL` for MONAI alone."
    ]
