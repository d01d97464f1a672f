"""How a bundle was trained, by its own record, read as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segpipe.bundle import (
    MANIFEST,
    PROVENANCE,
    TRAIN,
    Bundle,
    State,
    TrustPolicy,
    is_bundle,
    open_bundle,
    read_state,
    require_vetted,
    tensors_sha256,
)
from segpipe.common.files import read_json
from segpipe.data import Case, Manifest, load_manifest
from segpipe.errors import DataError, RefusedError, UsageError
from segpipe.training import Composed, InitialAgain

NAMES = ("inputs", "outputs", "activation")  # of the channels of the network that a training began with
NUMBERS = ("seed", "fold", "threads", "num_workers", "max_epochs")
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
        parent: what ``provenance.json`` says of the bundle that it began with; None where it began by chance.
        initial: the weights that it began with, of `with_parent`.
        members: of an ensemble each of its trainings, which are recorded alike; empty for a single model.
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
    parent: dict[str, Any] | None = None
    initial: InitialAgain | None = None
    members: tuple[Recorded, ...] = ()

    @property
    def fold(self) -> int | None:
        """Return the fold that was left out; None where all cases were trained on, by this model or by its members."""
        return None if self.members else self.config["fold"]

    @property
    def numbers(self) -> dict[str, Any]:
        """Return the numbers of the training; the fold is None as in `fold`."""
        return {**{name: self.config[name] for name in NUMBERS}, "fold": self.fold}

    @property
    def cases(self) -> list[Case]:
        """Return all cases that are trained on or validated."""
        trained = self.manifest.select("training", self.fold)
        return trained if self.fold is None else [*trained, *self.manifest.select("validation", self.fold)]

    @property
    def on_gpu(self) -> bool:
        """Return whether it was trained on a GPU."""
        return "cuda" in str(self.config.get("device"))

    def at(self, out: Path, data: Path) -> Composed:
        """Return the config of the training, with a run folder and a data folder of this machine."""
        places = {"bundle_root": str(out.resolve()), "dataset_dir": str(data.resolve())}
        config = {**self.config, **OF_A_RUN, **places}
        origin = f"bundle {self.bundle['name']} {self.bundle['version']}"
        origins = {**dict.fromkeys(config, origin), **dict.fromkeys(places, "segpipe reproduce")}
        return Composed(config, origins, initial=self.initial)

    def with_parent(self, path: Path | None, policy: TrustPolicy) -> Recorded:
        """Return the same with the weights that the training began with, where it did not begin by chance.

        Args:
            path: the bundle that it began with, or a folder in which it lies under any name.
            policy: on which terms that bundle may be used.

        Raises:
            UsageError: no bundle was named, or one although the training began by chance.
            RefusedError: it is another one, or it did not pass.
        """
        trainings = self.members or (self,)
        wanted = {each.parent["weights"]["tensors_sha256"] for each in trainings if each.parent}
        if not wanted and path is None:
            return self
        named = self.parent or next((each.parent for each in trainings if each.parent), None)
        if path is None or named is None:
            raise UsageError(
                "the training began with no bundle" if named is None else "the training began with another bundle",
                found=f"--parent {path}" if named is None else f"{named['name']} {named['version']}",
                hint="leave --parent out" if named is None else "name it, or a folder that holds it, with --parent",
            )
        states = _states_of(path, wanted, named, policy)

        def begun(training: Recorded) -> Recorded:
            parent = training.parent
            if parent is None:
                return training
            return replace(training, initial=InitialAgain(parent, states[parent["weights"]["tensors_sha256"]]))

        return replace(begun(self), members=tuple(map(begun, self.members)))


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
    bundle = open_bundle(root, run_unvetted_code=changed_too)
    config, weights = _read_config(root), read_state(bundle.weights)
    document = read_json(root / PROVENANCE, "provenance") if (root / PROVENANCE).is_file() else None
    recorded = Recorded(
        {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        config,
        root / MANIFEST,
        load_manifest(root / MANIFEST),
        weights,
        **({} if document is None else _read_provenance(root, document, config, weights)),
    )
    return replace(recorded, members=_read_members(root, bundle, document, recorded)) if bundle.members else recorded


def _states_of(path: Path, wanted: set[str], named: Mapping[str, Any], policy: TrustPolicy) -> dict[str, State]:
    """Return the wanted weights by the hash of their tensors, of the bundles at a path.

    Raises:
        RefusedError: some are in none of them, or a bundle that holds some did not pass.
    """
    found: dict[str, State] = {}
    names = []
    for place in [path] if is_bundle(path) else sorted(each for each in path.glob("*") if is_bundle(each)):
        bundle = open_bundle(place, allow=policy.allow, run_unvetted_code=policy.run_unvetted_code)
        names.append(f"{bundle.name} {bundle.version}")
        for file in [Path(member.path) for member in bundle.members] or [bundle.weights]:
            state = read_state(file)
            if (sha256 := tensors_sha256(state)) in wanted - set(found):
                require_vetted(place, policy, sha256=bundle.sha256, purpose="predict")
                found[sha256] = state
    if missing := wanted - set(found):
        raise RefusedError(
            "these are not the weights that the training began with",
            path=path,
            found=", ".join(names) or "no bundle",
            expected=f"{named['name']} {named['version']}, tensors {', '.join(sorted(each[:12] for each in missing))}",
            hint="get that bundle, and name it with --parent",
        )
    return found


def _read_members(root: Path, bundle: Bundle, document: Any, first: Recorded) -> tuple[Recorded, ...]:
    """Return the training of each member of an ensemble.

    Raises:
        UsageError: the bundle does not say how they were trained.
        DataError: the record cannot be read.
        RefusedError: it is of other weights.
    """
    if document is None:
        raise UsageError(
            "the bundle does not say how its members were trained",
            path=root,
            found=f"no {PROVENANCE}",
            hint="get the bundle again from where it came from",
        )
    found = []
    try:
        for file, member in zip(bundle.members, document["members"], strict=True):
            weights = read_state(Path(file.path))
            _require(root, "the weights", member["weights"]["tensors_sha256"], tensors_sha256(weights))
            settings = {"fold": int(member["fold"]), "seed": int(member["seed"])}
            found.append(
                replace(
                    first,
                    config={**first.config, **settings},
                    weights=weights,
                    environment=member["environment"] and dict(member["environment"]),
                    best=_best(member["best"]),
                    finished=member["status"] in ("finished", None),
                    parent=_parent(member),
                )
            )
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(root / PROVENANCE, error) from error
    return tuple(found)


def _read_config(root: Path) -> dict[str, Any]:
    config = read_json(root / TRAIN, "training config")
    given = config if isinstance(config, dict) else {}
    missing = [name for name in NEEDED if name not in given]
    whole = {"fold"} if given.get("fold", 0) is None else set()  # trained on all cases
    missing += [name for name in NUMBERS if name in given and name not in whole and not isinstance(given[name], int)]
    if missing:
        raise UsageError(
            "not a training config of segpipe",
            path=root / TRAIN,
            found=f"no {', '.join(missing)}",
            hint="a bundle of other origin is trained by its own means",
        )
    return given


def _read_provenance(root: Path, document: Any, config: dict[str, Any], weights: State) -> dict[str, Any]:
    """Return what ``provenance.json`` adds; one of another bundle is refused."""
    try:
        stated = {"the settings": document["config"], "the weights": document["weights"]["tensors_sha256"]}
        seeds = document["seeds"]
        record = {
            "environment": document["environment"] and dict(document["environment"]),
            "best": _best(document["best"]),
            "spread": seeds and {name: seeds["val_mean_dice"][name] for name in ("mean", "sd", "min", "max", "n")},
            "finished": document["status"] in ("finished", None),
            "parent": _parent(document),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(root / PROVENANCE, error) from error
    for what, here in (("the settings", config), ("the weights", tensors_sha256(weights))):
        _require(root, what, stated[what], here)
    return record


def _parent(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a record says of the bundle that the training began with."""
    parent = document.get("parent")
    if parent is None:
        return None
    _ = [str(parent[name]) for name in ("name", "version")], [parent["names"][name] for name in NAMES]
    return {**parent, "weights": {**parent["weights"], "tensors_sha256": str(parent["weights"]["tensors_sha256"])}}


def _best(best: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {"epoch": int(best["epoch"]), "val_mean_dice": float(best["val_mean_dice"])} if best else None


def _require(root: Path, what: str, stated: object, here: object) -> None:
    if stated != here:
        raise RefusedError(
            f"{PROVENANCE} is not of this bundle: {what} differ",
            path=root,
            hint="get the bundle again from where it came from",
        )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        "the provenance cannot be read",
        path=path,
        found=f"{type(error).__name__}: {error}",
        expected="what `segpipe export` writes",
    )
