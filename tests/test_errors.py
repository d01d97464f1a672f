"""The tree of errors: codes, what is shown where, and the ways that errors travel."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe import errors
from segpipe.errors import DataError, RefusedError, SegpipeError, UsageError, chain, first_cause, ours_within

CODES = {SegpipeError: 1, UsageError: 2, DataError: 3, RefusedError: 5}
PARTS = ("path", "found", "expected", "hint", "case_id")
words = st.none() | st.text(max_size=20)


@pytest.mark.parametrize(("kind", "code"), CODES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_each_kind_has_its_exit_code(kind: type[SegpipeError], code: int) -> None:
    assert kind("x").exit_code == code
    assert issubclass(kind, SegpipeError)


def test_no_kind_is_without_a_code_of_its_own() -> None:
    assert {SegpipeError, *SegpipeError.__subclasses__()} >= set(CODES)
    ours = [kind for kind in SegpipeError.__subclasses__() if kind.__module__ == errors.__name__]
    assert set(ours) == set(CODES) - {SegpipeError}
    assert (errors.OK, errors.INTERRUPTED) == (0, 130)


@settings(max_examples=40)
@given(kind=st.sampled_from(list(CODES)), message=st.text(), parts=st.fixed_dictionaries(dict.fromkeys(PARTS, words)))
def test_an_error_survives_the_way_between_processes(
    kind: type[SegpipeError], message: str, parts: dict[str, str | None]
) -> None:
    error = kind(message, **parts)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert {name: getattr(twin, name) for name in PARTS} == parts
        assert twin.exit_code == error.exit_code


def test_a_path_is_told_to_the_terminal_alone() -> None:
    error = DataError("broken", path=Path("/home/somebody/scan.nii"), found=7, case_id="c1")
    assert error.as_dict() == {"message": "broken", "found": "7", "case_id": "c1"}
    assert error.as_dict(with_path=True)["path"] == "/home/somebody/scan.nii"
    assert "somebody" in str(error)


def test_found_nothing_is_told_from_found_zero() -> None:
    assert "found" not in UsageError("x").as_dict()
    assert UsageError("x", found=0, expected=False).as_dict() == {"message": "x", "found": "0", "expected": "False"}


def test_text_names_every_part_once_and_in_order() -> None:
    error = UsageError("m", path="p", found="f", expected="e", hint="h", case_id="c")
    assert str(error).splitlines() == ["m", "  case: c", "  path: p", "  found: f", "  expected: e", "  hint: h"]


def test_ours_is_found_below_what_a_library_raised() -> None:
    ours = DataError("inner")
    try:
        try:
            try:
                raise ours
            except DataError as error:
                raise RuntimeError("library") from error
        except RuntimeError:
            raise KeyError("while handling")  # noqa: B904 - the context alone leads to ours
    except KeyError as error:
        assert ours_within(error) is ours
    assert ours_within(ours) is ours
    assert ours_within(ValueError("alone")) is None


def test_errors_that_cause_each_other_do_not_hang() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert ours_within(one) is None


def test_the_first_cause_follows_what_was_raised_from_it_and_no_accident_before() -> None:
    deep, middle, outer = KeyError("accident"), ValueError("the cause"), RuntimeError("outer")
    middle.__context__, outer.__cause__ = deep, middle
    assert first_cause(outer) is middle
    assert first_cause(deep) is deep
    assert list(chain(outer)) == [outer, middle, deep]
    middle.__cause__ = outer
    assert first_cause(outer) is middle, "an error raised from itself ends"
