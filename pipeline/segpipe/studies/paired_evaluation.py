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
        cases: that both measured.
        comparison: of the mean Dice of a case, over patients.
    """

    other: str
    cases: int
    comparison: Comparison

    def words(self, name: str) -> str:
        """Return what was found, of an evaluation of this name."""
        over = f"{counted(self.cases, 'case')} of {counted(self.comparison.patients, 'patient')}"
        return f"Paired over {over}: {in_words(name, self.other, self.comparison, 1)}"

    def document(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "evaluation": self.other,
            "cases": self.cases,
            "patients": self.comparison.patients,
            "difference": asdict(self.comparison.difference),
            "p": self.comparison.p,
        }


@dataclass(frozen=True)
class Other:
    """An evaluation that another is held against: its folder's name, and the mean Dice of each case."""

    name: str
    dice: Mapping[str, float | None]

    def paired_with(self, evaluation: Evaluation) -> Paired:
        """Return an evaluation less this one: mean difference of Dice, its interval over patients, Wilcoxon's p."""
        groups = {case.id: case.group for case in evaluation.cases}
        found = {case: value for case, value in evaluation.case_dice.items() if value is not None}
        here = {case: value for case, value in self.dice.items() if value is not None and case in found}
        return Paired(self.name, len(here), compare(here, {"other": found}, groups)["other"])


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
    return Other(folder.resolve().name, dice)
