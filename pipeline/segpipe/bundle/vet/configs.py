"""Static vetting of configs: every target, expression, import and macro, with its place, and nothing of it executed.

Of ``logging.conf`` a small subset is admitted: `logging.config.fileConfig` evaluates it, and it may open files and
sockets.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.bundle.vet.expressions import Problem, imported, is_admitted_argument, is_plain_path, vet_expression
from segpipe.bundle.vet.finding import Finding, Kind, Use, shown
from segpipe.bundle.vet.names import ARGUMENTS, Names

_OWN_MACRO = re.compile(r"%(?:#|::)*\w+(?:(?:#|::)\w+)*", re.ASCII)
_SPLIT = re.compile("#|::")
KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    """A value of a config: its path, the last part of its key, the mapping around it, whether MONAI merges it in."""

    path: KeyPath
    key: str
    value: Any
    beside: Mapping[Any, Any]
    merged: bool


def vet_config(document: Any, file: str, names: Names) -> Iterator[Use]:
    """Yield what a config would run, with what speaks against it; arguments and macros only where something does."""
    for entry in _entries(document):
        if use := _vet(entry, file, names):
            yield use


def vet_metadata(document: Any, file: str) -> Iterator[Use]:
    """Yield what in metadata MONAI would run: there may be nothing, as it becomes part of each config."""
    for entry in _entries(document):
        if entry.key == "_target_":
            yield _use(file, entry, "target", [("metadata with a target", None)])
        elif isinstance(entry.value, str) and entry.value[:1] in ("$", "@", "%"):
            yield _use(file, entry, "expression", [("metadata must hold no expression", None)])


def imports_of(document: Any) -> Iterator[tuple[str, str]]:
    """Yield each name that the imports of a config add to its expressions, with what it stands for."""
    for entry in _entries(document):
        text = entry.value
        if isinstance(text, str) and text.startswith("$") and (found := imported(text)):
            yield found


def _entries(value: Any, path: KeyPath = (), merged: bool = False) -> Iterator[_Entry]:
    """Yield each value of a document. MONAI takes keys ``a#b`` of the top level apart, merges mappings at ``+a``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    beside = value if isinstance(value, dict) else {}
    for key, item in items:
        parts = _SPLIT.split(str(key).removeprefix("+"))
        below = (*path, *parts) if not path else (*path, str(key))
        yield _Entry(below, parts[-1], item, beside, merged or len(parts) > 1)
        yield from _entries(item, below, not path and str(key).startswith("+"))


def _vet(entry: _Entry, file: str, names: Names) -> Use | None:
    key, value = entry.key, entry.value
    text = value if isinstance(value, str) else ""
    if key == "_target_":
        return _target(entry, file, names)
    if key == "_mode_" and (value not in ("default", "callable") or "_target_" not in entry.beside or entry.merged):
        why = "a mode other than default and callable, or not beside its target"
        return _use(file, entry, "argument", [(why, None)])
    if key in ARGUMENTS and not _admitted(key, value, names):
        name = text if text and text[0] not in "$@%" else f"{key}={value}"
        listed = ", ".join(str(each) for each in ARGUMENTS[key])
        return _use(file, entry, "argument", [(f"{key} may only be {listed}, as a plain value", name)])
    if text.startswith("$"):
        used, problems = vet_expression(text, entry.path, names)
        return _use(file, entry, "import" if imported(text) else "expression", problems, used)
    if text.startswith("%"):
        plain = _OWN_MACRO.fullmatch(text) and is_plain_path(entry.path) and not key.startswith("_")
        why = "a macro may only name an id of its own file, and not stand for a target or a mode"
        return _use(file, entry, "macro", [] if plain else [(why, None)])
    return None


def _target(entry: _Entry, file: str, names: Names) -> Use:
    value = entry.value
    if not isinstance(value, str) or value[:1] in ("$", "@", "%"):
        why = "a target that is not written out: a reference, an expression or a macro could make it anything"
        return _use(file, entry, "target", [(why, None)])
    if not value.isascii():
        return _use(file, entry, "target", [("characters beyond ASCII, which look like others", None)])
    resolved = names.target(value)
    problems: list[Problem] = [] if resolved.admitted else [(resolved.reason, resolved.name)]
    if resolved.only_by_keyword and (entry.merged or entry.beside.get("_mode_", "default") != "default"):
        problems.append((f"{resolved.name} may only be used directly: some of its arguments name code", None))
    return _use(file, entry, "target", problems, [resolved.name])


def _admitted(key: str, value: Any, names: Names) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(is_admitted_argument(key, item) or _allowed(key, item, names) for item in values)


def _allowed(key: str, value: Any, names: Names) -> bool:
    plain = isinstance(value, str) and value[:1] not in "$@%"
    return names.allows(f"{key}={value}", *([value] if plain else []))


def _use(file: str, entry: _Entry, kind: Kind, problems: Sequence[Problem], used: Sequence[str] = ()) -> Use:
    place, text = "::".join(entry.path), shown(entry.value)
    findings = tuple(Finding(file, place, text, why, name) for why, name in problems)
    return Use(file, place, kind, text, tuple(dict.fromkeys(used)), findings)


_LISTS = {"loggers": {"keys"}, "handlers": {"keys"}, "formatters": {"keys"}}
_KEYS = {
    "logger": {"level", "handlers", "propagate", "qualname"},
    "handler": {"class", "level", "formatter", "args"},
    "formatter": {"format", "datefmt", "class"},
}
_VALUES = {
    ("handler", "class"): re.compile(r"(logging\.)?StreamHandler"),
    ("handler", "args"): re.compile(r"\(\s*(sys\.(stdout|stderr)\s*,?\s*)?\)"),
    ("formatter", "class"): re.compile(r"(logging\.)?Formatter"),
}
_WORDS = re.compile(r"[\w ,.-]*", re.ASCII)


def vet_logging(path: Path, file: str) -> Iterator[Finding]:
    """Yield what in an INI file for `fileConfig` is more than handlers that write to standard output or error."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (configparser.Error, ValueError, OSError) as error:
        yield Finding(file, "", shown(str(error).replace("\n", " ")), "it cannot be read as a logging configuration")
        return
    for key, value in parser.defaults().items():
        yield Finding(file, "DEFAULT", f"{key}={shown(value)}", "defaults are put into every other section")
    for section in parser.sections():
        kind = section.partition("_")[0]
        known = _LISTS.get(section) or (_KEYS.get(kind) if "_" in section else None)
        if known is None:
            yield Finding(file, section, section, "a section that a logging configuration has no use for")
            continue
        for key, value in parser.items(section):
            if key not in known:
                why = f"{key} is not one of {', '.join(sorted(known))}"
            elif not _is_in_subset(kind, key, value):
                why = "only StreamHandler to sys.stdout or sys.stderr, and plain words, are admitted"
            else:
                continue
            yield Finding(file, f"{section}::{key}", f"{key}={shown(value)}", why)


def _is_in_subset(kind: str, key: str, value: str) -> bool:
    if key in ("format", "datefmt"):  # taken as they are, never evaluated
        return True
    return (_VALUES.get((kind, key)) or _WORDS).fullmatch(value) is not None
