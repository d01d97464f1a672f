"""State dicts: as plain tensors, as bytes that repeat, and as one hash that says whether two are bit-identical."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.errors import DataError

if TYPE_CHECKING:
    import torch


WEIGHTS = "models/model.pt"
MEMBER = "models/member_{}.pt"
State = Mapping[str, "torch.Tensor"]


def weights_files(members: int) -> list[str]:
    """Return where a bundle of ours keeps its weights: one file, or one for each member of an ensemble."""
    return [WEIGHTS] if members == 1 else [MEMBER.format(index) for index in range(members)]


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict as plain contiguous tensors on the CPU; names of one tensor go on to name one.

    Raises:
        DataError: the file cannot be read without unpickling code, or it holds anything but tensors by name.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise many kinds
        raise DataError("the weights cannot be read", path=path, found=type(error).__name__) from error
    items = state.items() if isinstance(state, Mapping) else ()
    odd = next((name for name, value in items if not isinstance(value, torch.Tensor)), None)
    if not isinstance(state, Mapping) or odd is not None:
        raise DataError(
            "the weights are no state dict",
            path=path,
            found=type(state).__name__ if odd is None else f"{odd}: {type(state[odd]).__name__}",
            expected="tensors by name",
        )
    once: dict[tuple[Any, ...], torch.Tensor] = {}  # DynUNet names each weight twice
    return {
        str(name): once.setdefault(
            (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), tensor.detach().cpu().contiguous().clone()
        )
        for name, tensor in state.items()
    }


def load_network(definition: Mapping[str, Any], state: State) -> Any:
    """Build a network from its class and plain arguments, and load a state dict into it."""
    from monai.bundle import ConfigParser

    with contextlib.redirect_stdout(io.StringIO()):  # some networks print their features
        network = ConfigParser({"network_def": dict(definition)}).get_parsed_content("network_def")
    network.load_state_dict(state)
    return network


def require_fits(state: State, definition: Mapping[str, Any], path: Path) -> None:
    """Build the network and load the state dict into it.

    Raises:
        DataError: it cannot be built, or names or shapes differ.
    """
    try:
        load_network(definition, state)
    except Exception as error:  # MONAI wraps what a constructor raises
        raise DataError(
            "the weights do not fit the network",
            path=path,
            found=str(error).strip().splitlines()[-1][:200],
            expected=f"a state dict of {definition['_target_']}",
        ) from error


def torch_bytes(state: State) -> bytes:
    """Return it as `torch.save` writes it, without the name of a file, which would get into the bytes.

    A tensor that goes by several names, as those of MONAI's `DynUNet` do, is written once.
    """
    import torch

    once: dict[tuple[Any, ...], torch.Tensor] = {}
    shared = {}
    for name, tensor in state.items():
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        key = (tensor.dtype, tensor.shape, hashlib.sha256(values.tobytes()).digest())
        shared[name] = once.setdefault(key, tensor)
    buffer = io.BytesIO()
    torch.save(shared, buffer)
    return buffer.getvalue()


def safetensors_bytes(state: State, path: Path) -> bytes:
    """Return it as safetensors, read again and compared; a tensor of two names is written for each of them.

    Args:
        state: the tensors.
        path: of the weights, for errors.

    Raises:
        DataError: what is read again is not what was written.
    """
    from safetensors.torch import load, save

    content = bytes(save({name: tensor.clone() for name, tensor in state.items()}, {"format": "pt"}))
    if tensors_sha256(load(content)) != tensors_sha256(state):
        raise DataError("safetensors does not hold the same tensors", path=path)
    return content


def tensors_sha256(state: State) -> str:
    """Return one SHA-256 over names, dtypes, shapes and bytes, whatever their order and the file they stand in."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        head = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(head).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
