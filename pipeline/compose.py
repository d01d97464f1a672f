"""Fragments and overrides become one MONAI config; what MONAI would pass in silence is refused here.

A fragment is a small YAML file in ``configs/<kind>/``, or one of the user's own given by path. Kinds own disjoint
top-level ids (`OWNED`), so the order of fragments does not matter and MONAI's own merge gives the same result.
"""

from __future__ import annotations

import copy
import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UsageError
from pipeline.files import read_yaml

OWNED: dict[str, tuple[str, ...]] = {
    "task": (
        "task_name", "channels", "labels", "in_channels", "out_channels", "activation", "patch_size",
        "deterministic_transforms",
    ),
    "network": ("network_name", "network_def", "patch_divisor"),
    "loss": ("loss_name", "loss"),
    "augment": ("random_transforms",),
    "runtime": (
        "device", "amp", "threads", "num_workers", "batch_size", "max_epochs", "learning_rate", "optimizer",
        "lr_scheduler", "val_interval", "early_stop_patience", "cache_rate", "overlap", "sw_batch_size",
        "max_gradient_norm",
    ),
}  # fmt: skip
REFERENCE = re.compile(r"@([A-Za-z_]\w*(?:(?:::|#)\w+)*)")


class Settings(BaseModel):
    """Types and ranges of the ids that are plain values."""

    model_config = ConfigDict(strict=True, extra="ignore")

    task_name: str
    channels: list[str] = Field(min_length=1)
    labels: list[str] = Field(min_length=2)
    in_channels: int = Field(gt=0)
    out_channels: int = Field(gt=0)
    activation: str = Field(pattern="^(softmax|sigmoid)$")
    patch_size: list[int] = Field(min_length=3, max_length=3)
    network_name: str
    patch_divisor: int = Field(gt=0)
    loss_name: str
    amp: bool
    threads: int = Field(gt=0)
    num_workers: int = Field(ge=0)
    batch_size: int = Field(gt=0)
    max_epochs: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    val_interval: int = Field(gt=0)
    early_stop_patience: int = Field(ge=0)
    cache_rate: float = Field(ge=0, le=1)
    overlap: float = Field(ge=0, lt=1)
    sw_batch_size: int = Field(gt=0)
    max_gradient_norm: float = Field(gt=0)
    seed: int = Field(ge=0)
    fold: int | None = Field(ge=0)


@dataclass
class Composed:
    """A config and, for every top-level id and override, where its value came from."""

    config: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def configs_folder() -> Path:
    """The fragments: inside an installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return next(
        folder for folder in (here / "configs", here.parent / "configs") if (folder / "train.yaml").is_file()
    )


def known_fragments(kind: str) -> list[str]:
    """Names of the shipped fragments of a kind."""
    return sorted(path.stem for path in (configs_folder() / kind).glob("*.yaml"))


def compose(
    fragments: Mapping[str, str],
    overrides: Iterable[str] = (),
    values: Mapping[str, tuple[Any, str]] | None = None,
) -> Composed:
    """Make the config of a training run.

    Args:
        fragments: kind to name or path; every kind of `OWNED` is needed.
        overrides: ``id=value`` with the value in YAML; nested ids as ``network_def#channels``.
        values: ids that the command line sets, with the option that set them.

    Returns:
        The config (still with its references) and the origins.

    Raises:
        UsageError: an unknown fragment, id, argument or reference, or a value of the wrong type or range; the
            message names the nearest known one.
    """
    skeleton = configs_folder() / "train.yaml"
    made = Composed(read_yaml(skeleton), {})
    made.origins = dict.fromkeys(made.config, "train.yaml")
    for kind in OWNED:
        _add_fragment(made, kind, fragments[kind])
    for name, (value, option) in (values or {}).items():
        _set(made, name, value, option)
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise UsageError("an override is written id=value", found=override)
        _set(made, name.strip(), _parse_value(name, text), "--set")
    _check_settings(made.config)
    _check_sense(made)
    _check_references(made.config)
    return made


def _add_fragment(made: Composed, kind: str, name: str) -> None:
    path, shown = _find_fragment(kind, name)
    content = read_yaml(path, f"{kind} fragment")
    if not isinstance(content, dict):
        raise UsageError(f"a {kind} fragment must be a mapping", path=path, found=type(content).__name__)
    for key in content:
        if key not in OWNED[kind]:
            owner = next((other for other, ids in OWNED.items() if key in ids), None)
            raise UsageError(
                f"id {key!r} is not known in a {kind} fragment",
                path=path,
                expected=f"one of {', '.join(OWNED[kind])}",
                hint=f"it belongs in a {owner} fragment" if owner else _nearest(key, OWNED[kind]),
            )
    missing = [key for key in OWNED[kind] if key not in content]
    if missing:
        raise UsageError(f"the {kind} fragment lacks {', '.join(missing)}", path=path)
    made.config.update(copy.deepcopy(content))
    made.origins.update(dict.fromkeys(content, shown))


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
            hint=_nearest(name, known),
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


def _set(made: Composed, name: str, value: Any, origin: str) -> None:
    parts = re.split(r"::|#", name)
    place: Any = made.config
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        where = "::".join(parts[:depth]) or "the config"
        if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
            key: Any = int(part)
        elif isinstance(place, dict) and (
            part in place or (last and depth > 0 and part in _arguments(place))
        ):
            key = part
        else:
            known = (
                list(place) + list(_arguments(place)) if isinstance(place, dict) else range(len(place or ""))
            )
            raise UsageError(
                f"id {name!r} is not known: {where} has no {part!r}",
                hint=_nearest(part, list(map(str, known))),
            )
        if last:
            place[key] = _like(place.get(key) if isinstance(place, dict) else place[key], value)
        else:
            place = place[key]
    made.origins[name] = origin


def _like(old: Any, new: Any) -> Any:
    """An int is taken for a float where a float stood."""
    return float(new) if isinstance(old, float) and type(new) is int else new


def _check_settings(config: dict[str, Any]) -> None:
    plain = {
        name: float(value) if info.annotation is float and type(value) is int else value
        for name, info in Settings.model_fields.items()
        if not isinstance(value := config.get(name), str) or not value.startswith(("$", "@"))
    }
    try:
        Settings.model_validate(plain)
    except ValidationError as error:
        faults = [fault for fault in error.errors() if fault["type"] != "missing" or fault["loc"][0] not in config]
        if not faults:
            return  # what is left is given by references
        first = faults[0]
        name = str(first["loc"][0])
        raise UsageError(
            f"the value of {name!r} cannot be used: {first['msg']}", found=repr(config.get(name))
        ) from error


def _check_sense(made: Composed) -> None:
    config = made.config
    expected = len(config["labels"]) - (config["activation"] == "sigmoid")
    if config["out_channels"] != expected:
        raise UsageError(
            "out_channels does not fit labels and activation", found=config["out_channels"], expected=expected
        )
    if config["in_channels"] != len(config["channels"]):
        raise UsageError(
            "in_channels does not fit channels", found=config["in_channels"], expected=len(config["channels"])
        )
    divisor = config["patch_divisor"]
    padded = [-(-size // divisor) * divisor for size in config["patch_size"]]
    if padded != config["patch_size"]:
        made.notes.append(
            f"patch_size {config['patch_size']} padded to {padded}: the network halves it to 1/{divisor}"
        )
        made.origins["patch_size"] += f", padded to multiples of {divisor}"
        config["patch_size"] = padded
    sides = [name for name in config["labels"] if re.search(r"(?i)(^|[^a-z])(left|right)([^a-z]|$)", name)]
    if sides and _mirrors(config["random_transforms"]):
        raise UsageError(
            "mirroring left and right would teach wrong labels", found=f"labels {', '.join(sides)}",
            hint="choose --augment light or none",
        )  # fmt: skip


def _mirrors(transforms: list[Any]) -> bool:
    for transform in transforms:
        target = str(transform.get("_target_", "")).rsplit(".", 1)[-1]
        axis = transform.get("spatial_axis")
        if target == "RandAxisFlipd" or (
            target == "RandFlipd" and (axis is None or 0 in ([axis] if isinstance(axis, int) else axis))
        ):
            return True
    return False


def _check_references(config: dict[str, Any]) -> None:
    for where, text in _texts(config):
        if text.startswith(("@", "$")):
            for name in REFERENCE.findall(text):
                place: Any = config
                for part in re.split(r"::|#", name):
                    if isinstance(place, dict) and part in place:
                        place = place[part]
                    elif isinstance(place, list) and part.isdecimal() and int(part) < len(place):
                        place = place[int(part)]
                    else:
                        known = list(place) if isinstance(place, dict) else []
                        raise UsageError(
                            f"{where} refers to @{name}, which is not there",
                            found=text,
                            hint=_nearest(part, known),
                        )


def check_components(config: dict[str, Any]) -> None:
    """Refuse targets that cannot be found and arguments that they do not take. Imports MONAI.

    Raises:
        UsageError: naming the place, and the nearest known argument.
    """
    for where, component in _components(config):
        target = component["_target_"]
        known = _arguments(component)
        if known is None or not known:
            continue
        for key in component:
            if key.startswith("_") and key.endswith("_"):
                continue
            if key not in known and "**" not in known:
                raise UsageError(
                    f"{where}: {target} takes no argument {key!r}",
                    hint=_nearest(key, [name for name in known if name != "**"]),
                )


def _arguments(component: Mapping[str, Any]) -> tuple[str, ...]:
    """Names that a component's target takes (``**`` for any); empty where there is no target."""
    import inspect
    from pydoc import ErrorDuringImport, locate

    target = component.get("_target_")
    if not isinstance(target, str):
        return ()
    module = _locator().get_component_module_name(target)
    module = module[0] if isinstance(module, list) else module
    try:
        found = locate(f"{module}.{target}" if module else target)
    except ErrorDuringImport:
        found = None
    if found is None:
        raise UsageError(
            f"no component {target!r}", hint="a MONAI class by its name, or a dotted path to import"
        )
    arguments: list[str] = []
    for parameter in inspect.signature(found).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.append("**")
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            arguments.append(parameter.name)
    return tuple(arguments) or ("**",)


@functools.cache
def _locator() -> Any:
    from monai.bundle.config_item import ComponentLocator

    return ComponentLocator()


def _components(node: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        for key, value in node.items():
            yield from _components(value, f"{where}::{key}" if where else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _components(value, f"{where}::{index}")


def _texts(node: Any, where: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield where, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, f"{where}::{key}" if where else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _texts(value, f"{where}::{index}")


def _nearest(word: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else None
