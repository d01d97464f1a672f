"""What a bundle records of its training, as data.

The data set against the hashes that a bundle's manifest holds.

What differs here from where a bundle was trained, as far as it can change a bit.

Weights and validation Dice of a training against the recorded ones, and what that shows.

The recorded training once more, in an ordinary run folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from segpipe.bundle import MANIFEST, PROVENANCE, TRAIN, State, open_bundle, read_state, tensors_sha256
from segpipe.common.files import read_json, sha256_of
from segpipe.data import Case, Manifest, load_manifest
from segpipe.errors import OK, REFUSED, DataError, RefusedError, UsageError
from segpipe.training import Composed, check_components, check_network, require_same, resume, start

NUMBERS = ("fold", "seed", "threads", "num_workers", "max_epochs")
NEEDED = ("run_dir", "manifest", "dataset_dir", *NUMBERS)
OF_A_RUN = {"run_dir": "@bundle_root", "manifest": "$@bundle_root + '/manifest.json'", "resume": False}


@dataclass(frozen=True)
class Recorded:
    """A bundle's training.

    Attributes:
        bundle: name, version and sha256 of the bundle.
        config: ``configs/train.json``.
        manifest_file: the bundle's manifest, whose patients are numbers and whose cases stand in their order.
        manifest: the same, read.
        weights: the state dict.
        environment: versions, system and hardware that it was trained with; None where nothing is recorded.
        best: best epoch and its validation Dice; None where nothing is recorded.
        spread: mean, sd, min, max and n of the best validation Dice over seeds; None where it was not measured.
        finished: whether the training went to its end.
    """

    bundle: dict[str, str]
    config: dict[str, Any]
    manifest_file: Path
    manifest: Manifest
    weights: State
    environment: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    spread: dict[str, Any] | None = None
    finished: bool = True

    @property
    def on_gpu(self) -> bool:
        """Whether it was trained on a GPU."""
        return "cuda" in str(self.config.get("device"))

    def at(self, out: Path, data: Path) -> Composed:
        """The config of the training, with a run folder and a data folder of this machine."""
        places = {"bundle_root": str(out.resolve()), "dataset_dir": str(data.resolve())}
        config = {**self.config, **OF_A_RUN, **places}
        origin = f"bundle {self.bundle['name']} {self.bundle['version']}"
        return Composed(config, {**dict.fromkeys(config, origin), **dict.fromkeys(places, "segpipe reproduce")})


def read_recorded(root: Path, changed_too: bool = False) -> Recorded:
    """Read what a bundle records; nothing of it is evaluated.

    Args:
        root: the bundle's folder.
        changed_too: take one whose files are not those of SHA256SUMS, too.

    Raises:
        UsageError: not a bundle, or none that says how it was trained.
        DataError: a file of it cannot be read.
        RefusedError: its record contradicts its content.
    """
    for name in (TRAIN, MANIFEST):
        if not (root / name).is_file():
            raise UsageError(
                "the bundle does not say how it was trained",
                path=root,
                found=f"no {name}",
                expected=f"{TRAIN} and {MANIFEST}, as `segpipe export` writes them",
            )
    bundle = open_bundle(root, changed_too)
    config, weights = _read_config(root), read_state(bundle.weights)
    return Recorded(
        {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        config,
        root / MANIFEST,
        load_manifest(root / MANIFEST),
        weights,
        **_read_provenance(root, config, weights),
    )


def _read_config(root: Path) -> dict[str, Any]:
    config = read_json(root / TRAIN, "training config")
    given = config if isinstance(config, dict) else {}
    missing = [name for name in NEEDED if name not in given]
    missing += [name for name in NUMBERS if name in given and not isinstance(given[name], int)]
    if missing:
        raise UsageError(
            "not a training config of segpipe",
            path=root / TRAIN,
            found=f"no {', '.join(missing)}",
            hint="a bundle of other origin is trained by its own means",
        )
    return given


def _read_provenance(root: Path, config: dict[str, Any], weights: State) -> dict[str, Any]:
    """What ``provenance.json`` adds, empty where there is none, after a look whether it is of this bundle."""
    path = root / PROVENANCE
    if not path.is_file():
        return {}
    document = read_json(path, "provenance")
    try:
        stated = {"the settings": document["config"], "the weights": document["weights"]["tensors_sha256"]}
        best, seeds = document["best"], document["seeds"]
        found = {
            "environment": document["environment"] and dict(document["environment"]),
            "best": best and {"epoch": int(best["epoch"]), "val_mean_dice": float(best["val_mean_dice"])},
            "spread": seeds and {name: seeds["val_mean_dice"][name] for name in ("mean", "sd", "min", "max", "n")},
            "finished": document["status"] in ("finished", None),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "the provenance cannot be read",
            path=path,
            found=f"{type(error).__name__}: {error}",
            expected="what `segpipe export` writes",
        ) from error
    for what, here in (("the settings", config), ("the weights", tensors_sha256(weights))):
        if stated[what] != here:
            raise RefusedError(
                f"{PROVENANCE} is not of this bundle: {what} differ",
                path=root,
                hint="get the bundle again from where it came from",
            )
    return found


MOST_NAMED = 10


def trained_on(manifest: Manifest, fold: int) -> list[Case]:
    """The cases that a training reads: those that it learns from, then those that it is validated on."""
    return [*manifest.select("training", fold), *manifest.select("validation", fold)]


def check_data(cases: list[Case], root: Path, advance: Callable[[], object] = lambda: None) -> dict[str, int]:
    """Compare each file with the hash that it had when the weights were trained.

    Args:
        cases: of the bundle's manifest.
        root: folder that its paths start from.
        advance: called once a case.

    Returns:
        Number of ``cases`` and ``files``, and how many files are ``without_hash``, so that nothing shows a change.

    Raises:
        DataError: files are missing or were changed; it names them.
    """
    faults, files, without = [], 0, 0
    for case in cases:
        for path in case.paths:
            expected = (case.sha256 or {}).get(path)
            files += 1
            without += expected is None
            if not (root / path).is_file():
                faults.append(f"missing {path}")
            elif expected is not None and sha256_of(root / path) != expected:
                faults.append(f"changed {path}")
        advance()
    if faults:
        more = f", and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        raise DataError(
            f"the data is not what the bundle was trained on: {len(faults)} of {files} files differ",
            path=root,
            found=", ".join(faults[:MOST_NAMED]) + more,
            expected="the files whose hashes the bundle's manifest holds",
            hint="name their folder with --data, or get the files again; other data would give other weights",
        )
    return {"cases": len(cases), "files": files, "without_hash": without}


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was recorded; None: it is not there, or was not recorded."""

    what: str
    recorded: str | None
    here: str | None

    def as_dict(self) -> dict[str, str | None]:
        """Plain values."""
        return asdict(self)


def differences(
    recorded: Mapping[str, Any] | None, here: Mapping[str, Any], on_gpu: bool = False
) -> list[Difference] | None:
    """What differs between two environments of `segpipe.common.provenance`; None where nothing is recorded.

    Versions, revision, system, processor and its vector instructions count, and the GPUs of a training on one. Cores
    and memory do not: the number of threads is that of the config.
    """
    if recorded is None:
        return None
    one, other = _flat(recorded, on_gpu), _flat(here, on_gpu)
    return [
        Difference(what, one.get(what), other.get(what))
        for what in {**one, **other}
        if one.get(what) != other.get(what)
    ]


def _flat(environment: Mapping[str, Any], on_gpu: bool) -> dict[str, str]:
    hardware = environment.get("hardware") or {}
    values = {
        **(environment.get("versions") or {}),
        "segpipe's revision": environment.get("git_revision"),
        "system": environment.get("system"),
        "processor": hardware.get("processor"),
        "vector instructions": hardware.get("cpu_capability"),
        "GPUs": ", ".join(hardware.get("gpus") or []) if on_gpu else None,
    }
    return {what: str(value) for what, value in values.items() if value is not None}


REPORT = "reproduction.json"
WIDTH = 2.0  # standard deviations to either side of the mean over seeds
Verdict = Literal["bit-identical", "within the spread", "outside the spread", "spread unknown", "not bit-identical"]
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
    return Outcome(weights, validation, _verdict(weights["identical"], validation["within_spread"], differing))


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


def train_again(recorded: Recorded, out: Path, data: Path) -> dict[str, Any]:
    """Train with the recorded config, seed, threads and workers; a run that is there goes on, a finished one is kept.

    Args:
        recorded: of the bundle.
        out: run folder.
        data: folder of the data set.

    Returns:
        The run record.

    Raises:
        UsageError: the folder holds another run, or the config needs what this version does not have.
    """
    composed = recorded.at(out, data)
    if (out / "run.json").exists():
        require_same(out, composed.config, recorded.manifest_file)
        return resume(out, data)
    check_components(composed.config)
    check_network(composed.config)
    return start(composed, recorded.manifest_file, out)
