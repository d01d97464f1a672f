"""What a network holds of an image where it holds it in the fewest voxels, as a few numbers: its pooled bottleneck.

It is taken while scores are computed, so that it costs nothing beside them, by PyTorch and by OpenVINO alike.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.hooks import RemovableHandle

COARSER = 8  # times fewer voxels than a window, at least, or a network has no bottleneck
GLOBAL = (
    torch.nn.AdaptiveAvgPool2d,
    torch.nn.AdaptiveAvgPool3d,
    torch.nn.AdaptiveMaxPool2d,
    torch.nn.AdaptiveMaxPool3d,
)


class Bottleneck:
    """The mean over windows of what a network holds of them; nothing is kept unless somebody watches."""

    def __init__(self) -> None:
        self._watched = False
        self._sum: torch.Tensor | None = None
        self._windows = 0

    def watch(self) -> None:
        """Begin with a case."""
        self._watched, self._sum, self._windows = True, None, 0

    def add(self, pooled: torch.Tensor) -> None:
        """Take what is held of some windows, (N, C)."""
        if not self._watched:
            return
        held = pooled.detach().float().sum(0)
        self._sum = held.clone() if self._sum is None else self._sum + held
        self._windows += len(pooled)

    def taken(self) -> NDArray[np.float64]:
        """Return the mean (C,) over all windows since `watch`, and look away; empty where there was none."""
        held, self._watched, self._sum = self._sum, False, None
        return np.zeros(0) if held is None else held.cpu().numpy().astype(np.float64) / self._windows

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Take nothing of what is computed meanwhile where it fails: it is computed again."""
        held, windows = self._sum, self._windows
        try:
            yield
        except BaseException:
            self._sum, self._windows = held, windows
            raise

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Pass over windows for the time being."""
        watched, self._watched = self._watched, False
        try:
            yield
        finally:
            self._watched = watched


@dataclass(frozen=True)
class Place:
    """Where a network's bottleneck is.

    Attributes:
        module: name of the module that takes or gives it.
        is_input: whether it takes it, as its first argument.
    """

    module: str
    is_input: bool

    def watched(self, network: torch.nn.Module, look: Callable[[torch.Tensor], object]) -> RemovableHandle:
        """Show what passes there, until the handle is removed."""
        module = network.get_submodule(self.module)
        if self.is_input:
            return module.register_forward_pre_hook(lambda _, given: look(given[0]))
        return module.register_forward_hook(lambda _, __, output: look(output))


class Pooled(torch.nn.Module):
    """A network that gives, beside its scores, what it holds in its bottleneck of each window: (N, C).

    Args:
        network: as it is.
        place: of its bottleneck.
    """

    def __init__(self, network: torch.nn.Module, place: Place) -> None:
        super().__init__()
        self.network, self.place = network, place

    def forward(self, windows: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Return scores (N, K, X, Y, Z) and means (N, C)."""
        held: dict[int, torch.Tensor] = {}

        def look(values: torch.Tensor) -> None:  # of a module that is called at several sizes, the last is the fewest
            held[math.prod(values.shape[2:])] = values.mean(dim=list(range(2, values.ndim)))

        handle = self.place.watched(self.network, look)
        try:
            scores = only(self.network(windows))
        finally:
            handle.remove()
        return scores, held[min(held)]


def only(scores: Any) -> Any:
    """Return of a list of one output that one, as MONAI's inferer takes it."""
    return scores[0] if isinstance(scores, (list, tuple)) and len(scores) == 1 else scores


def pooled(network: torch.nn.Module, shape: Sequence[int]) -> torch.nn.Module:
    """Return a network that gives its bottleneck as well; the network itself where none is found.

    Args:
        network: windows (N, C, X, Y, Z) to scores.
        shape: (C, X, Y, Z) of a window.
    """
    place = bottleneck_of(network, shape)
    return network if place is None else Pooled(network, place)


def bottleneck_of(network: torch.nn.Module, shape: Sequence[int]) -> Place | None:
    """Return where the fewest voxels pass between modules, the last time that they do; None where that is nowhere.

    Found from shapes alone, nothing is computed. What averages a whole window (squeeze and excitation) is passed over.
    """
    dimensions = 5 if any(parameter.ndim == 5 for parameter in network.parameters()) else 4
    most = math.prod(shape[1:]) // COARSER
    found: list[tuple[int, Place]] = []
    averages: set[int] = set()

    def look(module: torch.nn.Module, values: Any, place: Place) -> None:
        if isinstance(values, torch.Tensor) and values.ndim == dimensions:
            voxels = math.prod(values.shape[2:])
            found.append((voxels, place))
            if isinstance(module, GLOBAL) and not place.is_input:
                averages.add(voxels)

    def look_at(name: str, module: torch.nn.Module) -> None:
        taken, given = Place(name, is_input=True), Place(name, is_input=False)
        module.register_forward_pre_hook(lambda own, values: look(own, values[0] if values else None, taken))
        module.register_forward_hook(lambda own, _, values: look(own, values, given))

    try:
        on_meta = copy.deepcopy(network).to("meta")
        for name, module in on_meta.named_modules():
            if name:
                look_at(name, module)
        with torch.no_grad():
            on_meta(torch.empty((1, *shape), device="meta"))
    except Exception:  # noqa: BLE001 - some networks do not run on shapes alone
        return None
    fewest = min((voxels for voxels, _ in found if voxels not in averages), default=0)
    return next((place for voxels, place in reversed(found) if voxels == fewest <= most), None)
