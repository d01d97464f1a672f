"""What MONAI would pass in silence: values, references, targets and arguments of a config, and the patch of a network.

A refusal names the nearest known word.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from segpipe.errors import UsageError


class Settings(BaseModel):
    """Types and ranges of the ids that are plain values."""

    model_config = ConfigDict(strict=True, extra="ignore")

    task_name: str
    channels: list[str] = Field(min_length=1)
    labels: list[str] = Field(min_length=2)
    ignore_label: int | None = Field(ge=1, le=255)
    regions: dict[str, list[int]]
    annotated_sets: list[list[int]]
    in_channels: int = Field(gt=0)
    out_channels: int = Field(gt=0)
    activation: str = Field(pattern="^(softmax|sigmoid)$")
    patch_size: list[PositiveInt] = Field(min_length=3, max_length=3)
    network_name: str
    patch_divisor: PositiveInt | Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    loss_name: str
    precision: str = Field(pattern="^(auto|float32|bfloat16|float16)$")
    channels_last: bool
    threads: int = Field(gt=0)
    num_workers: int = Field(ge=0)
    processes: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    steps_per_epoch: int = Field(ge=0)
    max_epochs: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    val_interval: int = Field(gt=0)
    early_stop_patience: int = Field(ge=0)
    averaging: float = Field(ge=0, lt=1)
    warmup_epochs: int = Field(ge=0)
    keep_weights: str = Field(pattern="^(best|last)$")
    cache_rate: float = Field(ge=0, le=1)
    store: str | None = Field(min_length=1)
    overlap: float = Field(ge=0, lt=1)
    sw_batch_size: int = Field(gt=0)
    max_gradient_norm: float = Field(gt=0)
    seed: int = Field(ge=0)
    fold: int | None = Field(ge=0)


def check_settings(config: dict[str, Any]) -> None:
    """Refuse values of a wrong type or range.

    Raises:
        UsageError: naming the id and the value.
    """
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


def check_sense(config: dict[str, Any]) -> None:
    """Refuse values that do not fit each other.

    Raises:
        UsageError: channels or labels that do not fit the network, or a warm-up of the whole run.
    """
    warm, epochs = config["warmup_epochs"], config["max_epochs"]
    if isinstance(warm, int) and isinstance(epochs, int) and 0 < epochs <= warm:
        raise UsageError(
            "the warm-up is as long as the run", found=f"warmup_epochs {warm}", expected=f"less than {epochs} epochs"
        )
    regions, sigmoid = config["regions"], config["activation"] == "sigmoid"
    if regions and not sigmoid:
        raise UsageError("regions may overlap, which softmax excludes", found=config["activation"], expected="sigmoid")
    expected = len(regions) if regions else len(config["labels"]) - sigmoid
    _check_values(config)
    if config["out_channels"] != expected:
        raise UsageError(
            "out_channels does not fit labels and activation", found=config["out_channels"], expected=expected
        )
    if config["in_channels"] != len(config["channels"]):
        raise UsageError(
            "in_channels does not fit channels", found=config["in_channels"], expected=len(config["channels"])
        )


def _check_values(config: Mapping[str, Any]) -> None:
    """Refuse an ignored value that is a label, and regions or sets of labels that name what is none."""
    labels = range(1, len(config["labels"]))
    if len(config["regions"]) > MOST_REGIONS:
        raise UsageError("too many regions", found=len(config["regions"]), expected=f"at most {MOST_REGIONS}")
    if config["ignore_label"] is not None and config["ignore_label"] <= labels[-1]:
        raise UsageError(
            "ignore_label is the value of a label", found=config["ignore_label"], expected=f"from {len(labels) + 1}"
        )
    sets = {
        **config["regions"],
        **{f"annotated_sets {index}": each for index, each in enumerate(config["annotated_sets"])},
    }
    for name, values in sets.items():
        if not values or not set(values) <= set(labels):
            raise UsageError(f"{name} names what is no label", found=values, expected=f"of {labels[0]} to {labels[-1]}")


MOST_REGIONS = 8  # what a prediction keeps of a voxel in a byte
REFERENCE = re.compile(r"@([A-Za-z_]\w*(?:(?:::|#)\w+)*)")


def check_references(config: dict[str, Any]) -> None:
    """Refuse a reference to an id that is not there.

    Raises:
        UsageError: naming the place, and the nearest id.
    """
    for where, text in _nodes(config):
        if isinstance(text, str) and text.startswith(("@", "$")):
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
                            f"{where} refers to @{name}, which is not there", found=text, hint=suggestion(part, known)
                        )


def check_components(config: dict[str, Any]) -> None:
    """Refuse targets that cannot be found and arguments that they do not take. Imports MONAI.

    Raises:
        UsageError: naming the place, and the nearest known argument.
    """
    for where, component in _nodes(config):
        known = arguments_of(component) if isinstance(component, dict) else ()
        if not known:
            continue
        for key in component:
            if key.startswith("_") and key.endswith("_"):
                continue
            if key not in known and "**" not in known:
                raise UsageError(
                    f"{where}: {component['_target_']} takes no argument {key!r}",
                    hint=suggestion(key, [name for name in known if name != "**"]),
                )


def arguments_of(component: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names that a component's target takes (``**`` for any); empty where there is no target."""
    import inspect
    from pydoc import ErrorDuringImport, locate

    target = component.get("_target_")
    if not isinstance(target, str):
        return ()
    module = _locator().get_component_module_name(target)
    module = module[0] if isinstance(module, list) else module
    try:
        callee = locate(f"{module}.{target}" if module else target)
    except ErrorDuringImport:
        callee = None
    if not callable(callee):
        raise UsageError(f"no component {target!r}", hint="a MONAI class by its name, or a dotted path to import")
    arguments: list[str] = []
    for parameter in inspect.signature(callee).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.append("**")
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            arguments.append(parameter.name)
    return tuple(arguments) or ("**",)


@functools.cache
def _locator() -> Any:
    from monai.bundle.config_item import ComponentLocator

    return ComponentLocator()


def _nodes(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a config, with the id where it stands."""
    yield where, node
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in parts:
        yield from _nodes(value, f"{where}::{key}" if where else str(key))


def divisors_of(divisor: int | Sequence[int]) -> tuple[int, int, int]:
    """Return a divisor for each axis."""
    x, y, z = [divisor] * 3 if isinstance(divisor, int) else divisor
    return x, y, z


def divisor_words(divisor: int | Sequence[int]) -> str:
    """Return it as a reader is told: ``8``, or ``16x16x4`` where axes differ."""
    axes = divisors_of(divisor)
    return str(axes[0]) if len(set(axes)) == 1 else "x".join(map(str, axes))


def padded_patch(size: Sequence[int], divisor: int | Sequence[int]) -> list[int]:
    """Return the smallest patch that holds ``size`` and that the network can halve down to 1/``divisor``.

    Each axis becomes a multiple of ``divisor``, or of its own. Where one voxel alone would be left at the bottom, which
    no normalisation can work on, the longest axis is doubled.
    """
    divisors = list(divisors_of(divisor))
    padded = [-(-length // each) * each for length, each in zip(size, divisors, strict=True)]
    if padded == divisors:
        padded[list(size).index(max(size))] *= 2
    return padded


def check_network(config: Mapping[str, Any]) -> None:
    """Refuse a network that does not take the patch, or whose scores do not fit the truth. Imports MONAI.

    A network that cannot run on shapes alone passes; its first step will tell.

    Args:
        config: a whole config, with its references.

    Raises:
        UsageError: saying what the network gave and what was expected.
    """
    from segpipe.training.network_cost import output_shapes, shapes_of_network

    network = shapes_of_network(config)
    channels, patch = config["in_channels"], tuple(config["patch_size"])
    expected = (1, config["out_channels"], *patch)  # the last batch of an epoch may hold one case
    for training in (True, False):
        shapes = output_shapes(network.train(training), (1, channels, *patch))
        if shapes is None:
            return
        mode = "training" if training else "evaluation"
        if not shapes or shapes[0] != expected or any(shape[:2] != expected[:2] for shape in shapes):
            raise UsageError(
                f"the network's scores do not fit the truth in {mode}",
                found=f"shapes {shapes}",
                expected=f"{expected}, finest first",
                hint="patch_divisor, out_channels and the strides of network_def must fit each other",
            )
        if not training and len(shapes) > 1:
            raise UsageError(
                "the network gives several scores in evaluation",
                found=f"{len(shapes)} heads",
                expected="one",
                hint="deep_supervision false, or for UNet++ segpipe.components.UNetPlusPlus",
            )


def suggestion(word: str, words: Iterable[str]) -> str | None:
    """Return a hint that names the known word most like this one, or None."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else None
