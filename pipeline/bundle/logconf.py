"""``logging.conf`` in a closed form: `logging.config.fileConfig` evaluates it, and it may open files and sockets."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.bundle.finding import Finding, shown

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
    """What in an INI file for `fileConfig` is more than handlers that write to standard output or standard error."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (configparser.Error, ValueError, OSError) as error:
        yield Finding(
            file, "", shown(str(error).replace("\n", " ")), "it cannot be read as a logging configuration"
        )
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
            elif not _is_closed(kind, key, value):
                why = "only StreamHandler to sys.stdout or sys.stderr, and plain words, are admitted"
            else:
                continue
            yield Finding(file, f"{section}::{key}", f"{key}={shown(value)}", why)


def _is_closed(kind: str, key: str, value: str) -> bool:
    if key in ("format", "datefmt"):  # taken as they are, never evaluated
        return True
    return (_VALUES.get((kind, key)) or _WORDS).fullmatch(value) is not None
