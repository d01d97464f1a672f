"""Two evaluations of the same cases, paired by patient: how much better one is, and how sure that is.

Such as a training that began with a bundle's weights against one from chance, or a network of ours against label maps
that others made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.common.console import counted
from segpipe.common.files import read_json
from segpipe.data import manifest_sha256
from segpipe.errors import DataError, UsageError
from segpipe.evaluation import Evaluation
from segpipe.studies.comparison_results import Comparison, compare, in_words
from segpipe.studies.pairing import Side, side_of

METRICS = "metrics.json"


@dataclass(frozen=True)
class Paired:
    """An evaluation less another, over the cases that both measured.

    Attributes:
        other: name of the other.
        folder: of the other, as it was given.
        comparison: of the mean Dice of a case, over patients.
        unit: ``patient``, or ``case`` where patients are unknown and each case stands for one.
    """

    other: str
    folder: Path
    comparison: Comparison
    unit: str = "patient"

    def words(self, out: Path) -> str:
        """Return what was found, of the evaluation in a folder; two of one name are told by their paths."""
        patients = counted(self.comparison.patients, "patient") if self.unit == "patient" else "unknown patients"
        over = f"{counted(len(self.comparison.pairs.other), 'case')} of {patients}"
        name, other = out.resolve().name, self.other
        if name == other:
            name, other = str(out), str(self.folder)
        return f"Paired over {over}: {in_words(name, other, self.comparison, 1, self.unit == 'patient')}"

    def document(self) -> dict[str, Any]:
        """Return plain values."""
        told = self.comparison.document()
        del told["p_holm"]  # one test
        return {"evaluation": self.other, **told}


@dataclass(frozen=True)
class Other:
    """An evaluation that another is held against: its folder as it was given, and its scores."""

    folder: Path
    side: Side

    def paired_with(self, evaluation: Evaluation) -> Paired:
        """Return an evaluation less this one: mean difference of Dice, its interval over patients, Wilcoxon's p."""
        groups = {case.id: case.group for case in evaluation.cases}
        this = Side([evaluation.case_dice], frozenset(case.id for case in evaluation.failed))
        comparison = compare(self.side, {"this": this}, groups)["this"]
        return Paired(self.folder.resolve().name, self.folder, comparison, evaluation.settings["bootstrap"]["unit"])


def other_evaluation(folder: Path, manifest: Path, split: str, fold: int | None, out: Path) -> Other:
    """Read the evaluation that another is to be held against.

    Args:
        folder: that `segpipe evaluate` wrote.
        manifest, split, fold: of what is to be measured.
        out: folder that it is to be written to.

    Raises:
        UsageError: there is none, it is of another data set or of other cases, or it would be overwritten.
        DataError: it cannot be read.
    """
    path = folder / METRICS
    if not path.is_file():
        raise UsageError("no evaluation there", path=path, hint="name a folder that `segpipe evaluate --out` wrote")
    if out.exists() and out.samefile(folder):
        raise UsageError(
            "the other evaluation would be overwritten", path=out, hint="name another folder for this one with --out"
        )
    content = read_json(path, "evaluation")
    try:
        measured = (content["manifest_sha256"], content["split"], content["fold"])
        side = side_of(content["cases"])
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
    return Other(folder, side)
