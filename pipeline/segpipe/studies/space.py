"""A space of trainings, declared in YAML: which fragments, which ids of the config, in which ranges.

    loss:                                             # network, loss, augment: fragments, the first is the default
      dice_ce: {"loss#alpha": {low: 0.2, high: 0.8}}  # with ids that only it has
      focal: {}
    learning_rate: {low: 0.0003, high: 0.01, log: true}
    batch_size: [2, 4]                                # any id of the config: a list, or a range
    width: [0.5, 1.0, 1.5]                            # factor of the network's channels
    augmentation: {low: 0.0, high: 2.0}               # factor of how far the random transforms go

A point of it is a candidate of `segpipe.studies.search`: fragments, with overrides for the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import yaml

from segpipe.common.files import read_yaml
from segpipe.errors import UsageError
from segpipe.studies.candidates import Candidate
from segpipe.training import compose_config, configs_folder, read_fragment

FRAGMENTS = ("network", "loss", "augment")
WIDTH, AUGMENTATION = "width", "augmentation"
CHANNELS = {"channels": 2, "features": 2, "filters": 2, "init_filters": 8}  # arguments, and what they are multiples of
FACTORS = ("rotate_range", "scale_range", "std", "factors", "offsets", "degrees")  # 0: nothing is changed
LEAST_SIGMA = 0.05  # voxels: a blur that changes nothing, since none is refused
ABOUT_ONE = ("gamma", "factor", "scale", "zoom")  # 1: nothing is changed
OF_THE_SEARCH = {
    "fold": "--fold",
    "seed": "--seed",
    "max_epochs": "--epochs",
    "keep_weights": "nothing: every trial keeps the weights of its last epoch",
    "early_stop_patience": "nothing: every trial has the same number of epochs",
}
RANGE = ("low", "high", "log")
Value = str | float | int | bool


class Draws(Protocol):
    """What draws a point: an optuna trial."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Draw one of them."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Draw a number."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Draw a whole number."""


@dataclass(frozen=True)
class Dimension:
    """What one id may be: some values, or a range of numbers, both ends included."""

    id: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def draw(self, name: str, draws: Draws) -> Value:
        """Return a value, as it is written into the config."""
        if self.choices:
            drawn: Value = draws.suggest_categorical(name, list(self.choices))
            return drawn
        if isinstance(self.low, int) and isinstance(self.high, int):
            return draws.suggest_int(name, self.low, self.high, log=self.log)
        return as_written(draws.suggest_float(name, self.low, self.high, log=self.log))

    def holds(self, value: object) -> bool:
        """Return whether the value is among them."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def __str__(self) -> str:
        return ", ".join(map(str, self.choices)) if self.choices else f"{self.low} to {self.high}"


@dataclass(frozen=True)
class Space:
    """A declared space.

    Attributes:
        fragments: kind to fragment to the dimensions that only it has; the first is the default.
        dimensions: of every candidate.
        content: the document that it was read from.
        base: keywords of `segpipe.train` that all candidates have: ``task``, ``runtime``, ``overrides``.
    """

    fragments: Mapping[str, Mapping[str, tuple[Dimension, ...]]]
    dimensions: tuple[Dimension, ...]
    content: Mapping[str, Any]
    base: Mapping[str, Any] = field(default_factory=dict)

    @property
    def only(self) -> dict[str, str]:
        """The fragments that are not searched: kind to name."""
        return {kind: next(iter(known)) for kind, known in self.fragments.items() if len(known) == 1}

    def draw(self, draws: Draws) -> dict[str, Value]:
        """Return a point, name to value; what belongs to one fragment is named ``fragment/id``."""
        point: dict[str, Value] = dict(self.only)
        for kind, known in self.fragments.items():
            if kind not in point:
                point[kind] = draws.suggest_categorical(kind, list(known))
        for name, dimension in self._dimensions_at(point):
            point[name] = dimension.draw(name, draws)
        return point

    def candidate(self, point: Mapping[str, Value], title: str = "") -> Candidate:
        """Return the candidate of a point; a value that the config has anyway is no override of it."""
        chosen = {kind: str(point[kind]) for kind in FRAGMENTS}
        config = self._config(chosen)
        overrides: list[str] = []
        for name, dimension in self._dimensions_at(point):
            value = point[name]
            if value == self._default(dimension.id, chosen):
                continue
            if dimension.id == WIDTH:
                overrides += _widened(config["network_def"], float(value))
            elif dimension.id == AUGMENTATION:
                overrides += _strengthened(chosen["augment"], float(value))
            else:
                overrides.append(f"{dimension.id}={_as_yaml(value)}")
        return Candidate(**chosen, overrides=tuple(overrides), title=title)

    @cached_property
    def default(self) -> dict[str, Value]:
        """The point that changes nothing: the first fragments, and what the config says.

        Raises:
            UsageError: the space does not hold it.
        """
        point: dict[str, Value] = {kind: next(iter(known)) for kind, known in self.fragments.items()}
        for name, dimension in self._dimensions_at(point):
            value = self._default(dimension.id, point)
            if not dimension.holds(value):
                raise UsageError(
                    "the space does not hold the default, which every trial is compared with",
                    found=f"{dimension.id}: {value}",
                    expected=str(dimension),
                    hint=f"widen {dimension.id} in the space, or set another default (--set {dimension.id}=...)",
                )
            point[name] = value
        return point

    @property
    def config_of_default(self) -> Mapping[str, Any]:
        """The config of the default, before anything of it is built."""
        return self._config(self.default)

    def check(self) -> None:
        """Refuse what no config could have, before anything is trained.

        Raises:
            UsageError: a fragment or an id that there is not, or the default is outside.
        """
        for kind, known in self.fragments.items():
            for fragment in known:
                point: dict[str, Value] = {each: next(iter(names)) for each, names in self.fragments.items()}
                point[kind] = fragment
                for name, dimension in self._dimensions_at(point):
                    point[name] = dimension.choices[0] if dimension.choices else dimension.low
                found = self.candidate(point)
                overrides = [*self.base.get("overrides", ()), *found.overrides]
                _composed({each: str(point[each]) for each in FRAGMENTS}, self.base, overrides)
        _ = self.default

    def _dimensions_at(self, point: Mapping[str, Value]) -> Iterator[tuple[str, Dimension]]:
        for kind, known in self.fragments.items():
            for dimension in known[str(point[kind])]:
                yield f"{point[kind]}/{dimension.id}", dimension
        for dimension in self.dimensions:
            yield dimension.id, dimension

    def _default(self, name: str, chosen: Mapping[str, Value]) -> Any:
        if name in (WIDTH, AUGMENTATION):
            return 1.0
        place: Any = self._config(chosen)
        for part in name.replace("::", "#").split("#"):
            if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
                place = place[int(part)]
            else:
                place = place.get(part) if isinstance(place, dict) else None
        return place

    def _config(self, chosen: Mapping[str, Value]) -> dict[str, Any]:
        return _composed({kind: str(chosen[kind]) for kind in FRAGMENTS}, self.base, self.base.get("overrides", ()))


def as_written(value: Value) -> Value:
    """Return a value as it is written into a config: numbers have six digits."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def read_space(name: str, defaults: Mapping[str, str | None], base: Mapping[str, Any]) -> Space:
    """Read a space: a shipped one by name, or a file.

    Args:
        name: such as ``usual``, or a path.
        defaults: kind to the fragment that was asked for; None: the space's first, or the shipped default.
        base: keywords of `segpipe.train` that all candidates have: ``task``, ``runtime``, ``overrides``.

    Raises:
        UsageError: there is no such space, or it cannot be searched; the message names the id.
    """
    path = _find(name)
    content = read_yaml(path, "space")
    if not isinstance(content, dict) or not content:
        raise UsageError("a space is a mapping of ids to what they may be", path=path, found=type(content).__name__)
    usual = {"network": "unet", "loss": "dice_ce", "augment": "light"}
    fragments = {kind: _fragments(kind, content.get(kind), defaults.get(kind), usual[kind], path) for kind in FRAGMENTS}
    dimensions = tuple(_dimension(key, value, path) for key, value in content.items() if key not in FRAGMENTS)
    space = Space(fragments, dimensions, content, base)
    space.check()
    return space


def _find(name: str) -> Path:
    if "/" in name or name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UsageError("no such space", path=Path(name), hint="check the path")
        return Path(name)
    path = configs_folder() / "space" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.yaml")))
        raise UsageError(f"no space {name!r}", expected=f"one of {known}, or a path")
    return path


def _fragments(kind: str, given: Any, asked: str | None, usual: str, path: Path) -> dict[str, tuple[Dimension, ...]]:
    """Return fragment to its own dimensions, the default first."""
    if given is None:
        return {asked or usual: ()}
    if isinstance(given, list):
        given = {str(each): {} for each in given}
    if not isinstance(given, dict) or not given or not all(isinstance(each, dict | None) for each in given.values()):
        raise UsageError(
            f"{kind} of a space is a list of fragments, or a mapping of them to their own ids", path=path, found=given
        )
    known = {
        str(name): tuple(_dimension(key, value, path) for key, value in (own or {}).items())
        for name, own in given.items()
    }
    if asked is not None and asked not in known:
        raise UsageError(
            f"--{kind} is the default, which the space has to hold", found=asked, expected=f"one of {', '.join(known)}"
        )
    first = asked or next(iter(known))
    return {first: known[first], **known}


def _dimension(name: str, given: Any, path: Path) -> Dimension:
    if name in OF_THE_SEARCH:
        raise UsageError(f"{name} is not searched", path=path, hint=f"what sets it is {OF_THE_SEARCH[name]}")
    if isinstance(given, list) and given and all(isinstance(each, Value) for each in given):
        return Dimension(name, tuple(given))
    expected = "a list of values, or {low: 0.1, high: 0.9}, with log: true for orders of magnitude"
    if not isinstance(given, dict) or set(given) - set(RANGE) or not {"low", "high"} <= set(given):
        raise UsageError(f"{name} of the space cannot be read", path=path, found=given, expected=expected)
    low, high, log = given["low"], given["high"], given.get("log", False)
    ends = (low, high)
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end) for end in ends)
    if not numbers or not low <= high or (log and low <= 0) or not isinstance(log, bool):
        hint = "YAML reads 1e-3 as text: write 0.001" if any(isinstance(end, str) for end in ends) else None
        raise UsageError(f"{name} of the space is no range", path=path, found=given, expected=expected, hint=hint)
    if name in (WIDTH, AUGMENTATION) and low < (0 if name == AUGMENTATION else 0.1):
        raise UsageError(f"{name} of the space is a factor", path=path, found=low, expected="0 or more; width 0.1")
    whole = isinstance(low, int) and isinstance(high, int) and name not in (WIDTH, AUGMENTATION)
    return Dimension(name, (), low if whole else float(low), high if whole else float(high), log)


_KNOWN: dict[str, dict[str, Any]] = {}


def _composed(chosen: Mapping[str, str], base: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a config before anything of it is built; each is composed once."""
    fragments = {**chosen, "task": str(base["task"]), "runtime": str(base["runtime"])}
    key = repr((sorted(fragments.items()), list(overrides)))
    if key not in _KNOWN:
        _KNOWN[key] = compose_config(fragments, overrides, {"fold": (0, "--fold")}).config
    return _KNOWN[key]


def _widened(definition: Mapping[str, Any], factor: float) -> list[str]:
    """Return the override of a network's channels, each a whole multiple of what its layers take."""
    argument = next((name for name in CHANNELS if name in definition), None)
    if argument is None:
        raise UsageError(
            "it is not known which argument of the network is its width",
            found=definition.get("_target_"),
            expected=f"one that has {', '.join(CHANNELS)}",
            hint="leave width out of the space, and give its argument by name: network_def#...",
        )
    step, given = CHANNELS[argument], definition[argument]
    widths = [max(step, step * round(each * factor / step)) for each in (given if isinstance(given, list) else [given])]
    return [f"network_def#{argument}={_as_yaml(widths if isinstance(given, list) else widths[0])}"]


def _strengthened(augment: str, factor: float) -> list[str]:
    """Return overrides that make the random transforms of a fragment go so many times as far."""
    content = _augmentation(augment)
    overrides = []
    for kind in ("random_transforms", "batch_transforms"):
        steps = content[kind] if isinstance(content[kind], list) else []
        for position, step in enumerate(steps):
            for name, value in step.items() if isinstance(step, dict) else ():
                change = _change(name, factor)
                if change is not None:
                    overrides.append(f"{kind}#{position}#{name}={_as_yaml(_deep(value, change))}")
    return overrides


@cache
def _augmentation(name: str) -> dict[str, Any]:
    return read_fragment("augment", name)[0]


def _change(name: str, factor: float) -> Callable[[float], float] | None:
    if name in FACTORS:
        return lambda value: value * factor
    if name == "sigma":
        return lambda value: max(LEAST_SIGMA, value * factor)
    if name in ABOUT_ONE:  # below 1 as its inverse is above: 0.7 becomes 0.7 ** factor, never 0 or less
        return lambda value: value**factor
    return None


def _deep(value: Any, change: Callable[[float], float]) -> Any:
    if isinstance(value, list):
        return [_deep(each, change) for each in value]
    return float(f"{change(value):.6g}") if isinstance(value, int | float) and not isinstance(value, bool) else value


def _as_yaml(value: Any) -> str:
    """Return a value as YAML 1.1 reads it back, also a small number, and a word like off or null."""
    if isinstance(value, list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = f"{value:.12f}".rstrip("0")
        return f"{text}0" if text.endswith(".") else text
    if isinstance(value, str) and not _is_plain(value):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _is_plain(text: str) -> bool:
    """Return whether YAML reads a text without quotes as itself, also in a list."""
    try:
        return bool(yaml.safe_load(f"[{text}]") == [text] and yaml.safe_load(text) == text)
    except yaml.YAMLError:
        return False
