"""What the parent of a batch and its worker say to each other: a dataclass a message, a line of JSON each.

A line that is no message of this version, with exactly its fields and their types, is refused by whoever reads it.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import time
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from segpipe.bundle import TrustPolicy
from segpipe.errors import SegpipeError
from segpipe.inference import Recipe
from segpipe.prediction.options import Outputs
from segpipe.quality import Rules

VERSION = 1
Message = TypeVar("Message")


@dataclass(frozen=True, kw_only=True)
class Isolated:
    """The worker's first words: for each layer of its isolation None where it was had, else why not.

    Attributes:
        network, files, calls: as `segpipe.common.isolation.isolate` returns them.
    """

    network: str | None
    files: str | None
    calls: str | None


@dataclass(frozen=True, kw_only=True)
class Load:
    """Vet the bundles, then make their model. Answered by `Loaded`.

    Attributes:
        keeps_memory: whether what a case frees stays with the process for the next one; not where a limit counts it.
    """

    recipe: Recipe
    policy: TrustPolicy
    keeps_memory: bool = False


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """A case: its id and NIfTI files (which may be said to be registered), or its series as its `as_dict` gives it.

    Attributes:
        covariates: what is known of who and how was scanned; of a series its header says it.
    """

    id: str
    paths: tuple[str, ...] = ()
    registered: bool = False
    series: dict[str, Any] | None = None
    covariates: dict[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Write the results of a case into a folder. Answered by `Segmented`.

    Attributes:
        rules: by which DICOM results say a decision.
    """

    case: CaseFiles
    folder: str
    outputs: Outputs
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True, kw_only=True)
class Prefetch:
    """Read a case while the one before it is computed, if both fit. Not answered.

    Attributes:
        case: that will be asked for next.
        max_bytes: of memory at which the worker is ended; None for no limit.
    """

    case: CaseFiles
    max_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The model is there: how it is run, and what the gate said. All of it stands in every ``result.json``.

    How far the process is isolated the batch adds itself, from what was said before any code of the bundle ran.
    """

    vetting: dict[str, Any] | None = None
    engine: str | None = None
    engine_reasons: tuple[str, ...] = ()
    runtime: str | None = None
    runtime_reasons: tuple[str, ...] = ()
    precision: str = "float32"
    precision_reason: str = ""
    device: str = "cpu"
    threads: int = 1
    versions: dict[str, str] = field(default_factory=dict)
    isolation: str | None = None
    isolation_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """The results of a case are written. All of it stands in its ``result.json``.

    Attributes:
        quality: as `segpipe.quality.Assessment` has it; None where the bundle has no quality model.
        doubtful_slices: as `segpipe.bundle.Segmentation` has them.
        notes: on the voxels; those of the scan the batch knows itself.
    """

    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    intensity: list[Any] = field(default_factory=list)
    regions: int = 0
    voxels: dict[str, int]
    volumes_ml: dict[str, float]
    flags: dict[str, Any]
    files: dict[str, str]
    not_written: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float]
    quality: dict[str, Any] | None = None
    doubtful_slices: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What was asked for cannot be done.

    Attributes:
        kind: name of the error's class in `segpipe.errors`.
        error: its parts.
        reason: the word of a DICOM refusal; None for other errors.
        stop: whether no further case can be done either.
    """

    kind: str
    error: dict[str, Any]
    reason: str | None = None
    stop: bool = False


KINDS: tuple[type[Any], ...] = (Isolated, Load, Segment, Prefetch, Loaded, Segmented, Failed)
MESSAGES = {kind.__name__: kind for kind in KINDS}


def to_json(message: Any) -> str:
    """Return a message as one line, its end included."""
    return json.dumps({"version": VERSION, "message": type(message).__name__, **asdict(message)}) + "\n"


def read_line(handle: int, pending: bytearray, deadline: float, poll_s: float, check: Callable[[], object]) -> bytes:
    """Return the next line of a pipe, or what there was of it at the pipe's end.

    Args:
        handle: of the pipe.
        pending: what was read of the pipe and not returned; what lies behind the line is left in it.
        deadline: on the monotonic clock; infinite for none.
        poll_s: seconds between calls of ``check`` before that; infinite for none.
        check: called while nothing comes; it raises where no more is to be waited for.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(handle, selectors.EVENT_READ)
        while b"\n" not in pending:
            wait_s = min(poll_s, max(0.0, deadline - time.monotonic()))
            if not selector.select(None if wait_s == math.inf else wait_s):
                check()
                continue
            block = os.read(handle, 1 << 16)
            if not block:
                break
            pending += block
    line, newline, rest = pending.partition(b"\n")
    pending[:] = rest
    return bytes(line + newline)


def from_json(line: str | bytes) -> Any:
    """Return the message of a line.

    Raises:
        SegpipeError: it is none of this version, lacks a field, has an unknown one, or a value of another type.
    """
    try:
        parts = json.loads(line)
        version, kind = parts.pop("version"), parts.pop("message")
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise _unknown("no message", error) from error
    if version != VERSION or kind not in MESSAGES:
        raise _unknown(f"{kind} of version {version}", f"one of {', '.join(MESSAGES)} of version {VERSION}")
    return _dataclass(MESSAGES[kind], parts, kind)


def _dataclass(kind: type[Message], parts: Any, place: str) -> Message:
    known = {part.name: part for part in fields(kind)}  # type: ignore[arg-type]
    needed = {name for name, part in known.items() if part.default is MISSING and part.default_factory is MISSING}
    if not isinstance(parts, Mapping) or not needed <= set(parts) <= set(known):
        wrong = sorted(set(parts) ^ set(known)) if isinstance(parts, Mapping) else type(parts).__name__
        raise _unknown(f"{place}: {wrong}", "the fields of this version")
    types = get_type_hints(kind)
    return kind(**{name: _typed(types[name], value, f"{place}.{name}") for name, value in parts.items()})


def _typed(kind: Any, value: Any, place: str) -> Any:
    """Return a value of JSON as a field's type has it."""
    container, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _dataclass(kind, value, place)  # type: ignore[arg-type]
    if container in (Union, UnionType):
        options = [option for option in inner if option is not NoneType]
        return None if value is None and NoneType in inner else _typed(options[0], value, place)
    if container is dict and isinstance(value, Mapping):
        return {inner[0](name): _typed(inner[1], part, f"{place}.{name}") for name, part in value.items()}
    if container in (list, tuple) and isinstance(value, list):
        return container(_typed(inner[0], part, place) for part in value)
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise _unknown(f"{place}: {type(value).__name__}", str(getattr(kind, "__name__", kind)))


def _unknown(found: str, expected: object) -> SegpipeError:
    return SegpipeError("a message between the batch and its worker is not understood", found=found, expected=expected)
