"""What differs here from where a bundle was trained, as far as it can change a bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was recorded; None: it is not there, or was not recorded."""

    what: str
    recorded: str | None
    here: str | None

    def as_dict(self) -> dict[str, str | None]:
        """Plain values."""
        return asdict(self)


def differences(
    recorded: Mapping[str, Any] | None, here: Mapping[str, Any], on_gpu: bool = False
) -> list[Difference] | None:
    """What differs between two environments of `pipeline.provenance`; None where nothing is recorded.

    Versions, revision, system, processor and its vector instructions count, and the GPUs of a training on one. Cores
    and memory do not: the number of threads is that of the config.
    """
    if recorded is None:
        return None
    one, other = _flat(recorded, on_gpu), _flat(here, on_gpu)
    return [
        Difference(what, one.get(what), other.get(what))
        for what in {**one, **other}
        if one.get(what) != other.get(what)
    ]


def _flat(environment: Mapping[str, Any], on_gpu: bool) -> dict[str, str]:
    hardware = environment.get("hardware") or {}
    values = {
        **(environment.get("versions") or {}),
        "segpipe's revision": environment.get("git_revision"),
        "system": environment.get("system"),
        "processor": hardware.get("processor"),
        "vector instructions": hardware.get("cpu_capability"),
        "GPUs": ", ".join(hardware.get("gpus") or []) if on_gpu else None,
    }
    return {what: str(value) for what, value in values.items() if value is not None}
