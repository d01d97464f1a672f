"""How MONAI reads a config: which keys are merged, and what an expression is when it is evaluated.

MONAI writes an expression (``$...``) anew before `eval` sees it: ``#`` becomes ``::``, relative ids become absolute
ones, and each ``@id`` becomes ``__local_refs['id']``, inside quotes as well
(`monai.bundle.ReferenceResolver.update_refs_pattern`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

REFERENCES = "__local_refs"
SPLIT = re.compile("#|::")
INDEX = re.compile(r"\d{1,9}", re.ASCII)
_REFERENCES = re.compile(r"@(?:\w*)(?:::\w*)*")
_RELATIVE = re.compile(r"(?:@|%)(?:::)+")
_PLAIN = re.compile(r"\w+", re.ASCII)


def as_read(document: Any) -> tuple[dict[str, Any], list[str]]:
    """Return a config as MONAI reads it, and keys of which only MONAI can tell where they lead.

    Keys ``a::b`` of the top level lead into ``a``, and ``+a`` is merged into it. MONAI strips and counts from the end
    on the way; such keys are not followed here.
    """
    if not isinstance(document, dict):
        return {}, []
    if not any("::" in str(key) or "#" in str(key) or str(key).startswith("+") for key in document):
        return document, []
    read: dict[str, Any] = {}
    odd: list[str] = []
    ours = {id(read)}  # what was copied, once
    for key, value in document.items():
        merges, path = str(key).startswith("+"), SPLIT.split(str(key).removeprefix("+"))
        plain = all(_PLAIN.fullmatch(part) for part in path) or not (merges or len(path) > 1)
        if not plain or not _put(read, path, value, merges, ours):
            odd.append(str(key))
    return read, odd


def _put(within: Any, path: list[str], value: Any, merges: bool, ours: set[int]) -> bool:
    """Put a value where a path leads, with copies of what lies on the way; return whether it leads anywhere."""
    for number, part in enumerate(path, 1):
        place: Any = int(part) if isinstance(within, list) and INDEX.fullmatch(part) else part
        if isinstance(within, list) and not (isinstance(place, int) and place < len(within)):
            return False
        known = within.get(place) if isinstance(within, dict) else within[place]
        last, kind = number == len(path), dict if isinstance(known, dict) else list
        if last and not (merges and isinstance(known, kind) and isinstance(value, kind)):
            within[place] = value
            return True
        if id(known) not in ours:
            within[place] = known = kind(known) if isinstance(known, kind) else {}
            ours.add(id(known))
        within = known
    within.extend(value) if isinstance(within, list) else within.update(value)
    return True


def as_evaluated(text: str, path: Sequence[str] = ()) -> str:
    """Return an expression as MONAI would evaluate it, without its ``$``: relative ids are absolute, ids are looked up.

    Args:
        text: the config's string, from its ``$`` on.
        path: where it stands, the keys from the top.
    """
    text = text.replace("#", "::")
    for prefix in sorted(set(_RELATIVE.findall(text)), reverse=True):
        above = path[: max(len(path) - prefix.count("::"), 0)]
        text = text.replace(prefix, prefix[0] + "".join(f"{key}::" for key in above))
    # MONAI replaces the longest first, each wherever it stands, which is the same: each @ begins the longest that fits
    return _REFERENCES.sub(lambda reference: f"{REFERENCES}['{reference[0][1:]}']", text)[1:]


def length_with_paths(text: str, path: Sequence[str]) -> int:
    """Return how long a text may become where each relative id gets the keys above it."""
    return len(text) + len(_RELATIVE.findall(text.replace("#", "::"))) * sum(len(key) + 2 for key in path)


def has_relative_ids(text: str) -> bool:
    """Return whether MONAI would put the keys above this string into it."""
    return _RELATIVE.search(text.replace("#", "::")) is not None


def parsed(source: str, mode: str) -> Any:
    """Return the tree of an expression or of statements, None where there is none."""
    try:
        return ast.parse(source, mode=mode)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def reference_of(node: ast.AST) -> str | None:
    """Return the id that a node looks up, from what MONAI makes of it."""
    if not (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == REFERENCES):
        return None
    return str(node.slice.value) if isinstance(node.slice, ast.Constant) else None


def dotted_name(node: ast.AST) -> str | None:
    """Return ``a.b.c`` where that is all that a node is."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) and node.id != REFERENCES else None
