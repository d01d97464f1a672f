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
    for key, value in document.items():
        merges, path = str(key).startswith("+"), SPLIT.split(str(key).removeprefix("+"))
        plain = all(_PLAIN.fullmatch(part) for part in path) or not (merges or len(path) > 1)
        if not plain or not _put(read, path, value, merges):
            odd.append(str(key))
    return read, odd


def _put(within: Any, path: list[str], value: Any, merges: bool) -> bool:
    """Put a value where a path leads, with copies of what lies on the way; return whether it leads anywhere."""
    place: Any = int(path[0]) if isinstance(within, list) and path[0].isdecimal() else path[0]
    if isinstance(within, list) and not (isinstance(place, int) and place < len(within)):
        return False
    known = within.get(place) if isinstance(within, dict) else within[place]
    if len(path) > 1:
        within[place] = list(known) if isinstance(known, list) else dict(known) if isinstance(known, dict) else {}
        return _put(within[place], path[1:], value, merges)
    if merges and isinstance(known, dict) and isinstance(value, dict):
        value = {**known, **value}
    elif merges and isinstance(known, list) and isinstance(value, list):
        value = [*known, *value]
    within[place] = value
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
    for reference in sorted(_REFERENCES.findall(text), key=len, reverse=True):
        text = text.replace(reference, f"{REFERENCES}['{reference[1:]}']")
    return text[1:]


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
    if isinstance(node, ast.Name):
        return None if node.id == REFERENCES else node.id
    above = dotted_name(node.value) if isinstance(node, ast.Attribute) else None
    return f"{above}.{node.attr}" if above is not None and isinstance(node, ast.Attribute) else None
