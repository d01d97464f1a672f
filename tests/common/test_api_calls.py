"""A call of the API with a keyword that there is not, or an option of another type, says so by its public name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segpipe
from segpipe.common.api_calls import checked_call
from segpipe.errors import UsageError


@pytest.mark.parametrize(
    ("name", "keyword", "near"),
    [
        ("predict", "fromat", "format"),
        ("predict", "trheads", "threads"),
        ("plan", "netwrok", "network"),
        ("train", "epoch", "epochs"),
        ("export", "license", "licence"),
        ("evaluate", "splits", "split"),
    ],
)
def test_a_keyword_that_there_is_not_names_the_function_and_one_like_it(name: str, keyword: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"segpipe\.{name}: no such option") as caught:
        getattr(segpipe, name)("a", "b", "c", **{keyword: 1})
    assert (caught.value.found, caught.value.hint) == (keyword, f"did you mean {near!r}?")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("predict", {"retries": "3"}, "a whole number"),
        ("predict", {"timeout": "long"}, "a number or None"),
        ("predict", {"overlay": "no"}, "True or False"),
        ("predict", {"device": 0}, "text"),
        ("train", {"allow": "glob"}, "a list: allow=['glob']"),
        ("plan", {"overwrite": 1}, "True or False"),
        ("train", {"epochs": 2.5}, "a whole number or None"),
        ("train", {"task": 3}, "text or a path or None"),
        ("export", {"limits": "not for children"}, "a list: limits=['not for children']"),
        ("evaluate", {"tolerance_mm": "2"}, "a number"),
    ],
)
def test_an_option_of_another_type_is_a_usage_error(name: str, options: dict[str, Any], expected: str) -> None:
    (option,) = options
    with pytest.raises(UsageError, match=rf"segpipe\.{name}: {option} ") as caught:
        getattr(segpipe, name)("no-such-folder", "b", "c"[: name == "predict"], **options)
    assert caught.value.expected == expected


def test_what_is_as_good_as_the_type_is_taken() -> None:
    @checked_call
    def double(path: str | Path, *, times: int = 1, share: float | None = None, loud: bool = False) -> float:
        return times * (share or 1)

    assert double("a", times=np.int64(2), share=3, loud=np.bool_(True)) == 6  # type: ignore[arg-type]
    assert double(path=Path("a"), share=np.float32(0.5), times=2) == 1  # type: ignore[arg-type]
