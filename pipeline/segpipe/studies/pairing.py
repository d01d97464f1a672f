"""Which cases of two sides are held against each other, and as what: one rule for all that is compared.

A case is paired where both sides measured it and one of them has a Dice. Beside a Dice, none is right: nothing is there
and nothing was found, which counts as 1. A failed case counts as 0 as everywhere; where it failed on one side alone
that is said, since then a prediction that is not there is compared, and not what the networks find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from segpipe.common.console import counted, some_of

NOTHING_THERE = "no Dice on either side, since nothing is there and nothing was found"
NOT_MEASURED = "measured on one side alone"


@dataclass(frozen=True)
class Side:
    """One of two that are compared.

    Attributes:
        runs: of each its Dice by case id; None where the case has none.
        failed: ids of the cases without a usable prediction.
    """

    runs: Sequence[Mapping[str, float | None]]
    failed: frozenset[str] = frozenset()


def side_of(cases: Sequence[Mapping[str, Any]]) -> Side:
    """Return the side of one training, from the cases as ``metrics.json`` and ``out_of_fold.json`` have them.

    Raises:
        KeyError: they are of another form.
    """
    dice = {str(case["id"]): case["mean_dice"] for case in cases}
    return Side([dice], frozenset(str(case["id"]) for case in cases if case["failure"] is not None))


@dataclass(frozen=True)
class Pairs:
    """The cases of two sides.

    Attributes:
        reference, other: Dice by case id, the mean over the runs that measured it; both have the same cases.
        left_out: case id to why it is in neither.
        failed_in_reference, failed_in_other: cases in both that failed on this side alone, and count as 0 there.
    """

    reference: Mapping[str, float]
    other: Mapping[str, float]
    left_out: Mapping[str, str]
    failed_in_reference: tuple[str, ...] = ()
    failed_in_other: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return what documents say of the pairs."""
        return {
            "cases": len(self.other),
            "left_out": len(self.left_out),
            "left_out_cases": dict(self.left_out),
            "failed_alone": {"reference": list(self.failed_in_reference), "this": list(self.failed_in_other)},
        }

    def words(self, name: str, reference: str) -> str:
        """Return sentences on the cases that are not compared, or not fairly; empty where there are none."""
        said = []
        for why in dict.fromkeys(self.left_out.values()):
            cases = [case for case, reason in self.left_out.items() if reason == why]
            said.append(f"{counted(len(cases), 'case')} left out ({some_of(cases)}): {why}.")
        for side, failed in ((name, self.failed_in_other), (reference, self.failed_in_reference)):
            if failed:
                count = "counts" if len(failed) == 1 else "count"
                said.append(
                    f"No fair comparison: {counted(len(failed), 'case')} of {side} alone failed ({some_of(failed)}) "
                    f"and {count} as Dice 0."
                )
        return " ".join(said)


def pair(reference: Side, other: Side) -> Pairs:
    """Return the cases of two sides, paired.

    >>> pairs = pair(Side([{"a": 0.5, "b": None, "c": None}]), Side([{"a": 0.75, "b": 0.0, "c": None, "d": 1.0}]))
    >>> pairs.reference, pairs.other
    ({'a': 0.5, 'b': 1.0}, {'a': 0.75, 'b': 0.0})
    >>> list(pairs.left_out)
    ['c', 'd']
    """
    sides: tuple[dict[str, float], dict[str, float]] = {}, {}
    left_out: dict[str, str] = {}
    for case in dict.fromkeys(case for side in (reference, other) for run in side.runs for case in run):
        found = [[run[case] for run in side.runs if case in run] for side in (reference, other)]
        if not all(found):
            left_out[case] = NOT_MEASURED
        elif all(dice is None for dices in found for dice in dices):
            left_out[case] = NOTHING_THERE
        else:
            for side, dices in zip(sides, found, strict=True):
                side[case] = fmean(1.0 if dice is None else dice for dice in dices)
    alone = [
        tuple(case for case in sides[0] if case in one.failed and case not in two.failed)
        for one, two in ((reference, other), (other, reference))
    ]
    return Pairs(*sides, left_out, *alone)
