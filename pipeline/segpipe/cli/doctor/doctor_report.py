"""The packages that segpipe says it needs, and whether those that are installed are among them.

The report: facts of the software and the machine, and notes on what may be amiss.
"""

from __future__ import annotations

import contextlib
import getpass
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, Literal

from segpipe.cli.doctor import machine
from segpipe.cli.doctor.probes import try_all
from segpipe.common.provenance import git_revision

OWN = "segpipe"
State = Literal["ok", "missing", "conflict"]


@dataclass(frozen=True)
class Need:
    """One requirement of segpipe.

    Attributes:
        package: its name.
        required: range of versions, empty where any will do.
        installed: version that is here.
        extra: the extra of segpipe that it belongs to; None where segpipe needs it anyhow.
        state: whether what is installed is within the range.
    """

    package: str
    required: str
    installed: str | None
    extra: str | None
    state: State


def needs() -> list[Need]:
    """Every requirement of the installed segpipe; empty where it is not installed as a package."""
    return list(_needs())


def extras(found: list[Need]) -> list[dict[str, Any]]:
    """Each extra of segpipe, and what of it is missing."""
    names = dict.fromkeys(each.extra for each in found if each.extra)
    return [
        {"name": name, "missing": [each.package for each in found if each.extra == name and each.state == "missing"]}
        for name in names
    ]


def as_dicts(found: list[Need]) -> list[dict[str, Any]]:
    """Plain values."""
    return [asdict(each) for each in found]


def supported_pythons() -> str | None:
    """The range of Python versions, as the installed segpipe says it."""
    try:
        return metadata(OWN)["Requires-Python"]
    except (PackageNotFoundError, KeyError):
        return None


def _needs() -> Iterator[Need]:
    from packaging.requirements import Requirement

    try:
        lines = requires(OWN) or []
    except PackageNotFoundError:
        return
    for line in lines:
        need = Requirement(line)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
        if need.marker and not need.marker.evaluate({"extra": extra[1] if extra else ""}):
            continue  # for another Python or system
        here = _version(need.name)
        fits = here is not None and need.specifier.contains(here, prereleases=True)
        state: State = "missing" if here is None else "ok" if fits else "conflict"
        yield Need(need.name, str(need.specifier), here, extra[1] if extra else None, state)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


OPTIONAL = {"openvino": "openvino", "model-signing": "sign"}  # the extra that brings a library
LITTLE_GIB = 2.0
FEW_FILES = 256
LEAST_SHARED_GIB = 0.5  # what data loaders hand over


def examine() -> dict[str, Any]:
    """Everything that `segpipe doctor` prints, as plain values; no host, user or home folder is named."""
    from segpipe import __version__

    needed = needs()
    found: dict[str, Any] = {
        "segpipe": {"version": __version__, "git_revision": git_revision()},
        "requirements": as_dicts(needed),
        "extras": extras(needed),
        "libraries": try_all(),
        "system": machine.system(),
        "cpu": machine.cpu(),
        "memory": machine.memory(),
        "disks": machine.disks(),
        "limits": machine.limits(),
        "settings": machine.settings(),
    }
    return _nameless({**found, "notes": list(notes(found, supported_pythons()))})


def notes(found: dict[str, Any], pythons: str | None) -> Iterator[str]:
    """What may be amiss, each in a sentence.

    Args:
        found: what `examine` gathered.
        pythons: range of Python versions that segpipe supports; None where it is not installed as a package.
    """
    yield from _notes_on_software(found, pythons)
    yield from _notes_on_libraries(found)
    yield from _notes_on_machine(found)


def _notes_on_software(found: dict[str, Any], pythons: str | None) -> Iterator[str]:
    if pythons is None:
        yield "segpipe is not installed as a package, so its requirements were not looked at: pip install ."
    else:
        from packaging.specifiers import SpecifierSet

        here = found["system"]["python"].split()[-1]
        if not SpecifierSet(pythons).contains(here, prereleases=True):
            yield f"Python {here} is not supported: segpipe needs {pythons}"
    for each in found["requirements"]:
        wanted = f"{each['package']}{each['required']}"
        if each["state"] == "conflict":
            yield f"{each['package']} {each['installed']} is not supported: segpipe needs {wanted}"
        elif each["state"] == "missing" and each["extra"] is None:
            yield f"{wanted} is not installed"


def _notes_on_libraries(found: dict[str, Any]) -> Iterator[str]:
    whole = {each["name"] for each in found["extras"] if not each["missing"]}
    for name, library in found["libraries"].items():
        if not library["imports"] and OPTIONAL.get(name) in {None, *whole}:
            yield f"{name} does not work: {library['error']}"
    for codec, available in found["libraries"].get("dicom", {}).get("facts", {}).get("codecs", {}).items():
        if not available:
            yield f"DICOM files in {codec} cannot be read: their decoder is missing"
    for what, possible in found["libraries"].get("isolation", {}).get("facts", {}).items():
        if possible != "possible":
            yield f"bundles are verified less isolated than they could be ({what.replace('_', ' ')}): {possible}"
    torch = found["libraries"].get("torch", {})
    if torch.get("imports") and not torch["facts"]["gpus"] and Path("/dev/nvidia0").exists():
        yield "there is a GPU of NVIDIA, and this torch does not see it: install one that is built for its driver"


def _notes_on_machine(found: dict[str, Any]) -> Iterator[str]:
    memory, limits, variables = found["memory"], found["limits"], found["settings"]["variables"]
    if memory["available_gib"] < LITTLE_GIB:
        yield f"only {memory['available_gib']} GiB of memory are free"
    for disk in found["disks"]:
        least = LEAST_SHARED_GIB if disk["what"] == "shared memory" else LITTLE_GIB
        if disk["free_gib"] < least:
            yield f"{disk['what']}: only {disk['free_gib']} GiB are free"
        if not disk["writable"]:
            yield f"{disk['what']}: the folder cannot be written to"
    if limits.get("address_space_gib") is not None:
        yield f"ulimit -v leaves {limits['address_space_gib']} GiB of addresses: libraries may fail to load"
    if (limits.get("open_files") or FEW_FILES) < FEW_FILES:
        yield f"ulimit -n leaves {limits['open_files']} open files"
    if found["settings"]["encoding"].lower().replace("-", "") != "utf8":
        yield f"text is read as {found['settings']['encoding']}, not UTF-8: set PYTHONUTF8=1"
    threads = variables.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > found["cpu"]["usable_cores"]:
        yield f"OMP_NUM_THREADS is {threads}, and {found['cpu']['usable_cores']} cores may be used"


def _nameless(value: Any) -> Any:
    """Plain values, with the home folder as ``~`` in each text, and the user's name in no path."""
    home, users = str(Path.home()), {Path.home().name}
    with contextlib.suppress(OSError, KeyError, ImportError):
        users.add(getpass.getuser())
    at_home = re.compile(rf"(?<![\w.~]){re.escape(home)}(?![\w.-])")
    named = re.compile(rf"(?<=[/\\])(?:{'|'.join(re.escape(user) for user in users if user)})(?![\w.-])")

    def without(each: Any) -> Any:
        if isinstance(each, dict):
            return {key: without(item) for key, item in each.items()}
        if isinstance(each, list):
            return [without(item) for item in each]
        if not isinstance(each, str):
            return each
        return named.sub("~", at_home.sub("~", each))

    return without(value)
