"""How deep the references of a config lead: whoever resolves one does so within the value that it stands in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from segpipe.bundle.vet.syntax import INDEX, SPLIT

DEEPEST_REFERENCES = 200  # values within values, those that references lead to included
_REFERENCE = re.compile(r"@(\w+(?:::\w+)*)")
_ABSENT = object()


def reference_depth(document: Any) -> int:
    """Return how many values lie within each other where references are followed; where they go round, once round.

    Each value is looked at once, and without recursion.
    """
    depths = {_key(document): 1}
    path = [(document, _below(document, document))]
    while path:
        value, below = path[-1]
        key = _key(value)
        for part in below:
            if (within := depths.get(_key(part))) is None:
                depths[_key(part)] = 1
                path.append((part, _below(part, document)))
                break
            depths[key] = max(depths[key], within + 1)
        else:
            path.pop()
            if path:
                above = _key(path[-1][0])
                depths[above] = max(depths[above], depths[key] + 1)
    return depths[_key(document)]


def follow(document: Any, id: str, otherwise: Any = None) -> Any:
    """Return the value of an absolute id, ``a::b::0`` or ``a#b#0``; ``otherwise`` where there is none."""
    value = document
    for part in SPLIT.split(id):
        if isinstance(value, Mapping):
            value = value.get(part, _ABSENT)
        elif isinstance(value, list) and INDEX.fullmatch(part) and int(part) < len(value):
            value = value[int(part)]
        else:
            return otherwise
    return otherwise if value is _ABSENT else value


def _key(value: Any) -> Any:
    return value if isinstance(value, str) else id(value)


def _below(value: Any, document: Any) -> Iterator[Any]:
    """Yield what may lead further: the values of a list or mapping, what the references in a text stand for."""
    found: Iterable[Any]
    if isinstance(value, str):
        found = (follow(document, id) for id in _REFERENCE.findall(value.replace("#", "::")))
    else:
        found = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return (each for each in found if isinstance(each, (Mapping, list)) or (isinstance(each, str) and "@" in each))
