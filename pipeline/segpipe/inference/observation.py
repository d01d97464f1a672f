"""What is seen of a case on the network's grid while it is segmented: for whoever judges how good the result is.

The network's input, the labels there, and sums over probabilities: what costs next to nothing beside the network, and
nothing of which needs the probabilities of the whole volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from segpipe.inference.argmax import RunningArgmax, likeliest
from segpipe.inference.prepare import GridTransform
from segpipe.inference.sliding_window import BORDER, Activation, WindowGrid

FEW = 8  # classes


@dataclass(eq=False)
class Observation:
    """A case on the network's grid, whose axes run as its preprocessing turns them; empty before it is segmented.

    Attributes:
        image: (C, X, Y, Z) float32, the network's input, without what was padded.
        spacing_mm: of this grid, per axis.
        labels: (X, Y, Z) uint8, before any clean-up; with regions bit n of a voxel is region n + 1.
        regions: how many regions there are; 0 for one label a voxel.
        soft: (members, K), the sum of each network's probabilities of each channel.
        sure: (members, K), the same over the voxels to which that network gives the channel.
        hard: (members, K), how many voxels these are.
        shared: (members, K), how many of them all networks together give it too.
        doubt: by axis of the source, how much the network doubts in each of its planes: the sum over voxels of what the
            likeliest label lacks to certainty.
        embedding: of each network (C,), the mean over windows of what it holds in its bottleneck; none of networks
            that have no bottleneck, or that are of several bundles.
    """

    image: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0, 0, 0))
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)
    labels: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))
    regions: int = 0
    soft: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    sure: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    hard: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    shared: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    doubt: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    embedding: tuple[NDArray[np.float64], ...] = ()
    _members: int = 1
    _activation: Activation = "softmax"
    _grid: WindowGrid | None = None
    _first: tuple[int, ...] = (0, 0, 0)
    _planes: list[tuple[int, NDArray[np.int64]]] = field(default_factory=list)

    def begin(
        self,
        image: torch.Tensor,
        transform: GridTransform,
        spacing_mm: Sequence[float],
        grid: WindowGrid,
        activation: Activation,
        members: int,
    ) -> None:
        """Take what there is before the first window.

        Args:
            image: (C, X, Y, Z), the network's input.
            transform: how it belongs to the source's voxels.
            spacing_mm: of its grid.
            grid: of the windows.
            activation: from scores to probabilities.
            members: number of networks.
        """
        inside = transform.inside
        self.image = image[(slice(None), *inside)]
        self.doubt, self._planes = {}, []
        for axis in range(3):
            of_source, planes = transform.source_planes(axis)
            self.doubt[of_source] = np.zeros(transform.source_shape[of_source])
            self._planes.append((of_source, planes))
        self.spacing_mm = tuple(float(edge) for edge in spacing_mm)
        self.labels = np.zeros(tuple(self.image.shape[1:]), np.uint8)
        self._grid, self._activation, self._members = grid, activation, members
        self._first = tuple(part.start for part in inside)
        self.soft = self.sure = self.hard = self.shared = np.zeros((0, 0))

    def add(self, probabilities: torch.Tensor, together: RunningArgmax) -> None:
        """Add voxels that were not seen yet.

        Args:
            probabilities: (members, K, ...), of so few voxels that sums of them lose nothing in float32.
            together: labels (...) and scores of their mean.
        """
        if not self.soft.size:
            channels = probabilities.shape[1]
            self.regions = channels if self._activation == "sigmoid" and channels > 1 else 0
            self.soft, self.sure, self.hard, self.shared = (np.zeros((self._members, channels)) for _ in range(4))
        count = self._of_regions if self._activation == "sigmoid" else self._of_classes
        for member, values in enumerate(probabilities):
            self.soft[member] += values.flatten(1).sum(1).numpy()  # summed in float64 it takes ten times as long
            own = together if len(probabilities) == 1 else likeliest(values, self._activation)
            count(member, values, own, together)

    def _of_classes(self, member: int, values: torch.Tensor, own: RunningArgmax, together: RunningArgmax) -> None:
        """Add a network's voxels (K, ...) of one label each."""
        classes, labels, score = len(values), own.labels.flatten().numpy(), own.score.flatten().numpy()
        others = together.labels.flatten().numpy()
        if classes <= FEW:  # a pass for each takes a third of the time
            for label in range(classes):
                given = labels == label
                self.sure[member, label] += np.dot(score, given)
                self.hard[member, label] += np.count_nonzero(given)
                self.shared[member, label] += np.count_nonzero(given & (others == label))
            return
        self.sure[member] += np.bincount(labels, score, classes)
        pairs = np.bincount(labels.astype(np.intp) * classes + others, minlength=classes**2).reshape(classes, classes)
        self.hard[member] += pairs.sum(1)
        self.shared[member] += pairs.diagonal()

    def _of_regions(self, member: int, values: torch.Tensor, own: RunningArgmax, together: RunningArgmax) -> None:
        """Add a network's voxels (K, ...), each of which may lie in several regions."""
        for region, of_region in enumerate(values):
            given = (own.labels >> region & 1).bool()
            self.sure[member, region] += float(of_region[given].sum(dtype=torch.float64))
            self.hard[member, region] += int(given.sum())
            self.shared[member, region] += int((given & (together.labels >> region & 1).bool()).sum())

    def put(self, start: Sequence[int], best: NDArray[np.uint8], probabilities: torch.Tensor) -> None:
        """Take the labels of a block.

        Args:
            start: its first voxel in the padded volume.
            best: labels, with a border before it along the axes of blocks.
            probabilities: (K, ...) of the same voxels.
        """
        if self._grid is None:
            return
        inner = [slice(BORDER if axis in self._grid.block_axes else 0, None) for axis in range(3)]
        best, probabilities = best[tuple(inner)], probabilities[(slice(None), *inner)]
        into, of = [], []
        for axis, (before, _) in enumerate(self._grid.pad):
            low = start[axis] - before - self._first[axis]
            first, end = max(low, 0), min(low + best.shape[axis], self.labels.shape[axis])
            if first >= end:
                return
            into.append(slice(first, end))
            of.append(slice(first - low, end - low))
        self.labels[tuple(into)] = best[tuple(of)]
        probabilities = probabilities[(slice(None), *of)]
        if self._activation == "softmax":
            doubt = (1 - probabilities.amax(0)).clamp_(min=0)
        else:  # of regions, that which is least sure
            doubt = 1 - torch.maximum(probabilities, 1 - probabilities).amin(0)
        for axis, (of_source, planes) in enumerate(self._planes):
            others = [other for other in range(3) if other != axis]
            np.add.at(self.doubt[of_source], planes[into[axis]], doubt.sum(others).numpy())

    def mask(self, label: int, box: tuple[slice, ...] = ()) -> NDArray[np.bool_]:
        """Return where a label is, (X, Y, Z), or in a part of it; of regions, the first is label 1."""
        labels = self.labels[box]
        return (labels >> (label - 1) & 1) == 1 if self.regions else labels == label

    def where_to_look(self, axis: int, most: int = 3, apart: int = 3) -> list[tuple[int, float]]:
        """Return the planes of an axis of the source with most doubt, and the share of all doubt that lies in each.

        Args:
            axis: of the source.
            most: planes.
            apart: planes between two of them, at least, so that neighbours do not fill the list.
        """
        left = self.doubt.get(axis, np.zeros(0)).copy()
        whole = float(left.sum())
        found: list[tuple[int, float]] = []
        while len(found) < most and left.size and left.max() > 0:
            plane = int(left.argmax())
            found.append((plane, round(float(left[plane]) / whole, 4)))
            left[max(0, plane - apart + 1) : plane + apart] = 0
        return found

    def channel(self, label: int) -> int:
        """Return the channel of the scores that a label has: under a sigmoid there is none of the background."""
        return label if self._activation == "softmax" else label - 1
