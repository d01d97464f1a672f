"""segpipe doctor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from segpipe.common.console import Console
from segpipe.errors import OK


def command(json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> int:
    """Print what the report of a bug needs: versions, machine, limits and settings, and what may be amiss.

    No host, user or home folder is named, and nothing is sent anywhere: read it, then paste it. torch, MONAI and the
    optional libraries are each imported in a process of their own, so one that is missing or broken is told like
    everything else. The exit code is 0 whatever is found.

    Example: segpipe doctor

    Example: segpipe doctor --json > doctor.json
    """
    from segpipe.cli.doctor import examine

    console = Console("doctor", as_json=json)
    found = examine()
    rows = [*_software(found), *_machine(found)]
    console.table("segpipe doctor", ["what", "found"], rows)
    if found["notes"]:
        console.table("What may be amiss", ["note"], [[note] for note in found["notes"]])
    else:
        console.say("Nothing amiss was found.")
    console.document(**found)
    return OK


def _software(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    own, system = found["segpipe"], found["system"]
    yield "segpipe", own["version"] + (f" (git {own['git_revision']})" if own["git_revision"] else "")
    around = [name.replace("_", " ") for name in ("virtual_environment", "container") if system[name]]
    yield "system", _list([system["name"], system["machine"], system["libc"], *around])
    yield "python", system["python"]
    for extra in (None, *(each["name"] for each in found["extras"])):
        needs = [each for each in found["requirements"] if each["extra"] == extra]
        packages = [f"{each['package']} {each['installed'] or 'missing'}" for each in needs]
        none = extra and all(each["state"] == "missing" for each in needs)
        yield f"packages [{extra}]" if extra else "packages", "none of them" if none else _list(packages)
    for name, library in found["libraries"].items():
        said = f"{library['error'] or 'ok'} ({library['seconds']} s)"
        yield name, _list([said, _value(library["facts"]) if library["facts"] else None])


def _machine(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    cpu, memory, settings = found["cpu"], found["memory"], dict(found["settings"])
    cores = f"{cpu['usable_cores']} of {cpu['cores']} cores"
    yield "processor", _list([cpu["processor"], cores, *cpu["instructions"]])
    limit = memory["group_limit_gib"]
    group = "no limit of a control group" if limit is None else f"{limit} GiB for the control group"
    free = f"{memory['available_gib']} GiB and {memory['swap_free_gib']} GiB of swap free"
    yield "memory", _list([f"{memory['total_gib']} GiB", free, group])
    for disk in found["disks"]:
        free = f"{disk['free_gib']} of {disk['total_gib']} GiB free"
        yield disk["what"], _list([free, None if disk["writable"] else "cannot be written to", disk["path"]])
    yield "limits", _value({name: "no limit" if at is None else at for name, at in found["limits"].items()})
    variables = settings.pop("variables")
    yield "settings", _value(settings)
    yield "variables", _list(f"{name}={value}" for name, value in variables.items())


def _value(value: Any) -> str:
    """A fact in one line."""
    if isinstance(value, dict):
        names = {key: key.replace("_gib", " in GiB").replace("_", " ") for key in value}
        return _list(f"{names[key]}: {_value(each)}" for key, each in value.items())
    if isinstance(value, list):
        return _list(map(_value, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _list(parts: Iterable[str | None]) -> str:
    return ", ".join(part for part in parts if part) or "none"
