"""A network that begins with the weights of another training, and modules of it that stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from segpipe.errors import DataError


def pretrained_network(network: torch.nn.Module, weights: str = "", frozen: Sequence[str] = ()) -> torch.nn.Module:
    """Return the network itself with the weights of a file, and with modules that no step changes.

    A frozen module has no gradients, and stays in evaluation mode: running statistics of its normalisation stay as they
    are and are what it normalises by, and its dropout is off. Names in the state dict are as they were.

    Args:
        network: any; with frozen modules its class becomes one that is derived from it.
        weights: state dict of the whole network, as ``torch.save`` writes it; empty: the network keeps its own.
        frozen: names of modules, such as ``encoder``.

    Raises:
        DataError: the file is not there, cannot be read, or is not of this network.
    """
    if weights:
        _load(network, Path(weights))
    if not frozen:
        return network
    kind = type(network)
    network.__class__ = type(kind.__name__, (_PartlyFrozen, kind), {"__module__": kind.__module__})
    network._frozen = tuple(frozen)
    for name in frozen:
        network.get_submodule(name).requires_grad_(False)
    return network.train(network.training)


def copy_frozen(network: torch.nn.Module, copied: torch.nn.Module) -> None:
    """Give a copy of a network the tensors of its frozen modules, bit for bit; nothing where none is frozen."""
    for name in getattr(network, "_frozen", ()):
        copied.get_submodule(name).load_state_dict(network.get_submodule(name).state_dict())


def _load(network: torch.nn.Module, path: Path) -> None:
    if not path.is_file():
        raise DataError(
            "the weights that the training begins with are not there",
            path=path,
            hint="a run has them beside its config.json; those of a bundle are made from its parent: "
            "`segpipe reproduce BUNDLE --data DATA --parent PARENT`",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except Exception as error:  # torch and pickle raise many kinds
        raise DataError(
            "the weights that the training begins with cannot be loaded",
            path=path,
            found=str(error).strip().splitlines()[-1][:200],
            expected=f"a state dict of {type(network).__name__}",
            hint="put back the file that `segpipe train` wrote",
        ) from error


class _PartlyFrozen(torch.nn.Module):
    """A network some modules of which stay in evaluation mode; a class, so that a copy of it is one as well."""

    _frozen: Any

    def train(self, mode: bool = True) -> Any:
        """Set the mode of all but what is frozen."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).train(False)
        return self
