"""Gradient-boosted trees as plain numbers: fitted by scikit-learn, computed here, so that a bundle needs no pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

TREES, DEPTH, RATE, LEAF, SHARE = 200, 3, 0.06, 6, 0.6
Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tree:
    """A regression tree: arrays with an entry a node, the root first.

    Attributes:
        feature: that a node asks for; -1 in a leaf.
        threshold: up to which its left child is taken.
        left, right: the children.
        value: of a leaf.
    """

    feature: NDArray[np.int64]
    threshold: Numbers
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: Numbers

    def __call__(self, rows: Numbers, first: NDArray[np.int64] | None = None) -> Numbers:
        """Return the value of the leaf in which each row (N, F) ends, (N,), from the root or from these nodes (N,)."""
        every = np.arange(len(rows))
        node = np.zeros_like(every) if first is None else first
        while (inner := self.feature[node] >= 0).any():
            is_left = rows[every, np.maximum(self.feature[node], 0)] <= self.threshold[node]
            node = np.where(inner, np.where(is_left, self.left[node], self.right[node]), node)
        return self.value[node]


@dataclass(frozen=True, eq=False)
class Boosted:
    """Gradient boosting (Friedman 2001, doi:10.1214/aos/1013203451): a start, and the sum of many small trees.

    Attributes:
        start: the mean that it begins with.
        trees: whose values are added, the learning rate within.
    """

    start: float
    trees: tuple[Tree, ...]

    def __call__(self, row: Sequence[float] | Numbers) -> float:
        """Return the prediction for a row (F,)."""
        values = np.asarray(row, np.float32).astype(np.float64)  # as scikit-learn compares
        forest, roots = self._forest
        return float(sum(forest(np.broadcast_to(values, (len(roots), len(values))), roots).tolist(), self.start))

    @cached_property
    def _forest(self) -> tuple[Tree, NDArray[np.int64]]:
        """All trees as one, through which a row goes at once, and their roots."""
        sizes = [len(tree.feature) for tree in self.trees]
        roots = np.array([sum(sizes[:number]) for number in range(len(sizes))], np.int64)

        def joined(name: str, moved: bool = False) -> NDArray[Any]:
            parts = [getattr(tree, name) + moved * root for tree, root in zip(self.trees, roots, strict=True)]
            return np.concatenate([np.zeros(0, np.int64), *parts])

        children = joined("left", moved=True), joined("right", moved=True)
        return Tree(joined("feature"), joined("threshold"), *children, joined("value")), roots

    def of_rows(self, rows: Numbers) -> Numbers:
        """Return the prediction for each row (N, F), (N,)."""
        values = rows.astype(np.float32).astype(np.float64)  # as scikit-learn compares
        found = np.full(len(rows), self.start)
        for tree in self.trees:
            found += tree(values)
        return found

    @classmethod
    def fit(cls, rows: Numbers, targets: Numbers, seed: int = 0) -> Boosted:
        """Fit it to rows (N, F) and targets (N,)."""
        from sklearn.ensemble import GradientBoostingRegressor

        model = GradientBoostingRegressor(
            n_estimators=TREES,
            max_depth=DEPTH,
            learning_rate=RATE,
            min_samples_leaf=LEAF,
            subsample=SHARE,
            max_features=0.3,
            random_state=seed,
        ).fit(rows, targets)
        trees = []
        for stage in model.estimators_[:, 0]:
            tree = stage.tree_
            leaf = tree.children_left < 0
            trees.append(
                Tree(
                    np.where(leaf, -1, tree.feature),
                    np.where(leaf, 0.0, tree.threshold),
                    np.maximum(tree.children_left, 0),
                    np.maximum(tree.children_right, 0),
                    np.where(leaf, RATE * tree.value[:, 0, 0], 0.0),
                )
            )
        return cls(float(model.init_.constant_[0, 0]), tuple(trees))

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain numbers."""
        return {"start": self.start, "trees": [{k: v.tolist() for k, v in vars(tree).items()} for tree in self.trees]}

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> Boosted:
        """Return what `as_dict` gave.

        Raises:
            ValueError, KeyError, TypeError: something else, as a tree whose children point back.
        """
        trees = []
        for tree in parts["trees"]:
            feature, left, right = (np.array(tree[name], np.int64) for name in ("feature", "left", "right"))
            threshold, value = (np.array(tree[name], np.float64) for name in ("threshold", "value"))
            size, inner = len(feature), feature >= 0
            if not size or any(len(array) != size for array in (left, right, threshold, value)):
                raise ValueError("a tree whose arrays differ in length")
            children = np.stack([left, right])[:, inner]
            if (children <= np.flatnonzero(inner)).any() or (children >= size).any():
                raise ValueError("a tree whose children do not lie behind their parent")
            trees.append(Tree(feature, threshold, left, right, value))
        return cls(float(parts["start"]), tuple(trees))
