"""The runs that become one bundle: a single run, or the folds of a cross-validation as the members of an ensemble.

Members differ by their random numbers and by the cases that they were trained on, and by nothing else: so one inference
config holds for all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from segpipe.bundle.exporting.fine_tuned import parents_together
from segpipe.bundle.exporting.run_record import Run, read_run, seen_by, weights_of
from segpipe.bundle.tensors import State, read_state, require_fits, torch_bytes, weights_files
from segpipe.common.console import quoted
from segpipe.common.files import read_json
from segpipe.errors import DataError, RefusedError, UsageError

CROSS_VALIDATION = "cross_validation.json"
OF_A_MEMBER = {"fold", "seed", "bundle_root", "dataset_dir"}  # ids in which members may differ


@dataclass(frozen=True)
class Members:
    """What a bundle's networks are from.

    Attributes:
        folders: the run folder of each.
        runs: each, as data; one for a single model.
    """

    folders: tuple[Path, ...]
    runs: tuple[Run, ...]

    def __len__(self) -> int:
        """Count the networks."""
        return len(self.runs)

    def together(self) -> Run:
        """Return one run that stands for all: what they share, every case that one of them was trained on, all time.

        A validation Dice is none of the ensemble: the cases that a member left out are those of the others' training.
        """
        first, *others = self.runs
        if not others:
            return first
        trained = {case for run in self.runs for case in run.cases.get("training", [])}
        states = {str(run.record.get("status")) for run in self.runs}
        epochs = {run.record.get("epochs") for run in self.runs}
        record = {
            **first.record,
            "status": states.pop() if len(states) == 1 else "not finished by all members",
            "fold": None,
            "epochs": epochs.pop() if len(epochs) == 1 else None,
            "best": None,
            "cases": {"training": [c.id for c in first.manifest.training if c.id in trained], "validation": []},
            "sessions": [session for run in self.runs for session in run.record.get("sessions") or []],
            **parents_together([run.record for run in self.runs]),
        }
        seen = seen_by(self.folders[0], record["cases"]["training"])
        return replace(first, record=record, history=(), seeds=None, seen=seen)

    def read(self, network: Mapping[str, Any]) -> tuple[Weights, ...]:
        """Read the weights of each, and require that the network takes them.

        Raises:
            DataError: they cannot be read, do not fit or are not finite.
        """
        from segpipe.inference import require_finite

        read = []
        for file, folder, run in zip(weights_files(len(self)), self.folders, self.runs, strict=True):
            state = read_state(weights_of(folder))
            require_fits(state, network, weights_of(folder))
            require_finite(state, weights_of(folder), "put the file back that the training wrote, or train anew")
            read.append(Weights(file, state, torch_bytes(state), run))
        return tuple(read)


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one network of a bundle: their file in it, tensors, bytes, and the run that they are from."""

    file: str
    state: State = field(repr=False)
    content: bytes = field(repr=False)
    run: Run = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """Of its file."""
        return hashlib.sha256(self.content).hexdigest()


def read_members(folder: Path, unfinished: bool = False) -> Members:
    """Read a run folder, or those of a cross-validation.

    Args:
        folder: of `segpipe train`.
        unfinished: take runs whose training did not finish.

    Raises:
        UsageError: neither, or a cross-validation of less than two folds.
        DataError: a file of it cannot be read.
        RefusedError: as `read_run`; or the folds differ in more than their cases.
    """
    if not (folder / CROSS_VALIDATION).is_file():
        return Members((folder,), (read_run(folder, unfinished),))
    folders = [folder / name for name in _folds(folder)]
    for each in folders:
        if not (each / "run.json").is_file():
            raise RefusedError(
                "a fold of the cross-validation was not trained",
                path=each,
                expected="every fold finished",
                hint=f"go on with `segpipe train --resume {quoted(folder)}`",
            )
    runs = [_of_fold(each, folder, unfinished) for each in folders]
    _require_alike(folders, runs)
    return Members(tuple(folders), tuple(runs))


def _folds(folder: Path) -> list[str]:
    """Return the names of the folds' folders."""
    document = read_json(folder / CROSS_VALIDATION, "cross-validation")
    try:
        names = [str(row["folder"]) for row in sorted(document["folds"], key=lambda row: int(row["fold"]))]
        if any(Path(name).name != name or name in ("", ".", "..") for name in names):
            raise ValueError("a folder that does not lie in it")
        if len(set(names)) < len(names):
            raise ValueError("a fold that is named twice")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "not a record of a cross-validation",
            path=folder / CROSS_VALIDATION,
            found=f"{type(error).__name__}: {error}",
            expected="what `segpipe train --folds` writes",
        ) from error
    if len(names) < 2:
        raise UsageError(
            "an ensemble has at least two members",
            path=folder,
            found=f"{len(names)} fold",
            hint=f"export the run itself: `segpipe export {quoted(folder / names[0])} OUT`"
            if names
            else "train more folds",
        )
    return names


def _of_fold(folder: Path, whole: Path, unfinished: bool) -> Run:
    try:
        return read_run(folder, unfinished)
    except (RefusedError, UsageError) as error:
        if (read_json(folder / "run.json", "run record") or {}).get("status") == "finished":
            raise
        raise RefusedError(
            "a fold of the cross-validation is not finished",
            path=folder,
            found=error.found,
            expected="every fold finished",
            hint=f"go on with `segpipe train --resume {quoted(whole)}`",
        ) from error


def differing_settings(first: Run, other: Run, may_differ: Collection[str] = ()) -> list[str]:
    """Return in what two runs were trained differently, apart from what tells members and ``may_differ``."""
    keys = sorted({*first.config, *other.config} - OF_A_MEMBER - set(may_differ))
    differing = [key for key in keys if first.config.get(key) != other.config.get(key)]
    return differing + (["the manifest"] if first.manifest != other.manifest else [])


def _require_alike(folders: Sequence[Path], runs: Sequence[Run]) -> None:
    """Refuse members of the same fold, or that one inference config would not hold for, and name what differs."""
    first = runs[0]
    left_out = [run.record.get("fold") for run in runs]
    twice = next((index for index, fold in enumerate(left_out) if fold in left_out[:index]), None)
    if twice is not None:
        raise RefusedError(
            "two members left out the same fold",
            path=folders[twice],
            found=f"fold {left_out[twice]}, as {folders[left_out.index(left_out[twice])].name}",
            expected="each fold once",
            hint="train the folds with `segpipe train --folds all`, and leave their folders as they are",
        )
    for folder, run in zip(folders[1:], runs[1:], strict=True):
        differing = differing_settings(first, run)
        if differing:
            raise RefusedError(
                "the folds of the cross-validation were not trained alike",
                path=folder,
                found=f"other than in {folders[0].name}: {', '.join(differing)}",
                expected="folds that differ by their cases and seeds alone",
                hint="train all folds anew with the same settings: `segpipe train --folds all`",
            )


def members_metadata(weights: Sequence[Weights]) -> dict[str, Any]:
    """Return what an ensemble's ``metadata.json`` says of its members; nothing for a single model."""
    if len(weights) == 1:
        return {}
    members = [
        {
            "file": each.file,
            "sha256": each.sha256,
            "fold": each.run.record.get("fold"),
            "seed": each.run.record.get("seed"),
        }
        for each in weights
    ]
    return {"members": members}
