"""A training that begins with a bundle's weights: what is taken of them, what stays as it is, what they saw before.

    RUN/initial.pt    the weights that the first step changes, of the whole network
    RUN/run.json      ``parent``: which bundle, which tensors, which cases

So a run needs its parent only to begin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from segpipe.bundle import State, hashes_of, read_state, tensors_sha256, torch_bytes
from segpipe.common.console import counted, some_of
from segpipe.common.files import sha256_of, write_bytes
from segpipe.data import Case, Manifest
from segpipe.errors import RefusedError, UsageError
from segpipe.training.adaptation import Adapted, Names, adapt
from segpipe.training.encoder_modules import encoder_modules
from segpipe.training.network_cost import build_network
from segpipe.training.parent import Parent, ParentWeights

INITIAL = "initial.pt"
FREEZE = ("encoder",)
SEEN = {"training": "trained on", "validation": "chosen by", "patient": "of a patient of whom another scan was seen"}


@dataclass(frozen=True)
class FineTuning:
    """What is asked for.

    Attributes:
        bundle: that the training begins with.
        member: of an ensemble, the number of the network; None: the one that did not see the cases of the fold.
        freeze: ``encoder``, whose weights stay; None: all are trained.
        allow_seen: measure also on cases that the parent saw.
        allow_other_preprocessing: train also where images are prepared in another way than the parent's.
    """

    bundle: Path
    member: int | None = None
    freeze: str | None = None
    allow_seen: bool = False
    allow_other_preprocessing: bool = False

    def __post_init__(self) -> None:
        if self.freeze not in (None, *FREEZE):
            raise UsageError("it is not known how to freeze that", found=self.freeze, expected=" or ".join(FREEZE))


@dataclass(frozen=True)
class InitialOfParent:
    """The weights of a bundle, adapted to the network of each run.

    Attributes:
        parent: the bundle.
        asked: what is asked for.
        dataset: that is trained on.
        data: folder that its paths start from.
        frozen: modules that stay as they are.
        differing: in what images are prepared in another way.
    """

    parent: Parent
    asked: FineTuning
    dataset: Manifest
    data: Path
    frozen: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()

    def write(self, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Write the weights of a run, see `segpipe.training.fragments.Initial`.

        Raises:
            RefusedError: see `chosen`.
        """
        chosen, overlap = self.chosen(config["fold"])
        adapted = adapt(chosen.state, self.parent.names, config)
        write_initial(folder, adapted)
        names = self.parent.names
        return {
            **self.parent.facts,
            "member": self.parent.weights.index(chosen) if len(self.parent.weights) > 1 else None,
            "weights": {"file": chosen.file, "tensors_sha256": chosen.sha256},
            "names": {"inputs": [*names.inputs], "outputs": [*names.outputs], "activation": names.activation},
            "initial": initial_record(adapted),
            "freeze": self.asked.freeze,
            "other_preprocessing": [*self.differing],
            "overlap": {"is_known": chosen.seen.is_known, "cases": overlap},
            "seen": chosen.seen.document(),
            "parent": self.parent.ancestry,
        }

    def chosen(self, fold: int | None) -> tuple[ParentWeights, dict[str, str]]:
        """Return the weights that a run begins with, and the cases that they saw of those that it is measured on.

        Args:
            fold: that is validated; None validates none.

        Raises:
            RefusedError: they saw some, and that is not allowed; or which member of an ensemble is meant is not said.
        """
        weights, member = self.parent.weights, self.asked.member
        if member is not None:
            if not 0 <= member < len(weights):
                members = f"0 to {len(weights) - 1}" if len(weights) > 1 else "no --member: it is no ensemble"
                raise UsageError(f"{self.parent.title} has no such member", found=member, expected=members)
            weights = weights[member : member + 1]
        overlaps = [(each, self.overlap(each, fold)) for each in weights]
        unseen = [pair for pair in overlaps if not pair[1]]
        if len(unseen) == 1 or (unseen and len(weights) == 1):
            return unseen[0]
        if len(weights) > 1 and (unseen or self.asked.allow_seen):
            raise RefusedError(
                f"{self.parent.title} is an ensemble, and a training begins with one network",
                found=f"{len(weights)} members, {len(unseen)} of which saw none of the cases that are measured",
                expected="one that did",
                hint=f"name it with --member, 0 to {len(weights) - 1}",
            )
        first, overlap = overlaps[0]
        if self.asked.allow_seen:
            return first, overlap
        words = ", ".join(f"{case_id} ({SEEN[how]})" for case_id, how in list(overlap.items())[:5])
        where = "the test set" if fold is None else f"fold {fold} and the test set"
        raise RefusedError(
            f"{self.parent.title} saw cases that its child would be measured on",
            found=f"{len(overlap)} of {where}: {words}{', ...' if len(overlap) > 5 else ''}",
            expected="validation and test cases that no parent was trained on, by the hashes of their images",
            hint="take a parent that did not see them, or train on them and measure on others; --allow-seen goes on, "
            "and marks every figure",
        )

    def overlap(self, weights: ParentWeights, fold: int | None) -> dict[str, str]:
        """Return the cases that a run is measured on and that weights saw, with how they saw them."""
        how = {
            case.id: weights.seen.how(self.dataset.name, case.id, self._hashes[case.id])
            for case in self.dataset.cases()
        }
        patients = {case.group for case in self.dataset.cases() if how[case.id]}
        measured = [*([] if fold is None else self.dataset.select("validation", fold)), *self.dataset.test]
        return {case.id: how[case.id] or "patient" for case in measured if case.group in patients}

    @cached_property
    def _hashes(self) -> dict[str, list[str]]:
        return {case.id: [*_image_hashes(case, self.data)] for case in self.dataset.cases()}


@dataclass(frozen=True)
class InitialAgain:
    """The weights that a recorded training began with, made again from its parent's.

    Attributes:
        record: ``parent`` of the record.
        state: the parent's weights.
    """

    record: Mapping[str, Any]
    state: State

    def write(self, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Write the weights of a run, see `segpipe.training.fragments.Initial`."""
        names = self.record["names"]
        theirs = Names(tuple(names["inputs"]), tuple(names["outputs"]), names["activation"])
        adapted = adapt(self.state, theirs, config)
        write_initial(folder, adapted)
        return {**self.record, "initial": initial_record(adapted)}


def begin_with(config: dict[str, Any], origins: dict[str, str], initial: InitialOfParent) -> InitialOfParent:
    """Let the network of a config begin with the parent's weights, and stay in part as it is.

    Args:
        config: is changed: it names `INITIAL`, the parent's hash and the frozen modules.
        origins: is changed alike.
        initial: where the weights come from.

    Returns:
        The same, with what is frozen and what differs.

    Raises:
        RefusedError: images are prepared in another way than the parent's, and that is not allowed.
        UsageError: nothing of it fits the network, or something would be frozen that begins anew.
    """
    parent, asked = initial.parent, initial.asked
    differing = parent.differing_preprocessing(config, initial.dataset.units)
    if differing and not asked.allow_other_preprocessing:
        raise RefusedError(
            f"images are prepared in another way than those of {parent.title}, whose weights know no other",
            found="; ".join(differing),
            expected="the same orientation, spacing and intensities",
            hint="leave --task out, which prepares them as the parent did; or train all the same with "
            "--allow-other-preprocessing",
        )
    frozen = () if asked.freeze is None else tuple(encoder_modules(build_network(config)))
    added = {
        "initial_weights": f"$@bundle_root + '/{INITIAL}'",
        "frozen_modules": list(frozen),
        "parent_sha256": parent.facts["sha256"],
    }
    config.update(added)
    config["train"]["network"]["network"] = {
        "_target_": "segpipe.components.pretrained_network",
        "network": config["train"]["network"]["network"],
        "weights": "@initial_weights",
        "frozen": "@frozen_modules",
    }
    origins.update(dict.fromkeys(added, "--from"))
    return replace(initial, frozen=frozen, differing=tuple(differing))


def describe(initial: InitialOfParent, config: Mapping[str, Any], folds: Iterable[int | None]) -> list[str]:
    """Say what runs begin with, and refuse those that should not.

    Args:
        initial: where the weights come from.
        config: of the runs.
        folds: that are validated, of each run.

    Raises:
        RefusedError: the parent saw cases of a fold or of the test set, and that is not allowed.
        UsageError: nothing of it fits the network, or something would be frozen that begins anew.
    """
    parent = initial.parent
    chosen = {fold: initial.chosen(fold) for fold in folds}
    first = next(iter(chosen.values()))[0]
    adapted = adapt(first.state, parent.names, config)
    _require_frozen_taken(adapted, initial.frozen)
    lines = [f"begins with {parent.title} ({parent.facts['sha256'][:12]}): {adapted.counts()}"]
    ours = Names.of(config)
    for what, names, copied in (("channels", ours.inputs, adapted.inputs), ("outputs", ours.outputs, adapted.outputs)):
        fresh = [name for name in names if name not in copied]
        lines += [f"{what} that begin anew: {', '.join(fresh)}"] if fresh else []
    for what in ("adapted", "new"):
        names = getattr(adapted, what)
        lines += [f"{what}: {some_of(names)}"] if names else []
    if initial.frozen:
        lines.append(f"frozen: {initial.asked.freeze} ({', '.join(initial.frozen)})")
    lines += [f"images are prepared in another way than the parent's: {each}" for each in initial.differing]
    for fold, (weights, overlap) in chosen.items():
        if len(parent.weights) > 1:
            lines.append(f"{'the run' if fold is None else f'fold {fold}'} begins with {weights.file}")
        if overlap:
            lines.append(
                f"the parent saw {counted(len(overlap), 'case')} that {'it is' if fold is None else f'fold {fold} is'} "
                f"measured on, so figures are too good: {some_of(list(overlap))}"
            )
    if not first.seen.is_known:
        lines.append("which cases the parent saw is not known for all of them: figures may be too good")
    return lines


def _require_frozen_taken(adapted: Adapted, frozen: tuple[str, ...]) -> None:
    """Refuse to freeze weights that begin anew, by chance."""
    fresh = [
        name for name in (*adapted.new, *adapted.adapted) if any(name.startswith(f"{module}.") for module in frozen)
    ]
    if fresh:
        raise UsageError(
            "weights that begin anew, in whole or in part, would be frozen",
            found=some_of(fresh),
            expected="an encoder that is the parent's, with the same input channels",
            hint="leave --freeze out",
        )


def initial_record(adapted: Adapted) -> dict[str, Any]:
    """Return what a record says of the weights that a run begins with."""
    lists = {name: list(getattr(adapted, name)) for name in ("adapted", "new", "unused", "inputs", "outputs")}
    return {"tensors_sha256": tensors_sha256(adapted.state), "taken": len(adapted.taken), **lists}


def write_initial(folder: Path, adapted: Adapted) -> None:
    """Write the weights that a run begins with, whole or not at all."""
    write_bytes(folder / INITIAL, torch_bytes(adapted.state))


def require_initial(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuse a run whose initial weights are not those that it was made with.

    Raises:
        DataError: they cannot be read.
        RefusedError: they are others.
    """
    if "parent" not in record:
        return
    found, expected = tensors_sha256(read_state(folder / INITIAL)), record["parent"]["initial"]["tensors_sha256"]
    if found != expected:
        raise RefusedError(
            "the weights that the run begins with were changed",
            path=folder / INITIAL,
            found=found[:12],
            expected=expected[:12],
            hint="put the original back, or train with another --out",
        )


def _image_hashes(case: Case, data: Path) -> list[str]:
    """Return the SHA-256 of a case's image files, from the manifest where it has them."""
    known = hashes_of(case)
    if len(known) == len(case.images):
        return known
    return [sha256_of(data / path) for path in case.images if (data / path).is_file()]
