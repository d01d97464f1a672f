"""A bundle's parts as objects: device, components of its config, network with weights."""

from __future__ import annotations

from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from pipeline.errors import DataError, UsageError
from pipeline.inference.stock import root_cause


def device_of(name: str) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda:N`` names.

    Raises:
        UsageError: it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:
        raise UsageError(
            "this device cannot be used", found=name, expected="auto, cpu or cuda:N", hint="try --device cpu"
        ) from error
    return device


def parsed(parser: ConfigParser, id: str) -> Any:
    """What MONAI makes of an id of a bundle's config; a list of transforms is composed.

    Raises:
        DataError: there is no such id, or it cannot be built.
    """
    if id not in parser.config:
        raise DataError(
            f"the bundle's inference config has no {id!r}", found=sorted(parser.config),
            hint="it cannot be run case by case; run it with `python -m monai.bundle run`",
        )  # fmt: skip
    try:
        value = parser.get_parsed_content(id)
    except Exception as error:
        raise DataError(f"the bundle's {id!r} cannot be built", found=root_cause(error)) from error
    return Compose(value) if isinstance(value, list) else value


def load(network: Any, weights: str, device: torch.device) -> torch.nn.Module:
    """A network with a bundle's weights, in evaluation mode.

    Raises:
        DataError: they cannot be read, do not fit, or are not finite: their scores would all pass for background.
    """
    try:
        state = torch.load(weights, map_location=device, weights_only=True)
        network.load_state_dict(state.get("model", state))  # as MONAI's CheckpointLoader
    except OSError as error:
        raise DataError("the bundle's weights cannot be read", path=weights, found=error.strerror) from error
    except Exception as error:
        raise DataError(
            "the bundle's weights do not fit its network", path=weights, found=root_cause(error)
        ) from error
    broken = next((name for name, each in network.state_dict().items() if not each.isfinite().all()), None)
    if broken is not None:
        raise DataError(
            "the bundle's weights are not finite", path=weights, found=f"NaN or infinity in {broken}",
            hint="its training went wrong; get other weights",
        )  # fmt: skip
    module: torch.nn.Module = network.to(device).eval()
    return module
