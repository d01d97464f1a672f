"""Weights and validation Dice of a training against the recorded ones, and what that shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.bundle.tensors import State, tensors_sha256
from pipeline.errors import OK, REFUSED
from pipeline.reproduce.environment import Difference
from pipeline.reproduce.recorded import Recorded

REPORT = "reproduction.json"
WIDTH = 2.0  # standard deviations to either side of the mean over seeds
Verdict = Literal[
    "bit-identical", "within the spread", "outside the spread", "spread unknown", "not bit-identical"
]
MEANING: dict[Verdict, str] = {
    "bit-identical": "reproduced: bit-identical weights",
    "within the spread": "reproduced in another environment: other weights, and a validation Dice within the "
    "seed-to-seed spread",
    "outside the spread": "not reproduced: other weights, and a validation Dice outside the seed-to-seed spread",
    "spread unknown": "not shown: other weights, and the bundle records no seed-to-seed spread to judge by",
    "not bit-identical": "not reproduced: the environment is the recorded one, and the weights are others",
}


@dataclass(frozen=True)
class Outcome:
    """What came of a training.

    Attributes:
        weights: ``identical``, ``tensors``, ``differing`` tensors, ``max_abs_difference`` (None where they cannot be
            subtracted), and the hash of each side's tensors.
        validation: best validation Dice ``recorded`` and ``here`` with their epochs, their ``difference``, the
            ``spread`` over seeds and whether it is ``within_spread`` (None: unknown).
        verdict: what that shows.
    """

    weights: dict[str, Any]
    validation: dict[str, Any]
    verdict: Verdict

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        return MEANING[self.verdict]

    @property
    def reproduced(self) -> bool:
        """Whether the record held."""
        return self.verdict in ("bit-identical", "within the spread")

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return OK if self.reproduced else REFUSED


def judge(
    recorded: Recorded, ours: State, best: Mapping[str, Any] | None, differing: list[Difference] | None
) -> Outcome:
    """Compare what was trained here with what the bundle records.

    Args:
        recorded: of the bundle.
        ours: the weights that were trained here.
        best: best epoch here and its validation Dice.
        differing: what differs in the environment; None where the bundle records none.
    """
    weights = compare_weights(recorded.weights, ours)
    validation = compare_validation(recorded.best, best, recorded.spread)
    return Outcome(
        weights, validation, _verdict(weights["identical"], validation["within_spread"], differing)
    )


def compare_weights(recorded: State, here: State) -> dict[str, Any]:
    """How far two state dicts are apart; ``max_abs_difference`` is None where names, types or shapes differ."""
    import torch

    hashes = {"recorded": tensors_sha256(recorded), "here": tensors_sha256(here)}
    names = sorted({*recorded, *here})
    unequal = [name for name in names if _one(recorded, name) != _one(here, name)]
    apart: float | None = 0.0
    if any(_form(recorded, name) != _form(here, name) for name in unequal):
        apart = None
    elif unequal:
        gaps = [(recorded[name].double() - here[name].double()).abs().max() for name in unequal]
        largest = float(torch.stack(gaps).max())  # which is NaN where one is
        apart = largest if math.isfinite(largest) else None
    return {
        "identical": hashes["recorded"] == hashes["here"],
        "tensors": len(names),
        "differing": len(unequal),
        "max_abs_difference": apart,
        "sha256": hashes,
    }


def compare_validation(
    recorded: Mapping[str, Any] | None, here: Mapping[str, Any] | None, spread: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The best validation Dice of both sides, and whether that of this side lies within the spread over seeds.

    Within: at most `WIDTH` sample standard deviations from the mean over seeds, or between their least and largest.
    """
    known = spread if spread and spread.get("sd") is not None else None
    within = None
    if known and here:
        value = here["val_mean_dice"]
        near = abs(value - known["mean"]) <= WIDTH * known["sd"]
        within = near or known["min"] <= value <= known["max"]
    return {
        "recorded": recorded and dict(recorded),
        "here": here and dict(here),
        "difference": here["val_mean_dice"] - recorded["val_mean_dice"] if recorded and here else None,
        "spread": spread and dict(spread),
        "within_spread": within,
    }


def _verdict(identical: bool, within: bool | None, differing: list[Difference] | None) -> Verdict:
    if identical:
        return "bit-identical"
    if differing == []:
        return "not bit-identical"
    if within is None:
        return "spread unknown"
    return "within the spread" if within else "outside the spread"


def _one(state: State, name: str) -> str | None:
    return tensors_sha256({name: state[name]}) if name in state else None


def _form(state: State, name: str) -> tuple[Any, ...] | None:
    return (state[name].dtype, tuple(state[name].shape)) if name in state else None
