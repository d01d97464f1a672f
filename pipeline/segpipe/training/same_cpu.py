"""A run goes on bit for bit on the kind of CPU that it began on; elsewhere it has to be asked for, and is recorded.

Kernels are chosen by the instructions that a CPU has, and others give other last bits. What was accepted stands in
the record, so that the runs of a series, each in a process of its own, know of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segpipe.common.files import read_json, write_json
from segpipe.common.provenance import hardware
from segpipe.errors import UsageError

FACTS = ("cpu_kind", "cpu_capability")


def require_same_cpu(out: Path, record: Mapping[str, Any]) -> None:
    """Refuse to go on on a kind of CPU that the run neither began on nor was accepted on.

    Args:
        out: run folder.
        record: content of its ``run.json``.

    Raises:
        UsageError: with what goes on all the same.
    """
    here, known = _of(hardware()), _known(record)
    if here in known or not known or _on_gpu(out):
        return
    raise UsageError(
        "the run began on another kind of CPU, whose last bits are others",
        path=out,
        found=_words(here),
        expected=" or ".join(_words(kind) for kind in known),
        hint="go on there, or here with `segpipe train --resume RUN --allow-other-cpu`, which the record will say",
    )


def accept_this_cpu(out: Path) -> None:
    """Let a run, or the runs of a series, go on on this kind of CPU; their records say from which epoch on.

    Args:
        out: run folder, or the folder of several.
    """
    for path in (out / "run.json", *sorted(out.glob("*/run.json"))):
        record = read_json(path, "run record") if path.is_file() else {"status": "finished"}
        known = _known(record)
        if record["status"] == "finished" or not known or _of(hardware()) in known:
            continue
        accepted = {"after_epoch": record.get("epochs", 0), **_of(hardware())}
        write_json(path, {**record, "other_cpus": [*record.get("other_cpus", []), accepted]})


def _known(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the kinds that a run may go on on; none where its record is of an earlier version."""
    began = (record.get("environment") or {}).get("hardware") or {}
    kinds = [_of(each) for each in (began, *record.get("other_cpus", []))]
    return kinds if len(kinds[0]) == len(FACTS) else []


def _of(machine: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(machine[name]) for name in FACTS if name in machine}


def _words(kind: Mapping[str, str]) -> str:
    return f"{kind['cpu_capability']}, bfloat16 by {kind['cpu_kind']}"


def _on_gpu(out: Path) -> bool:
    return "cuda" in str(read_json(out / "config.json", "run config").get("device"))
