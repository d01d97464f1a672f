"""The weights of one network given to another: which tensors fit, which are adapted, which begin anew.

What the parts of a tensor mean is asked of the network: an axis that grows with ``out_channels`` has an entry for each
output, one that grows with ``in_channels`` an entry for each image channel. Along these, entries of the same name are
copied, in whatever order they stand, and the others keep the values that they begin with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from segpipe.bundle import State
from segpipe.errors import UsageError
from segpipe.training.network_cost import build_network, shapes_of_network


@dataclass(frozen=True)
class Names:
    """What the channels of a network mean.

    Attributes:
        inputs: name of each image channel.
        outputs: name of each output channel: labels with background under a softmax; without it, or regions, under a
            sigmoid.
        activation: ``softmax`` or ``sigmoid``; outputs of the one are none of the other.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    activation: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Names:
        """Return those of a training config."""
        labels = tuple(config.get("regions") or config["labels"])
        return cls(tuple(config["channels"]), labels[len(labels) - config["out_channels"] :], config["activation"])

    def outputs_like(self, other: Names) -> tuple[str, ...]:
        """Return the names of the outputs, as far as they are scores of the same kind as those of another network."""
        return self.outputs if self.activation == other.activation else tuple("" for _ in self.outputs)


@dataclass(frozen=True, eq=False)
class Adapted:
    """A state dict that a training begins with, and where its tensors are from.

    Attributes:
        state: of the whole network.
        taken: names of the tensors that are the parent's.
        adapted: of those with some entries of the parent's.
        new: of those that begin anew.
        unused: names of the parent's tensors that the network does not have.
        inputs, outputs: names of the channels whose weights were taken.
    """

    state: State = field(repr=False)
    taken: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def counts(self) -> str:
        """Say how many tensors there are of each kind."""
        kinds = {name: len(getattr(self, name)) for name in ("taken", "adapted", "new", "unused")}
        words = ", ".join(f"{count} {name}" for name, count in kinds.items() if count and name != "unused")
        return words + (f"; {kinds['unused']} of the parent's have no place" if kinds["unused"] else "")


def adapt(parent: State, theirs: Names, config: Mapping[str, Any]) -> Adapted:
    """Return what the network of a config begins with, given the weights of another one.

    A tensor is taken where name, type and shape are equal and its axes mean the same; adapted where they mean something
    else in part; else it begins anew, with the numbers that the config's seed gives.

    Args:
        parent: state dict of the other network.
        theirs: what its channels mean.
        config: of the training, with its references.

    Raises:
        UsageError: the network does not follow ``in_channels`` and ``out_channels``, or nothing fits it.
    """
    ours = Names.of(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        fresh = _plain(build_network(config).state_dict())
    following = {name: _following(config, name, fresh) for name in ("in_channels", "out_channels")}
    places = (
        _Axis(theirs.inputs, ours.inputs, following["in_channels"]),
        _Axis(theirs.outputs_like(ours), ours.outputs, following["out_channels"]),
    )
    state, kinds = {}, {}
    for name, begun in fresh.items():
        state[name], kinds[name] = _adapted(
            begun, parent.get(name), [(axis, axis.axes.get(name, ())) for axis in places]
        )
    by_kind = {kind: tuple(name for name in state if kinds[name] == kind) for kind in ("taken", "adapted", "new")}
    if not any(state[name].ndim > 1 for name in (*by_kind["taken"], *by_kind["adapted"])):
        raise UsageError(
            "no weights of the parent fit the network",
            found=f"network {config['network_name']}: {len(fresh)} tensors, none of which has a counterpart",
            hint="leave --network out, which takes the parent's own",
        )
    unused = tuple(name for name in parent if name not in state)
    common = [tuple(name for name in axis.ours if name and name in axis.theirs) for axis in places]
    return Adapted(state, **by_kind, unused=unused, inputs=common[0], outputs=common[1])


@dataclass(frozen=True)
class _Axis:
    """Entries that have names: of both networks, and along which axes of a tensor of ours they lie."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    axes: Mapping[str, tuple[int, ...]]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Index of ours and of theirs, of each name that both have."""
        return [(ours, self.theirs.index(name)) for ours, name in enumerate(self.ours) if name in self.theirs and name]

    @property
    def is_same(self) -> bool:
        return self.ours == self.theirs


def _adapted(
    fresh: torch.Tensor, parent: torch.Tensor | None, places: Sequence[tuple[_Axis, tuple[int, ...]]]
) -> tuple[torch.Tensor, str]:
    """Return a tensor with what it has of the parent's, and which kind that makes it."""
    if parent is None or parent.dtype != fresh.dtype or parent.ndim != fresh.ndim:
        return fresh, "new"
    if parent.shape == fresh.shape and all(axis.is_same for axis, axes in places if axes):
        return parent.clone(), "taken"
    named = {number: axis for axis, axes in places for number in axes}
    ours, theirs = [], []
    for number, (length, other) in enumerate(zip(fresh.shape, parent.shape, strict=True)):
        axis = named.get(number)
        sizes = (len(axis.ours), len(axis.theirs)) if axis else (other, other)
        if (length, other) != sizes:
            return fresh, "new"
        pairs = axis.pairs if axis else [(index, index) for index in range(length)]
        ours.append([pair[0] for pair in pairs])
        theirs.append([pair[1] for pair in pairs])
    if not named or not all(ours):
        return fresh, "new"
    tensor = fresh.clone()
    tensor[_grid(ours)] = parent[_grid(theirs)]
    return tensor, "adapted"


def _grid(indices: Sequence[Sequence[int]]) -> tuple[torch.Tensor, ...]:
    """Return an open mesh: every combination of the indices along each axis."""
    count = len(indices)
    return tuple(
        torch.tensor(each).reshape([-1 if axis == place else 1 for axis in range(count)])
        for place, each in enumerate(indices)
    )


def _following(config: Mapping[str, Any], name: str, fresh: State) -> dict[str, tuple[int, ...]]:
    """Return which axes of which tensors grow with the number of channels, by building a network with one more.

    Raises:
        UsageError: none does.
    """
    for more in (1, 2):  # a block may have another form where it has as many inputs as outputs
        grown = shapes_of_network({**config, name: config[name] + more}).state_dict()
        if grown.keys() == fresh.keys():
            break
    axes = {
        key: tuple(
            axis for axis, sizes in enumerate(zip(tensor.shape, grown[key].shape, strict=True)) if sizes[0] != sizes[1]
        )
        for key, tensor in fresh.items()
        if key in grown
    }
    if not any(axes.values()):
        raise UsageError(
            f"the network does not follow {name}",
            found=f"network_def without @{name}",
            expected=f'{name}: "@{name}" in network_def, so that it is known which weights are of which channel',
        )
    return axes


def _plain(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
