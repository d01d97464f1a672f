"""Whether the plain values of a config make sense, alone and together."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from pipeline.errors import UsageError


class Settings(BaseModel):
    """Types and ranges of the ids that are plain values."""

    model_config = ConfigDict(strict=True, extra="ignore")

    task_name: str
    channels: list[str] = Field(min_length=1)
    labels: list[str] = Field(min_length=2)
    in_channels: int = Field(gt=0)
    out_channels: int = Field(gt=0)
    activation: str = Field(pattern="^(softmax|sigmoid)$")
    patch_size: list[PositiveInt] = Field(min_length=3, max_length=3)
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


def check_settings(config: dict[str, Any]) -> None:
    """Types and ranges.

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
        faults = [
            fault for fault in error.errors() if fault["type"] != "missing" or fault["loc"][0] not in config
        ]
        if not faults:
            return  # what is left is given by references
        first = faults[0]
        name = str(first["loc"][0])
        raise UsageError(
            f"the value of {name!r} cannot be used: {first['msg']}", found=repr(config.get(name))
        ) from error


def check_sense(config: dict[str, Any]) -> None:
    """Values that must fit each other.

    Raises:
        UsageError: channels or labels that do not fit the network, or mirroring where labels have sides.
    """
    expected = len(config["labels"]) - (config["activation"] == "sigmoid")
    if config["out_channels"] != expected:
        raise UsageError(
            "out_channels does not fit labels and activation", found=config["out_channels"], expected=expected
        )
    if config["in_channels"] != len(config["channels"]):
        raise UsageError(
            "in_channels does not fit channels", found=config["in_channels"], expected=len(config["channels"])
        )
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
