"""A training that may be chosen, and how good it is on cases that it did not see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segpipe.common.files import read_json
from segpipe.common.subprocesses import Subprocesses, require_ended_well
from segpipe.studies.variants import fragment_name
from segpipe.training import read_fragment, read_out_of_fold, train

Progress = Callable[[str], object]


@dataclass(frozen=True)
class Candidate:
    """A training that may be chosen: fragments, each by name or path, and what is set beside them.

    Attributes:
        network, augment, loss: fragments.
        overrides: ``id=value``.
        title: its name, where the fragments do not tell it from others.
    """

    network: str
    augment: str = "light"
    loss: str = "dice_ce"
    overrides: tuple[str, ...] = ()
    title: str = ""

    @property
    def name(self) -> str:
        """Return the name that is shown, and that its folder bears."""
        return self.title or "+".join(map(fragment_name, (self.network, self.augment, self.loss)))

    def record(self) -> dict[str, Any]:
        """Return its plain values, without those that say nothing."""
        overrides = {"overrides": list(self.overrides)} if self.overrides else {}
        return {**{name: value for name, value in asdict(self).items() if value}, **overrides}


def parse_candidate(text: str) -> Candidate:
    """Return the candidate that ``NETWORK`` or ``NETWORK+AUGMENT`` names; the fragments are looked for here.

    Raises:
        UsageError: there is no such fragment.
    """
    network, _, augment = text.partition("+")
    candidate = Candidate(network, augment or "light")
    for kind in ("network", "augment"):
        read_fragment(kind, getattr(candidate, kind))
    return candidate


def train_candidate(
    candidate: Candidate,
    out: Path,
    manifest: Path,
    folds: Sequence[int],
    shared: Mapping[str, Any],
    progress: Progress,
    children: Subprocesses | None = None,
) -> Mapping[str, Any]:
    """Train a candidate on some folds, and measure the cases that they leave out; what is done already is kept.

    Args:
        candidate: which.
        out: folder of the search.
        manifest: with these folds.
        folds: which; those that it was trained on before belong to it as well.
        shared: keywords of `segpipe.train` that all candidates have: ``task``, ``seed``, ...; its ``overrides`` come
            before those of the candidate.
        progress: called with a line for each step and epoch; what it raises ends the training, which can go on.
        children: who starts it as a process of its own, since other candidates are trained from other threads; None
            trains from this process.

    Returns:
        The content of ``out_of_fold.json``.

    Raises:
        SegpipeError: it cannot be trained or measured.
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    fragments = {"network": candidate.network, "loss": candidate.loss, "augment": candidate.augment}
    arguments = {
        **fragments,
        **shared,
        "overrides": [*shared.get("overrides", ()), *candidate.overrides],
        "folds": list(folds),
        "out": run_folder(out, candidate),
    }

    def say(line: str) -> None:
        progress(f"{candidate.name}: {line}")

    if children is None:
        return train(manifest, **arguments, progress=say).out_of_fold or {}
    ended = children.call("segpipe.train", {"manifest": manifest, **arguments}, say)
    require_ended_well(ended)
    return read_out_of_fold(run_folder(out, candidate))


def mean_dice(out_of_fold: Mapping[str, Any]) -> float:
    """Return the mean Dice over the cases; one that failed counts as 0, one without a Dice is left out."""
    cases = [case for case in out_of_fold["cases"] if case["failure"] or case["mean_dice"] is not None]
    return sum(case["mean_dice"] or 0.0 for case in cases) / len(cases) if cases else 0.0


def run_folder(out: Path, candidate: Candidate) -> Path:
    """Return the folder of a candidate's cross-validation."""
    return candidate_folder(out, candidate) / "run"


def run_seconds(run: Path) -> float:
    """Return the seconds that all folds of a cross-validation trained, by their own records."""
    records = [read_json(path, "run record") for path in sorted(run.glob("fold_*/run.json"))]
    return float(sum(session.get("seconds", 0) for record in records for session in record["sessions"]))


def candidate_folder(out: Path, candidate: Candidate) -> Path:
    """Return the folder of a candidate in that of its search."""
    return out / "candidates" / candidate.name
