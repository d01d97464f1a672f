"""What a call of the Python API got wrong, in the words of the tree of errors instead of from within.

The signature says what there is: a keyword that is none of it, or a simple option of another type, is a UsageError.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

from segpipe.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")
SIMPLE: dict[Any, Callable[[Any], bool]] = {
    bool: lambda value: type(value).__name__ in ("bool", "bool_"),  # numpy's as well
    int: lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool),
    float: lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool),
    str: lambda value: isinstance(value, str),
    os.PathLike: lambda value: isinstance(value, os.PathLike),
    type(None): lambda value: value is None,
}


def checked_call(function: Callable[P, R]) -> Callable[P, R]:
    """Judge the keywords of a call, and the types of those whose type is simple, by the function's signature.

    Raises:
        UsageError: there is no such keyword, with one that is like it; a number, text, path or flag is something else;
            or one text stands for a list of them.
    """

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        where, known = f"segpipe.{function.__name__}", _types_of(function)
        require_keywords(where, keywords, tuple(known))
        for name, value in keywords.items():
            _require_type(where, name, value, known[name])
        return function(*arguments, **keywords)

    return call


def require_keywords(where: str, keywords: Iterable[str], known: Sequence[str]) -> None:
    """Refuse an option that there is not, with the nearest one that there is.

    Raises:
        UsageError: one of the keywords is not known.
    """
    for name in keywords:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else None
            raise UsageError(f"{where}: no such option", found=name, expected=", ".join(known), hint=hint)


@functools.cache
def _types_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return each keyword's type, those of a ``**options: Unpack[...]`` included."""
    hints = typing.get_type_hints(function)
    known = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            known.update(typing.get_type_hints(typing.get_args(hints[parameter.name])[0]))
        else:
            known[parameter.name] = hints[parameter.name]
    return known


def _require_type(where: str, name: str, value: Any, hint: Any) -> None:
    members = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    kinds = [_kind(member) for member in members]
    if isinstance(value, str) and Sequence in kinds and str not in kinds:
        raise UsageError(f"{where}: {name} is one text", found=repr(value), expected=f"a list: {name}=[{value!r}]")
    if all(kind in SIMPLE for kind in kinds) and not any(SIMPLE[kind](value) for kind in kinds):
        expected = " or ".join("None" if kind is type(None) else _WORDS.get(kind, kind.__name__) for kind in kinds)
        raise UsageError(f"{where}: {name} has another type", found=f"{value!r}", expected=expected)


_WORDS = {os.PathLike: "a path", str: "text", int: "a whole number", float: "a number", bool: "True or False"}


def _kind(member: Any) -> Any:
    origin = typing.get_origin(member) or member
    return os.PathLike if isinstance(origin, type) and issubclass(origin, os.PathLike) else origin
