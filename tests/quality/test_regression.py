"""Trees as plain numbers predict what scikit-learn predicts, and nothing that is no tree is taken for one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingRegressor

from segpipe.quality import regression
from segpipe.quality.regression import Boosted


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(seed).normal(size=(120, 5))
    return rows, np.sin(rows[:, 0]) + 0.3 * rows[:, 1] ** 2


def test_predictions_are_those_of_scikit_learn_also_through_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "TREES", 40)
    rows, targets = data()
    fitted = Boosted.fit(rows, targets, seed=3)
    expected = GradientBoostingRegressor(
        n_estimators=40,
        max_depth=regression.DEPTH,
        learning_rate=regression.RATE,
        min_samples_leaf=regression.LEAF,
        subsample=regression.SHARE,
        max_features=0.3,
        random_state=3,
    ).fit(rows, targets)
    new, _ = data(1)
    read = Boosted.from_dict(json.loads(json.dumps(fitted.as_dict())))
    for model in (fitted, read):
        np.testing.assert_allclose([model(row) for row in new], expected.predict(new), atol=1e-9)
        np.testing.assert_allclose(model.of_rows(new), expected.predict(new), atol=1e-9)


def test_without_trees_it_is_where_it_begins() -> None:
    model = Boosted(0.25, ())
    assert model([1.0, 2.0]) == 0.25
    np.testing.assert_array_equal(model.of_rows(np.ones((2, 3))), [0.25, 0.25])


def test_a_tree_that_would_never_end_is_refused() -> None:
    whole = {
        "feature": [0, -1, -1],
        "threshold": [0.5, 0, 0],
        "left": [1, 0, 0],
        "right": [2, 0, 0],
        "value": [0, 1, 2],
    }
    assert Boosted.from_dict({"start": 0, "trees": [whole]})([0.7]) == 2
    for wrong in ({"left": [0, 0, 0]}, {"right": [3, 0, 0]}, {"value": [0, 1]}, {"feature": []}):
        with pytest.raises(ValueError, match="tree"):
            Boosted.from_dict({"start": 0, "trees": [{**whole, **wrong}]})
