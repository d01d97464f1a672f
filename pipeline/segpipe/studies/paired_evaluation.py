"""Two evaluations of the same cases, paired by patient: how much better one is, and how sure that is.

Such as a training that began with a bundle's weights against one from chance, or a network of ours against label maps
that others made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segpipe.common.console import counted
from segpipe.common.files import read_json
from segpipe.data import manifest_sha256
from segpipe.errors import DataError, UsageError
from segpipe.evaluation import Evaluation
from segpipe.studies.comparison_results import Comparison, compare, in_words

METRICS = "metrics.json"


@dataclass(frozen=True)
class Paired:
    """An evaluation less another, over the cases that both measured.

    Attributes:
        other: name of the other.
        folder: of the other, as it was given.
        cases: that were paired.
        left_out: how many were not: of a Dice on neither side, since nothing is there and nothing was found.
        comparison: of the mean Dice of a case, over patients.
    """

    other: str
    folder: Path
    cases: int
    left_out: int
    comparison: Comparison

    def words(self, out: Path) -> str:
        """Return what was found, of the evaluation in a folder; two of one name are told by their paths."""
        over = f"{counted(self.cases, 'case')} of {counted(self.comparison.patients, 'patient')}"
        name, other = out.resolve().name, self.other
        if name == other:
            name, other = str(out), str(self.folder)
        left = f" {counted(self.left_out, 'case')} left out: no Dice on either side." if self.left_out else ""
        return f"Paired over {over}: {in_words(name, other, self.comparison, 1)}{left}"

    def document(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "evaluation": self.other,
            "cases": self.cases,
            "left_out": self.left_out,
            "patients": self.comparison.patients,
            "difference": asdict(self.comparison.difference),
            "p": self.comparison.p,
        }


@dataclass(frozen=True)
class Other:
    """An evaluation that another is held against: its folder as it was given, and the mean Dice of each case."""

    folder: Path
    dice: Mapping[str, float | None]

    def paired_with(self, evaluation: Evaluation) -> Paired:
        """Return an evaluation less this one: mean difference of Dice, its interval over patients, Wilcoxon's p.

        A case without a Dice has none of the labels, and none was found: that counts as 1 beside one with a Dice.
        """
        groups, dice = {case.id: case.group for case in evaluation.cases}, evaluation.case_dice
        told = [case for case in dice if case in self.dice and {dice[case], self.dice[case]} != {None}]
        here, found = ({case: _or_right(side[case]) for case in told} for side in (self.dice, dice))
        comparison = compare(here, {"other": found}, groups)["other"]
        left_out = len(dice.keys() | self.dice.keys()) - len(told)
        return Paired(self.folder.resolve().name, self.folder, len(told), left_out, comparison)


def _or_right(dice: float | None) -> float:
    return 1.0 if dice is None else dice


def other_evaluation(folder: Path, manifest: Path, split: str, fold: int | None) -> Other:
    """Read the evaluation that another is to be held against.

    Args:
        folder: that `segpipe evaluate` wrote.
        manifest, split, fold: of what is to be measured.

    Raises:
        UsageError: there is none, or it is of another data set or of other cases.
        DataError: it cannot be read.
    """
    path = folder / METRICS
    if not path.is_file():
        raise UsageError("no evaluation there", path=path, hint="name a folder that `segpipe evaluate --out` wrote")
    content = read_json(path, "evaluation")
    try:
        measured = (content["manifest_sha256"], content["split"], content["fold"])
        dice = {str(case["id"]): case["mean_dice"] for case in content["cases"]}
    except (KeyError, TypeError) as error:
        raise DataError(
            "the evaluation cannot be read", path=path, hint="measure it again with `segpipe evaluate`"
        ) from error
    asked = (manifest_sha256(manifest), split, fold)
    if measured != asked:
        one, two = (f"--split {cases}" + ("" if k is None else f" --fold {k}") for _, cases, k in (measured, asked))
        same = measured[1:] == asked[1:]
        raise UsageError(
            "the other evaluation is of another manifest" if same else "the other evaluation is of other cases",
            path=path,
            found=f"manifest {str(measured[0])[:12]}" if same else one,
            expected=f"manifest {asked[0][:12]}" if same else two,
            hint="measure both on the same cases of the same manifest",
        )
    return Other(folder, dice)
