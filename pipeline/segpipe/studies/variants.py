"""What is compared: variants (a network with a loss), the cells that each is run in (fold and seed), and their budget.

A budget of steps or minutes becomes whole epochs, since a run's learning rate falls from its first epoch to its last.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segpipe.common.shards import Shard
from segpipe.errors import UsageError
from segpipe.training import read_fragment

VALIDATIONS = 10  # a run is validated about so often, and always at its end
OWN_OPTIONS = {"fold": "--folds", "seed": "--seeds", "max_epochs": "--steps or --minutes"}


@dataclass(frozen=True)
class Variant:
    """A network fragment with a loss fragment, each a name or a path."""

    network: str
    loss: str

    @property
    def name(self) -> str:
        """Return the name that is shown, and that its folders bear."""
        return f"{fragment_name(self.network)}+{fragment_name(self.loss)}"


@dataclass(frozen=True)
class Cell:
    """One run: a variant, the fold that it is validated on, and its seed."""

    variant: Variant
    fold: int
    seed: int

    @property
    def key(self) -> str:
        """Return its folder below ``runs``, which is its name in the state."""
        return f"{self.variant.name}/{self.place}"

    @property
    def place(self) -> str:
        """Return which of its variant's runs it is."""
        return f"fold{self.fold}-seed{self.seed}"


@dataclass(frozen=True)
class Settings:
    """What is asked for; two starts in one folder must agree on all of it.

    Attributes:
        networks, losses: fragments; the first of each make the reference.
        one_at_a_time: vary one of the two, not both.
        task, augment, runtime: fragments.
        folds, seeds: every variant is run in each pair of them.
        split: ``validation`` (of the fold) or ``test``.
        steps, minutes: the budget of a run; one of them.
        overrides: ``id=value``, of every run.
        threads, workers: of every run; None leaves them to the runtime fragment.
    """

    networks: tuple[str, ...]
    losses: tuple[str, ...]
    task: str
    one_at_a_time: bool = False
    augment: str = "light"
    runtime: str = "cpu"
    folds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    split: str = "validation"
    steps: int | None = None
    minutes: float | None = None
    overrides: tuple[str, ...] = ()
    threads: int | None = None
    workers: int | None = None

    def variants(self) -> list[Variant]:
        """Return all of them, the reference first."""
        if self.one_at_a_time:
            pairs = [(self.networks[0], loss) for loss in self.losses]
            pairs += [(network, self.losses[0]) for network in self.networks[1:]]
        else:
            pairs = [(network, loss) for network in self.networks for loss in self.losses]
        return [Variant(network, loss) for network, loss in pairs]

    def cells(self, shard: Shard | None = None) -> list[Cell]:
        """Return all runs, or those of a share; every variant's first before any variant's second."""
        cells = [Cell(variant, fold, seed) for fold in self.folds for seed in self.seeds for variant in self.variants()]
        return cells if shard is None else cells[shard.index :: shard.number]

    def fragments(self, variant: Variant) -> dict[str, str]:
        """Return kind to fragment."""
        return {
            "task": self.task,
            "network": variant.network,
            "loss": variant.loss,
            "augment": self.augment,
            "runtime": self.runtime,
        }

    def record(self) -> dict[str, Any]:
        """Return plain values without a path: a fragment of the user's own is named by its file and its content."""
        values = asdict(self)
        for name, kind in (("networks", "network"), ("losses", "loss")):
            values[name] = [recorded(kind, fragment) for fragment in values[name]]
        for kind in ("task", "augment", "runtime"):
            values[kind] = recorded(kind, values[kind])
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def check_sense(settings: Settings) -> None:
    """Refuse two variants that would share a folder, and overrides of what the comparison sets itself.

    Raises:
        UsageError: naming them.
    """
    for override in settings.overrides:
        name = override.partition("=")[0].strip()
        if name in OWN_OPTIONS:
            raise UsageError(f"--set {name} has no place here", hint=f"give {OWN_OPTIONS[name]}")
    names = [variant.name for variant in settings.variants()]
    for name in names:
        if names.count(name) > 1:
            raise UsageError("two variants have the same name", found=name, hint="rename one of the files")


def fragment_name(fragment: str) -> str:
    """Return a fragment's name: that of a shipped one, or a file's without its ending."""
    stem = Path(fragment).stem if is_path(fragment) else fragment
    return re.sub(r"[^A-Za-z0-9._-]", "_", stem)


def is_path(fragment: str) -> bool:
    """Return whether it names a file and not a shipped fragment."""
    return "/" in fragment or fragment.endswith((".yaml", ".yml", ".json"))


def own_fragments(fragments: Iterable[tuple[str, str]]) -> list[str]:
    """Return by what files of the user's own are known again, of fragments that are given as kind and name or path."""
    return sorted({recorded(kind, fragment) for kind, fragment in fragments if is_path(fragment)})


def listed(words: Sequence[str]) -> tuple[str, ...]:
    """Return values that were given by repeating an option, with commas, or both; each once."""
    return tuple(dict.fromkeys(part.strip() for word in words for part in word.split(",") if part.strip()))


def recorded(kind: str, fragment: str) -> str:
    """Return by what a fragment is known again: its name; of a file of the user's own also a hash of its content."""
    if not is_path(fragment):
        return fragment
    content = json.dumps(read_fragment(kind, fragment)[0], sort_keys=True)
    return f"{Path(fragment).name} (sha256 {hashlib.sha256(content.encode()).hexdigest()[:12]})"


def epochs_for_steps(steps: int, steps_per_epoch: int) -> int:
    """Return the number of epochs that comes nearest to the steps, at least one."""
    return max(1, math.floor(steps / steps_per_epoch + 0.5))


def epochs_for_minutes(minutes: float, seconds_of_training: float, seconds_of_validation: float) -> int:
    """Return the epochs that fit into the minutes with their validations, at least one.

    Args:
        minutes: the budget.
        seconds_of_training: of one epoch's steps.
        seconds_of_validation: of validating once.
    """
    seconds = minutes * 60
    most = 2 * VALIDATIONS  # a run of n intervals of epochs, each with a validation, n below this
    interval = max(1, math.floor((seconds / most - seconds_of_validation) / seconds_of_training) + 1)
    intervals = math.floor(seconds / (interval * seconds_of_training + seconds_of_validation))
    return max(1, intervals * interval)


def validation_interval(epochs: int) -> int:
    """Return the largest divisor of the epochs with at least ten validations, or 1: so the last epoch is validated."""
    return next(step for step in range(max(1, epochs // VALIDATIONS), 0, -1) if epochs % step == 0)
