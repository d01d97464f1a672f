"""What a name of ``--allow`` grants, in words, and the file that holds such names."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Collection, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

from segpipe.bundle.vet.arguments import guarded, kind_of, short_name
from segpipe.bundle.vet.names import ALLOWED
from segpipe.errors import UsageError

VERSIONS = ("monai_version", "pytorch_version", "version")
_COMMENT = "#"
_AT_LARGE = {
    "read": "read any file",
    "write": "write to any folder",
    "name": "name its files so that they lie in another folder",
    "named": "name its files so that they lie in another folder",
    "never": "be given code or settings that nobody checked",
}


def granted(name: str) -> str:
    """Return in words what ``--allow NAME`` lets a bundle do; torch and MONAI are not needed for it."""
    if name == "lambda":
        return "the bundle may run unnamed functions of its configs"
    if name.startswith("."):
        return f"the bundle may call the method {name[1:]} of anything that its configs hold"
    if name.startswith("@"):
        return f"the bundle may call what its config makes under {name[1:]}"
    if "/" in name or name.endswith((".py", ".ts")):
        return f"the bundle may run its own file {name}, which may do whatever you may do"
    if name in VERSIONS:
        return f"the bundle may be older or newer than its {name} should be"
    if words := _argument(name):
        return words
    if name.startswith("_") or "=" in name:
        return "the bundle may give this argument"
    if name in ("setattr", "getattr", "delattr"):
        return f"the bundle may call {name} on anything that its configs reach, and so change what this process does"
    if _is_module(name):
        return f"the bundle may use the module {name}; each function of it needs a name of its own"
    return f"the bundle may call {name}, with any arguments"


def _argument(name: str) -> str | None:
    """Return what an argument grants, None where the name is none."""
    owner, _, parameter = name.rpartition(".")
    if not owner and guarded(name) is None:
        return None
    names = (f"{module}.{each}" for module, listed in ALLOWED.items() for each in listed.split())
    listed = {short_name(each): each for each in names}
    if owner and owner not in listed:
        return None
    kind = kind_of(listed[owner], parameter) if owner else guarded(parameter)
    what = _AT_LARGE.get(kind) if isinstance(kind, str) else None
    of = f" of {owner}" if owner else ""
    return f"through {parameter}{of} the bundle may {what or 'be given what nobody checked'}"


def _is_module(name: str) -> bool:
    first = name.partition(".")[0]
    if name in sys.modules or name in sys.stdlib_module_names:
        return True
    return name == first and not hasattr(builtins, name) and PathFinder.find_spec(name) is not None


def grants_text(title: str, needed: Collection[str], more: Mapping[str, str]) -> str:
    """Return the text of a file of names, each with what it grants.

    Args:
        title: what the bundle is called.
        needed: names that it needs for `segpipe predict`.
        more: names that the rest of the bundle needs, with the file that does; they are comments in the text.
    """
    lines = [
        f"What {title} needs beside the list of admitted names, for --allow-file.",
        "Take out the lines of what you do not want to grant. Lines that begin with # are not read.",
        "",
        "For segpipe predict:" if needed else "For segpipe predict: nothing",
    ]
    text = [f"{_COMMENT} {line}".rstrip() for line in lines]
    for name in sorted(needed):
        text += ["", f"{_COMMENT} {_one_line(granted(name))}", name]
    if more:
        text += ["", f"{_COMMENT} Not run by segpipe predict; without the first # where you run it all the same:"]
    for name in sorted(more):
        text += ["", f"{_COMMENT} {more[name]}: {_one_line(granted(name))}", f"{_COMMENT}{name}"]
    return "\n".join(text) + "\n"


def _one_line(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)


def fits_a_line(name: str) -> bool:
    """Return whether a name can stand in a file of names: it is one word, and no comment."""
    return name.isprintable() and name.split() == [name] and not name.startswith(_COMMENT)


def read_grants(file: Path) -> tuple[str, ...]:
    """Return the names of a file: one a line, without blank lines and comments.

    Raises:
        UsageError: it cannot be read as text.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(
            "the file of --allow-file cannot be read",
            path=file,
            found=str(error).splitlines()[0],
            expected="text with one name a line",
            hint="`segpipe bundle inspect BUNDLE --allow-file FILE` writes one",
        ) from error
    return tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith(_COMMENT))
