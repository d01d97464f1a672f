"""Networks with a bundle's weights, read as they were vetted."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segpipe.errors import DataError, RefusedError
from segpipe.inference.bottleneck import Bottleneck
from segpipe.inference.recipe import BundleFiles
from segpipe.inference.transforms import root_cause


@dataclass(frozen=True, eq=False)
class Model:
    """A network, and what its conversion depends on beside its input, versions and processor.

    Attributes:
        module: on the CPU where it is converted, and in evaluation mode.
        weights: path of the state dict.
        config: the network's config as text.
        bundle: hash of the bundle, which has a folder of conversions of its own.
        bottleneck: is shown what the network holds of each window; None where nobody asked.
    """

    module: torch.nn.Module
    weights: str
    config: str
    bundle: str = ""
    bottleneck: Bottleneck | None = None


def load_models(bundles: Iterable[BundleFiles], networks: Iterable[Any], device: torch.device) -> list[Model]:
    """Return the networks of bundles, which were built from their configs, with their weights: one for each file.

    Raises:
        DataError: as `load_weights`.
    """
    return [
        Model(
            load_weights(copy.deepcopy(network) if bundle.members else network, file.path, device, file.sha256),
            file.path,
            json.dumps(bundle.inference, sort_keys=True, default=str),
            bundle.sha256,
        )
        for bundle, network in zip(bundles, networks, strict=True)
        for file in bundle.all_weights
    ]


def load_weights(network: Any, weights: str, device: torch.device, sha256: str = "") -> torch.nn.Module:
    """Return a network with a bundle's weights, in evaluation mode.

    Args:
        network: as it was built.
        weights: path of the state dict.
        device: where the network is to be.
        sha256: of the file that was vetted, which is compared with the open file that is loaded; empty where none was.

    Raises:
        DataError: they cannot be read, do not fit, or are not finite: their scores would all pass for background.
        RefusedError: they are not those that were vetted.
    """
    try:
        with Path(weights).open("rb") as stream:
            if sha256 and (found := hashlib.file_digest(stream, "sha256").hexdigest()) != sha256:
                raise RefusedError(
                    "the bundle's weights were changed after they were vetted",
                    path=weights,
                    found=f"sha256 {found}",
                    expected=sha256,
                    hint="find out who writes into the bundle, then try again",
                )
            stream.seek(0)
            state = torch.load(stream, map_location=device, weights_only=True)
        network.load_state_dict(state.get("model", state))  # as MONAI's CheckpointLoader
    except RefusedError:
        raise
    except OSError as error:
        raise DataError("the bundle's weights cannot be read", path=weights, found=error.strerror) from error
    except Exception as error:
        raise DataError("the bundle's weights do not fit its network", path=weights, found=root_cause(error)) from error
    require_finite(network.state_dict(), Path(weights), "its training went wrong; get other weights")
    module: torch.nn.Module = network.to(device).eval()
    return module


def require_finite(state: Mapping[str, torch.Tensor], path: Path, hint: str) -> None:
    """Refuse a state dict with NaN or infinity in it.

    Args:
        state: tensors by name.
        path: of their file, for the error.
        hint: what to do about it.

    Raises:
        DataError: naming the first such tensor.
    """
    broken = next((name for name, tensor in state.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise DataError("the weights are not finite", path=path, found=f"NaN or infinity in {broken}", hint=hint)
