"""Whether an argument is of the kind that its parameter may be given (`arguments`), from what a config says.

An argument stands in a document, as data, or in an expression, as a parsed tree. A reference stands for what its id
holds, and is judged as that; a text that is put together from texts and references is judged as a whole. Nothing is
evaluated: what cannot be told is not of a kind that matters.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, NamedTuple

from segpipe.bundle.vet.arguments import (
    ANYWHERE,
    WORDS,
    Kind,
    OneOf,
    guarded,
    is_handed_on,
    is_harmless,
    is_of_values_alone,
    kind_of,
    short_name,
)
from segpipe.bundle.vet.names import Names, Resolved, signature_of
from segpipe.bundle.vet.references import follow
from segpipe.bundle.vet.syntax import (
    REFERENCES,
    SPLIT,
    as_evaluated,
    dotted_name,
    has_relative_ids,
    parsed,
    reference_of,
)

NOT_ARGUMENTS = ("_target_", "_mode_", "_disabled_", "_requires_", "_desc_")
PLACES = ("bundle_root", "dataset_dir", "output_dir", "run_dir", "store")  # ids that whoever runs a config sets
WRITTEN = ("output_dir", "run_dir", "store")
_REFERENCE = re.compile(r"[@%](\w+(?:(?:#|::)\w+)*)", re.ASCII)
_ELSEWHERE = re.compile(r"[\\:\x00-\x1f\x7f]")  # paths of other systems, addresses
_LONGEST, _NAME = 1000, 100
LONGEST = 10_000  # characters of an expression
_MOST_STEPS = 200
_UNKNOWN = object()
Problem = tuple[str, str | None]  # why, and the name that --allow may admit


class _Text(NamedTuple):
    """A text that is known, behind one of `PLACES`, or another id that this config leaves open, or behind none."""

    place: str | None
    tail: str


@dataclass
class Arguments:
    """Judges arguments.

    Attributes:
        names: what is admitted.
        document: the config, as MONAI reads it (`as_read`); references lead into it.
        follows: whether they are followed; not so in a text with relative ids, which mean something else where a macro
            puts it.
    """

    names: Names
    document: Mapping[str, Any] = field(default_factory=dict)
    follows: bool = True
    _steps: int = 0
    _texts: dict[str, _Text | None] = field(default_factory=dict)

    def of_component(self, component: Mapping[str, Any], target: Resolved | None) -> Iterator[tuple[str, Problem]]:
        """Yield each argument of a mapping with a `_target_` that it may not be given, and why.

        Args:
            component: the mapping.
            target: what its target leads to; None where it has none that is known.
        """
        given = {str(key): value for key, value in component.items() if key not in NOT_ARGUMENTS}
        listed = target.name if target is not None and target.listed else None
        for parameter, value in given.items():
            if parameter not in ANYWHERE:
                yield from ((parameter, problem) for problem in self.of_argument(listed, parameter, value))
        if listed is not None:
            yield from ((parameter, problem) for parameter, problem in self._left_out(listed, given))

    def of_call(self, target: Resolved, call: ast.Call) -> Iterator[Problem]:
        """Yield what an expression's call may not be given."""
        given: dict[str, Any] = {argument.arg: argument.value for argument in call.keywords if argument.arg}
        listed = target.name if target.listed else None
        if listed is None or is_of_values_alone(listed):
            for parameter, value in given.items():
                yield from self.of_argument(listed, parameter, value)
            return
        positions = _positions(listed, len(call.args))
        if any(isinstance(argument, ast.Starred) for argument in call.args) and not is_free(listed):
            yield f"{target.name} by *: its arguments cannot be told", None
            return
        for parameter, value in [*zip(positions, call.args, strict=True), *given.items()]:
            yield from self.of_argument(listed, parameter, value)
        yield from (problem for _, problem in self._left_out(listed, {*positions, *given}))

    def of_place(self, id: str, value: Any) -> Iterator[Problem]:
        """Yield what speaks against an id of `WRITTEN`, where stock MONAI writes unless its user says otherwise."""
        if id == "store" and value is None:  # nothing is stored
            return
        text = self._text(value)
        roots = (None, "bundle_root", *WRITTEN)
        within = text is not None and text.place in roots and _is_below(text.tail, text.place is None)
        if not within and not self.names.allows(id):
            yield f"{id} may be a path below the current folder, @bundle_root or @run_dir, written out", id

    def _left_out(self, listed: str, given: Any) -> Iterator[tuple[str, Problem]]:
        """Yield parameters that say where is written, and would say the current folder where they are left out."""
        signature = signature_of(listed)
        for parameter in signature.parameters if signature else ():
            if kind_of(listed, parameter) == "write" and parameter not in given:
                name = f"{short_name(listed)}.{parameter}"
                if not self.names.allows(name):
                    yield parameter, (f"{parameter} must be given, as {WORDS['write']}: it has a default", name)

    def of_argument(self, listed: str | None, parameter: str, value: Any) -> Iterator[Problem]:
        """Yield what speaks against one argument of a listed name, or (None) of one that is not known."""
        kind = guarded(parameter) if listed is None else kind_for(listed, parameter)
        owner = f"{short_name(listed)}." if listed is not None else ""
        name = f"{owner}{parameter}"
        self._steps = 0
        if (kind is None and listed is None) or (kind is not None and self._is(kind, parameter, value)):
            return
        if self.names.allows(name):
            return
        if kind is None:
            yield f"{name} is no argument that was judged", name
        elif isinstance(kind, tuple):
            text = _constant(value)
            names_code = parameter in ANYWHERE and isinstance(text, str) and text[:1] not in ("$", "@", "%", "")
            yield f"{parameter} may only be {', '.join(map(str, kind))}, as a plain value", text if names_code else name
        else:
            yield f"{name} may be {WORDS[kind]}", name

    def _is(self, kind: Kind | OneOf, parameter: str, value: Any) -> bool:
        if isinstance(kind, tuple):
            return self.is_one_of(parameter, kind, value)
        if kind == "function":
            return True
        if kind == "value":
            return not self._is_function(value, 0)
        opened = self._opened(value, 0)
        if isinstance(opened, ast.Constant) and not isinstance(opened.value, (str, bytes)):
            return kind != "write" and (kind != "never" or opened.value is None)  # null would be the current folder
        if kind == "named":
            return self._has_plain_keys(opened)
        if kind == "never" or (isinstance(opened, Mapping) and "_target_" in opened):
            return False
        listed = opened.elts if isinstance(opened, (ast.List, ast.Tuple)) else opened
        several = isinstance(listed, (list, Mapping))  # whoever takes a mapping for paths takes its keys
        return all(self._is_text(kind, part) for part in (listed if several else [listed]))

    def is_one_of(self, parameter: str, kind: OneOf, value: Any) -> bool:
        """Return whether a value, or each of a list, is written out and one of those listed, or allowed."""
        values = value if isinstance(value, list) else value.elts if isinstance(value, ast.List) else [value]
        for each in map(_constant, values):
            plain = [each] if isinstance(each, str) and each[:1] not in ("$", "@", "%") else []
            known = any(each is one or (isinstance(one, str) and each == one) for one in kind)
            if not known and not self.names.allows(f"{parameter}={each}", *plain):
                return False
        return True

    def _is_text(self, kind: Kind, value: Any) -> bool:
        text = self._text(value)
        if text is None:
            return False
        if kind == "name":
            return text.place is None and _is_name(text.tail)
        if kind == "write":
            return text.place in WRITTEN and _is_below(text.tail, False)
        return _is_below(text.tail, text.place is None)

    def _has_plain_keys(self, opened: Any) -> bool:
        keys = opened
        if isinstance(opened, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in opened.keys]
        elif not isinstance(opened, Mapping) or "_target_" in opened:
            return False
        return all(isinstance(key, str) and _is_name(key) for key in keys)

    def _is_function(self, value: Any, depth: int) -> bool:
        """Return whether a value is a function or class by its name, or holds one."""
        opened = self._opened(value, depth)
        if isinstance(opened, ast.Lambda):
            return True
        if isinstance(opened, (ast.Name, ast.Attribute)):
            dotted = dotted_name(opened)
            return dotted is not None and not self.names.dotted(dotted).is_value
        if isinstance(opened, Mapping):
            return opened.get("_mode_", "default") != "default" and "_target_" in opened
        if isinstance(opened, ast.IfExp):
            return any(self._is_function(part, depth + 1) for part in (opened.body, opened.orelse))
        return False

    def _opened(self, value: Any, depth: int) -> Any:
        """Return what a value says: a constant, a tree, a list or mapping, a text behind a place, or `_UNKNOWN`."""
        self._steps += 1
        if depth > 20 or self._steps > _MOST_STEPS:
            return _UNKNOWN
        if isinstance(value, ast.AST):
            reference = reference_of(value)
            return value if reference is None else self._followed(reference, depth)
        if not isinstance(value, str):
            return value if isinstance(value, (list, Mapping, _Text)) else ast.Constant(value)
        if value[:1] == "$":
            tree = _tree(value)
            return _UNKNOWN if tree is None else self._opened(tree.body, depth + 1)
        if match := _REFERENCE.fullmatch(value):
            return self._followed(match[1], depth)
        return _UNKNOWN if value[:1] in ("@", "%") else ast.Constant(value)

    def _followed(self, id: str, depth: int) -> Any:
        if not self.follows:
            return _UNKNOWN
        if id in PLACES:
            return _Text(id, "")
        first = SPLIT.split(id, maxsplit=1)[0]
        if first not in self.document and first != "_meta_":
            return _Text(id, "")  # of another file that is read with this one, or of whoever runs it
        value = follow(self.document, id, _UNKNOWN)
        return _UNKNOWN if value is _UNKNOWN else self._opened(value, depth + 1)

    def _text(self, value: Any, depth: int = 0) -> _Text | None:
        """Return the text that a value is, None where that cannot be told; that of an id is found once."""
        id = _id_of(value)
        if id is None:
            return self._text_of(self._opened(value, depth), depth)
        if id not in self._texts:
            self._texts[id] = None  # of an id that leads to itself
            self._texts[id] = self._text_of(self._opened(value, depth), depth)
        return self._texts[id]

    def _text_of(self, opened: Any, depth: int) -> _Text | None:
        if isinstance(opened, _Text):
            return opened
        if isinstance(opened, ast.Constant) and isinstance(opened.value, str):
            return _Text(None, opened.value)
        if isinstance(opened, ast.BinOp) and isinstance(opened.op, ast.Add):
            return _joined([self._text(part, depth + 1) for part in (opened.left, opened.right)])
        if isinstance(opened, ast.JoinedStr):
            return _joined([self._text(_formatted(part), depth + 1) for part in opened.values])
        if isinstance(opened, ast.Call) and not opened.keywords and self._is_join(opened.func):
            texts = [self._text(part, depth + 1) for part in opened.args]
            return _joined([_slashed(text, index) for index, text in enumerate(texts)])
        return None

    def _is_join(self, function: ast.expr) -> bool:
        dotted = dotted_name(function)
        return dotted is not None and self.names.dotted(dotted).name == "posixpath.join"


def kind_for(listed: str, parameter: str) -> Kind | OneOf | None:
    """Return of which kind an argument of a listed name must be; None where it takes none, or none that was judged."""
    signature = signature_of(listed)
    if signature is None or parameter in signature.parameters or parameter.startswith("*"):
        return kind_of(listed, parameter)
    return kind_of(listed, parameter) if is_handed_on(listed, parameter) else None


@cache
def is_free(listed: str) -> bool:
    """Return whether a listed name may be given anything that is admitted: it may be a value, for others to call."""
    signature = signature_of(listed)
    if signature is None or is_of_values_alone(listed):
        return True
    given = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    names = ["*args" if each.kind is inspect.Parameter.VAR_POSITIONAL else each.name for each in given]
    return all(is_harmless(kind_of(listed, name)) for name in names)


def _positions(listed: str, count: int) -> list[str]:
    """Return the parameters that arguments by position are given to."""
    signature = signature_of(listed)
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = signature.parameters.values() if signature else ()
    named = [each.name for each in parameters if each.kind not in by_name]
    return [*named, *["*args"] * count][:count]


@lru_cache(maxsize=4096)
def _tree(text: str) -> ast.Expression | None:
    """Return the tree of a config's expression that means the same wherever it stands, else None."""
    plain = len(text) <= LONGEST and REFERENCES not in text and not has_relative_ids(text)
    tree: ast.Expression | None = parsed(as_evaluated(text), "eval") if plain else None
    return tree


def _id_of(value: Any) -> str | None:
    """Return the id that a value is a reference to, and no more."""
    if isinstance(value, ast.AST):
        return reference_of(value)
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return match and match[1]


def _constant(value: Any) -> Any:
    return value.value if isinstance(value, ast.Constant) else value


def _formatted(part: ast.expr) -> ast.expr:
    """Return what an f-string holds as it is, and the part itself where it is changed."""
    plain = isinstance(part, ast.FormattedValue) and part.conversion == -1 and part.format_spec is None
    return part.value if isinstance(part, ast.FormattedValue) and plain else part


def _slashed(text: _Text | None, index: int) -> _Text | None:
    """Return a text as a part of a joined path; an absolute one would take the place of those before it."""
    if index == 0 or text is None:
        return text
    return None if text.place or text.tail.startswith("/") else _Text(None, f"/{text.tail}")


def _joined(texts: Sequence[_Text | None]) -> _Text | None:
    known = [text for text in texts if text is not None]
    tail = "".join(text.tail for text in known)
    if not known or len(known) < len(texts) or any(text.place for text in known[1:]) or len(tail) > _LONGEST:
        return None
    return _Text(known[0].place, tail)


def _is_below(tail: str, relative: bool) -> bool:
    """Return whether a path stays below the folder that it is joined to, which it is by a slash or not at all."""
    starts = not tail.startswith(("/", "~")) if relative else tail[:1] in ("", "/")
    return starts and ".." not in tail.split("/") and _ELSEWHERE.search(tail) is None


def _is_name(text: str) -> bool:
    return text not in (".", "..") and "/" not in text and _ELSEWHERE.search(text) is None and len(text) <= _NAME
