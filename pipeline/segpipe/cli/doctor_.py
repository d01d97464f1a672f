"""segpipe doctor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from segpipe.cli.shared_options import AsJson
from segpipe.common.console import Console
from segpipe.errors import OK


def command(json: AsJson = False) -> int:
    """Print what the report of a bug needs: versions, machine, limits and settings, and what may be amiss.

    No host, user or home folder is named, and nothing is sent anywhere: read it, then paste it. torch, MONAI and the
    optional libraries are each imported in a process of their own, so one that is missing or broken is told like
    everything else. The exit code is 0 whatever is found.

    Example: segpipe doctor

    Example: segpipe doctor --json > doctor.json
    """
    from segpipe.cli.doctor import examine

    console = Console("doctor", as_json=json)
    facts = examine()
    console.table("segpipe doctor", ["what", "found"], list(_rows(facts)))
    if facts["notes"]:
        console.table("What may be amiss", ["note"], [[note] for note in facts["notes"]])
    else:
        console.say("Nothing amiss was found.")
    console.document(**facts)
    return OK


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "segpipe", _text(facts["segpipe"])
    yield "system", _text(facts["system"])
    for extra in (None, *(extra["name"] for extra in facts["extras"])):
        needs = [need for need in facts["requirements"] if need["extra"] == extra]
        packages = [f"{need['package']} {need['installed'] or 'missing'}" for need in needs]
        absent = extra and all(need["state"] == "missing" for need in needs)
        yield f"packages [{extra}]" if extra else "packages", "none of them" if absent else _text(packages)
    for name, library in facts["libraries"].items():
        outcome = f"{library['error'] or 'ok'} ({library['seconds']} s)"
        yield name, _text([outcome, library["facts"]] if library["facts"] else outcome)
    yield "processor", _text(facts["cpu"])
    yield "memory", _text(facts["memory"])
    for disk in facts["disks"]:
        yield disk["what"], _text({name: disk[name] for name in ("free_gib", "total_gib", "writable", "path")})
    yield "limits", _text({name: "no limit" if limit is None else limit for name, limit in facts["limits"].items()})
    yield "settings", _text(facts["settings"])


def _text(value: Any) -> str:
    """Return a fact in one line."""
    if isinstance(value, dict):
        names = {name: name.replace("_gib", " in GiB").replace("_", " ") if name.islower() else name for name in value}
        value = [f"{names[name]}: {_text(part)}" for name, part in value.items()]
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
