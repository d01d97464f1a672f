"""Fragments and overrides become one MONAI config; what MONAI would pass in silence is refused here.

A fragment is a small YAML file in ``configs/<kind>/``, or one of the user's own given by path. Kinds own disjoint
top-level ids (`OWNED`), so the order of fragments does not matter and MONAI's own merge gives the same result.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from segpipe.common.files import read_yaml
from segpipe.errors import UsageError
from segpipe.training.config_checks import (
    arguments_of,
    check_references,
    check_sense,
    check_settings,
    divisor_words,
    padded_patch,
    suggestion,
)
from segpipe.training.mirroring import refuse_swapped_sides
from segpipe.training.slices import take_slices

OWNED: dict[str, tuple[str, ...]] = {
    "task": (
        "task_name",
        "channels",
        "labels",
        "ignore_label",
        "regions",
        "annotated_sets",
        "in_channels",
        "out_channels",
        "activation",
        "patch_size",
        "deterministic_transforms",
    ),
    "network": ("network_name", "network_def", "patch_divisor"),
    "loss": ("loss_name", "loss"),
    "augment": ("random_transforms", "batch_transforms"),
    "runtime": (
        "device",
        "precision",
        "channels_last",
        "threads",
        "num_workers",
        "processes",
        "batch_size",
        "steps_per_epoch",
        "max_epochs",
        "learning_rate",
        "optimizer",
        "lr_scheduler",
        "val_interval",
        "early_stop_patience",
        "averaging",
        "warmup_epochs",
        "keep_weights",
        "cache_rate",
        "store",
        "overlap",
        "sw_batch_size",
        "max_gradient_norm",
    ),
}
# what a fragment that does not name an id is taken to say
DEFAULTS: dict[str, Any] = {
    "ignore_label": None,
    "regions": {},
    "annotated_sets": [],
    "batch_transforms": [],
    "precision": "float32",
    "channels_last": False,
    "processes": 1,
    "steps_per_epoch": 0,
    "averaging": 0.0,
    "warmup_epochs": 0,
    "keep_weights": "best",
    "store": None,
}


@dataclass
class Composed:
    """A config and, for every top-level id and override, where its value came from.

    Attributes:
        config: resolved, with its references.
        origins: id to where its value came from.
        notes: what was adapted, such as a padded patch.
        initial: what writes the weights that its runs begin with; None where they begin by chance.
    """

    config: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    initial: Initial | None = None


class Initial(Protocol):
    """Where the weights come from that runs begin with; see `segpipe.training.fine_tuning`."""

    def write(self, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Write those of a run into its folder; return ``parent`` of its record."""


@dataclass(frozen=True)
class Fragment:
    """A fragment that no file holds.

    Attributes:
        content: its ids.
        origin: name to show for it.
    """

    content: Mapping[str, Any]
    origin: str


def configs_folder() -> Path:
    """Return the folder of the fragments: inside an installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    return next(
        folder for folder in (here / "configs", here.parents[1] / "configs") if (folder / "train.yaml").is_file()
    )


def known_fragments(kind: str) -> list[str]:
    """Return the names of the shipped fragments of a kind."""
    return sorted(path.stem for path in (configs_folder() / kind).glob("*.yaml"))


def compose_config(
    fragments: Mapping[str, str | Fragment],
    overrides: Iterable[str] = (),
    values: Mapping[str, tuple[Any, str]] | None = None,
) -> Composed:
    """Compose the config of a training run.

    Args:
        fragments: kind to name or path, or the fragment itself; every kind of `OWNED` is needed.
        overrides: ``id=value`` with the value in YAML; nested ids as ``network_def#channels``.
        values: ids that the command line sets, with the option that set them.

    Returns:
        The config (still with its references) and the origins.

    Raises:
        UsageError: an unknown fragment, id, argument or reference, or a value of the wrong type or range; the
            message names the nearest known one. Or random transforms that swap sides, where labels have one.
    """
    skeleton = configs_folder() / "train.yaml"
    composed = Composed(read_yaml(skeleton), {})
    composed.origins = dict.fromkeys(composed.config, "train.yaml")
    for kind in OWNED:
        _add_fragment(composed, kind, fragments[kind])
    for name, (value, option) in (values or {}).items():
        _set(composed, name, value, option)
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise UsageError("an override is written id=value", found=override)
        _set(composed, name.strip(), _parse_value(name, text), "--set")
    check_settings(composed.config)
    check_sense(composed.config)
    _take_slices(composed)
    _pad_patch(composed)
    _pass_over_ignored(composed)
    check_references(composed.config)
    refuse_swapped_sides(composed.config)
    return composed


def _take_slices(composed: Composed) -> None:
    for name in take_slices(composed.config):
        composed.origins[name] += f", for slices of {composed.config['network_name']}"
        if name == "patch_size":
            size = composed.config[name]
            composed.notes.append(f"patch_size {size}: {composed.config['network_name']} takes single slices")


def _pad_patch(composed: Composed) -> None:
    size, divisor = composed.config["patch_size"], composed.config["patch_divisor"]
    padded = padded_patch(size, divisor)
    if padded != size:
        words = divisor_words(divisor)
        composed.notes.append(f"patch_size {size} padded to {padded}: the network halves it to 1/{words}")
        composed.origins["patch_size"] += f", padded for {composed.config['network_name']} to multiples of {words}"
        composed.config["patch_size"] = padded


def _pass_over_ignored(composed: Composed) -> None:
    """Let patches have their middle in annotated voxels: MONAI's crop takes an ignored one for foreground."""
    steps, ignored = composed.config["random_transforms"], composed.config["ignore_label"]
    if ignored is None or not isinstance(steps, list):
        return
    drawn = {"fg_indices_key": "label_fg_indices", "bg_indices_key": "label_bg_indices"}
    changed: list[Any] = []
    for step in steps:
        if (
            isinstance(step, dict)
            and step.get("_target_") == "RandCropByPosNegLabeld"
            and not drawn.keys() & step.keys()
        ):
            find = {"_target_": "segpipe.components.AnnotatedToIndicesd", "ignore_label": "@ignore_label"}
            changed += [find, {**step, **drawn}, {"_target_": "DeleteItemsd", "keys": list(drawn.values())}]
        else:
            changed.append(step)
    if changed != steps:
        composed.config["random_transforms"] = changed
        composed.origins["random_transforms"] += f", about voxels that are not {ignored} (ignored)"


def read_fragment(kind: str, name: str) -> tuple[dict[str, Any], str]:
    """Return the ids of a fragment, and the name to show for it.

    Args:
        kind: one of `OWNED`.
        name: that of a shipped fragment, or a path.

    Raises:
        UsageError: no such fragment, or ids that are not those of its kind.
    """
    path, shown = _find_fragment(kind, name)
    content = read_yaml(path, f"{kind} fragment")
    if not isinstance(content, dict):
        raise UsageError(f"a {kind} fragment must be a mapping", path=path, found=type(content).__name__)
    for key in content:
        if key not in OWNED[kind]:
            owner = next((owner for owner, ids in OWNED.items() if key in ids), None)
            raise UsageError(
                f"id {key!r} is not known in a {kind} fragment",
                path=path,
                expected=f"one of {', '.join(OWNED[kind])}",
                hint=f"it belongs in a {owner} fragment" if owner else _known_as(key) or suggestion(key, OWNED[kind]),
            )
    content = {**{key: DEFAULTS[key] for key in OWNED[kind] if key in DEFAULTS}, **content}
    missing = [key for key in OWNED[kind] if key not in content]
    if missing:
        raise UsageError(f"the {kind} fragment lacks {', '.join(missing)}", path=path)
    return content, shown


def read_comment(kind: str, name: str) -> str:
    """Return what a fragment says of itself: the comment that it begins with, as one line."""
    lines = _find_fragment(kind, name)[0].read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))


def _add_fragment(composed: Composed, kind: str, name: str | Fragment) -> None:
    if isinstance(name, Fragment):
        content, shown = {**{key: DEFAULTS[key] for key in OWNED[kind] if key in DEFAULTS}, **name.content}, name.origin
    else:
        content, shown = read_fragment(kind, name)
    composed.config.update(copy.deepcopy(content))
    composed.origins.update(dict.fromkeys(content, shown))


def _find_fragment(kind: str, name: str) -> tuple[Path, str]:
    if name.endswith((".yaml", ".yml", ".json")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"no such {kind} fragment", path=path, hint="check the path")
        return path, path.name
    path = configs_folder() / kind / f"{name}.yaml"
    if not path.is_file():
        known = known_fragments(kind)
        raise UsageError(
            f"no {kind} fragment {name!r}",
            expected=f"one of {', '.join(known)}, or a path",
            hint=suggestion(name, known),
        )
    return path, f"{kind}/{name}.yaml"


def _parse_value(name: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"the value of {name!r} is not YAML", found=text) from error
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)  # YAML 1.1 reads 1e-3 as text
    return value


def _set(composed: Composed, name: str, value: Any, origin: str) -> None:
    parts = re.split(r"::|#", name)
    place: Any = composed.config
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        where = "::".join(parts[:depth]) or "the config"
        if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
            key: Any = int(part)
        elif isinstance(place, dict) and (part in place or (last and depth > 0 and part in arguments_of(place))):
            key = part
        else:
            known = list(place) + list(arguments_of(place)) if isinstance(place, dict) else range(len(place or ""))
            raise UsageError(
                f"id {name!r} is not known: {where} has no {part!r}",
                hint=_known_as(name) or suggestion(part, list(map(str, known))),
            )
        if last:
            place[key] = _like(place.get(key) if isinstance(place, dict) else place[key], value)
        else:
            place = place[key]
    composed.origins[name] = origin


def _known_as(name: str) -> str | None:
    """Return what an id of earlier versions is called today."""
    return "precision replaces it: float32 for false, auto for true" if name == "amp" else None


def _like(old: Any, new: Any) -> Any:
    """Take an int for a float where a float stood."""
    return float(new) if isinstance(old, float) and type(new) is int else new
