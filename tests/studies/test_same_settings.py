"""What a study was begun with, it goes on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from segpipe.errors import UsageError
from segpipe.studies.same_settings import differing, require_same

BEGUN = {"seed": 0, "folds": [0, 1], "epochs": None, "made": "by an earlier version"}


def test_the_same_settings_go_on_whatever_else_was_recorded() -> None:
    asked = {name: BEGUN[name] for name in ("seed", "folds", "epochs")}
    assert differing(asked, BEGUN) == []
    require_same(asked, BEGUN, Path("out"), "another search")


def test_each_that_differs_is_named_with_both_values() -> None:
    with pytest.raises(UsageError, match="begun with another search") as caught:
        require_same({"seed": 1, "folds": [0, 2], "epochs": None, "new": 3}, BEGUN, Path("out"), "another search")
    assert caught.value.found == "seed: 1; folds: 0, 2; new: 3"
    assert caught.value.expected == "seed: 0; folds: 0, 1; new: None"
