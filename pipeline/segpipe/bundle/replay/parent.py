"""The parent of a replay: what the isolated process is given, how long it may take, and whether its answer is right.

A bundle that passed the static checks must give in an isolated process what it gave on its author's machine. The
expected label map and scores never reach that process. It hands its own over as files, which are compared here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from segpipe.bundle.golden import (
    DOCUMENT,
    GOLDEN,
    LABELS,
    SCORES,
    Golden,
    changed_quality,
    quality_differs,
    read_golden,
)
from segpipe.bundle.replay import child
from segpipe.bundle.tensors import WEIGHTS
from segpipe.bundle.vet import METADATA, SUMS, Finding, shown
from segpipe.common import isolation
from segpipe.common.partial import temporary_folder
from segpipe.common.processes import no_answer, tied
from segpipe.quality import QUALITY

HEADER = 4096  # bytes of a .npy file beside its values, at most
LEAST_MEMORY = 4 * 2**30
MOST_SAID = 2**20  # bytes of its answer
LAST_WORDS = 300  # characters
LOG = "log"


@dataclass
class Replay:
    """What came of running a bundle.

    Attributes:
        isolation: of the process, in words that begin with ``no network``, or ``none``; None where nothing was run.
        reason: why it is not isolated any further.
        network: that the network takes and gives what the metadata says, in words; None where it was not seen.
        golden: how the golden case came out, in words; None where it was not seen.
        numbers: of the golden case, for machines.
        not_run: why nothing was run, where that is no fault of the bundle.
        findings: what speaks against the bundle, by the check that found it: ``network`` or ``replay``.
    """

    isolation: str | None = None
    reason: str | None = None
    network: str | None = None
    golden: str | None = None
    numbers: dict[str, Any] | None = None
    not_run: str | None = None
    findings: dict[str, list[Finding]] = field(default_factory=lambda: {"network": [], "replay": []})

    @property
    def isolated(self) -> str:
        """How far the process was isolated, in words."""
        return f"isolation: {self.isolation}" + (f" ({self.reason})" if self.reason else "")

    def refuse(self, check: str, file: str, text: object, why: str) -> None:
        """Note what speaks against the bundle."""
        self.findings[check].append(Finding(file, "", shown(text), why))


def replay_bundle(root: Path, metadata: Mapping[str, Any], limits: Limits | None = None) -> Replay:
    """Run a bundle that passed the static checks, as no other may be run.

    Args:
        root: its folder.
        metadata: its metadata.
        limits: of the process; default: 15 minutes, and the memory that is free.
    """
    replay = Replay()
    stated = metadata.get("golden")
    golden, replay.findings["replay"] = read_golden(root, isinstance(stated, Mapping) and "voxels" in stated)
    network_input = _network_input(metadata)
    if golden is not None:
        replay.findings["replay"] += changed_quality(root, golden.document)
    if replay.findings["replay"] or (golden is None and network_input is None):
        return replay
    seed = None if golden is None else golden.document["scores"]["seed"]
    with temporary_folder() as fresh:
        started = time.monotonic()
        judged = golden is not None and "quality" in golden.document
        request = {"input": network_input, "golden": seed, "quality": judged}
        ran = run_isolated(root, fresh, request, limits or Limits.of_this_machine())
        replay.isolation, replay.reason = ran.isolation
        if not ran.began:
            replay.not_run = ran.ended
        elif ran.ended is not None:
            replay.refuse("replay" if golden else "network", "", ran.ended, "it does not come to an end as it should")
        else:
            if network_input is not None:
                _judge_network(replay, ran.answer.get("network", {}), metadata)
            if golden is not None:
                _judge_golden(replay, golden, ran, fresh / "out")
        if replay.numbers is not None:
            replay.numbers["seconds"] = round(time.monotonic() - started, 1)
    return replay


def _network_input(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return channels and spatial shape of the network's input, None where the metadata does not say."""
    image = _tensor(metadata, "inputs", "image")
    channels, shape = image.get("num_channels"), image.get("spatial_shape")
    sizes = isinstance(shape, list) and shape and all(isinstance(size, (int, str)) for size in shape)
    return {"channels": channels, "spatial_shape": shape} if isinstance(channels, int) and sizes else None


def _tensor(metadata: Mapping[str, Any], side: str, name: str) -> Mapping[str, Any]:
    part: Any = metadata
    for key in ("network_data_format", side, name):
        part = part.get(key) if isinstance(part, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _judge_network(replay: Replay, answer: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    given, taken = answer.get("output"), answer.get("input")
    if not _is_shape(given) or not _is_shape(taken):
        why = "the network cannot be built with its weights, or does not take what the metadata says"
        return replay.refuse("network", WEIGHTS, answer.get("error", "no answer"), why)
    stated = _tensor(metadata, "outputs", "pred")
    channels, shape = stated.get("num_channels"), stated.get("spatial_shape")
    wrong_channels = isinstance(channels, int) and channels != given[1]
    whole = isinstance(shape, list) and all(isinstance(size, int) for size in shape)
    if wrong_channels or (whole and shape != given[2:]):
        expected = f"the metadata says {channels} channels of {shape}"
        return replay.refuse("network", METADATA, f"{taken} becomes {given}", expected)
    replay.network = f"{_sizes(taken)} becomes {_sizes(given)}"


def _is_shape(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) > 2 and all(isinstance(size, int) for size in value)


def _sizes(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _judge_golden(replay: Replay, golden: Golden, ran: Ran, out: Path) -> None:
    answer = ran.answer.get("golden", {})
    if "error" in answer:
        return replay.refuse("replay", GOLDEN, answer["error"], "its inference fails on its golden case")
    try:
        labels = read_array(out, child.LABELS, golden.labels.nbytes + HEADER)
        scores = read_array(out, child.SCORES, golden.scores.nbytes + HEADER)
    except ValueError as error:
        return replay.refuse("replay", GOLDEN, error, "its inference gives nothing to compare")
    for file, found, expected in ((LABELS, labels, golden.labels), (SCORES, scores, golden.scores)):
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return replay.refuse("replay", file, f"{found.dtype} {found.shape}", "another array than was recorded")
    if not np.isfinite(scores).all():
        return replay.refuse("replay", SCORES, "", "scores that are no numbers")
    elsewhere = _elsewhere(golden.document["recorded_with"], ran.began["surroundings"])
    numbers = replay.numbers = _compare(golden, labels, scores, elsewhere)
    words = (
        f"largest difference of a score {numbers['max_score_difference']:.2g}, "
        f"{numbers['voxels_that_differ']} of {labels.size} voxels with another label"
    )
    where = (
        f"recorded elsewhere ({', '.join(elsewhere)})" if elsewhere else "recorded with the same versions and hardware"
    )
    if numbers["bit_equal"]:
        replay.golden = f"the golden case comes out bit by bit, {where}"
    elif elsewhere and numbers["within_tolerance"]:
        replay.golden = f"{words}; within the tolerance, {where}"
    else:
        tolerance = golden.document["tolerance"]
        asked = f"at most {tolerance['score']:g} and {tolerance['labels']:.2%}" if elsewhere else "equal bits"
        replay.refuse("replay", GOLDEN, words, f"not what it gave on its author's machine: {asked}, {where}")
    if replay.golden is not None and "quality" in golden.document:
        _judge_quality(replay, golden.document["quality"], ran.answer.get("quality", {}), bool(elsewhere))


def _judge_quality(replay: Replay, recorded: Mapping[str, Any], said: Mapping[str, Any], elsewhere: bool) -> None:
    differs = said["error"] if "error" in said else quality_differs(recorded, said, elsewhere)
    if differs:
        why = "the quality model does not say of the golden case what it said on its author's machine"
        return replay.refuse("replay", QUALITY, differs, why)
    replay.golden = f"{replay.golden}; its quality model says the same of it"


def _elsewhere(recorded: Mapping[str, Any], machine: Mapping[str, Any]) -> list[str]:
    """Return what of versions, hardware and threads differs here; where anything does, bits may differ."""
    parts = [(recorded[key], machine[key]) for key in ("versions", "hardware")]
    parts.append(({"threads": recorded["threads"]}, {"threads": machine["threads"]}))
    return [
        f"{name.replace('_', ' ')} {then.get(name)}, here {now.get(name)}"
        for then, now in parts
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]


def _compare(golden: Golden, labels: Any, scores: Any, elsewhere: list[str]) -> dict[str, Any]:
    differ = int((labels != golden.labels).sum())
    apart = float(np.abs(scores.astype(np.float64) - golden.scores).max())
    tolerance = golden.document["tolerance"]
    return {
        "bit_equal": differ == 0 and scores.tobytes() == golden.scores.tobytes(),
        "within_tolerance": apart <= tolerance["score"] and differ <= tolerance["labels"] * labels.size,
        "max_score_difference": apart,
        "voxels_that_differ": differ,
        "voxels": int(labels.size),
        "tolerance": tolerance,
        "differs_here": elsewhere,
    }


@dataclass(frozen=True)
class Limits:
    """What the process may take."""

    seconds: int = 900
    memory_bytes: int = LEAST_MEMORY

    @staticmethod
    def of_this_machine() -> Limits:
        """Return 15 minutes, and the memory that is free."""
        import psutil

        return Limits(memory_bytes=max(LEAST_MEMORY, int(psutil.virtual_memory().available)))


@dataclass
class Ran:
    """What is known of the process when it has ended.

    Attributes:
        began: what it said before anything of the bundle was loaded; empty where it did not come that far.
        answer: what it wrote afterwards, which nobody vouches for.
        ended: why there is no answer; None where there is one.
    """

    began: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    ended: str | None = None

    @property
    def isolation(self) -> tuple[str | None, str | None]:
        """How far it was isolated, and why no further."""
        return isolation.in_words(self.began) if self.began else (None, None)


def run_isolated(root: Path, work: Path, request: dict[str, Any], limits: Limits) -> Ran:
    """Run `segpipe.bundle.replay.child` isolated, on a copy of a bundle without what is expected.

    Args:
        root: the bundle.
        work: folder of which only this process knows.
        request: ``input`` and ``golden``, as `segpipe.bundle.replay.child.replay` takes them.
        limits: of the process.
    """
    bundle, out = work / "bundle", work / "out"
    expected = {root / name for name in (DOCUMENT, LABELS, SCORES, SUMS)}  # of which the last one lists the others
    shutil.copytree(root, bundle, ignore=lambda folder, names: {n for n in names if Path(folder, n) in expected})
    out.mkdir()
    request = {
        **request,
        "bundle": str(bundle),
        "work": str(out),
        "readable": [str(bundle)],
        "namespaces": True,
        "memory_bytes": limits.memory_bytes,
        "seconds": limits.seconds,
        "sys_path": isolation.import_path(),
        "then": f"{child.__name__}:main",
    }
    with (out / LOG).open("wb") as log:
        process = subprocess.Popen(
            tied([sys.executable, "-I", "-B", isolation.__file__]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=out,
            env=_environment(out),
            start_new_session=True,
        )
    late = False
    try:
        said, _ = process.communicate(json.dumps(request).encode() + b"\n", timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
        if late or process.returncode is None:
            said, _ = process.communicate()
    ended = no_answer(limits.seconds) if late else _how_it_ended(process.returncode, out)
    return _outcome(said, ended, out)


def read_array(out: Path, name: str, most_bytes: int) -> NDArray[Any]:
    """Return an array that the process wrote.

    Raises:
        ValueError: it is no plain file of numbers, or larger than it may be.
    """
    try:
        _require_plain(out / name, most_bytes)
        return np.asarray(np.load(out / name, allow_pickle=False))
    except Exception as error:  # bytes that nobody vouches for may break numpy anyhow
        raise ValueError(f"{name} cannot be read: {error}") from error


def _require_plain(path: Path, most_bytes: int) -> None:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > most_bytes:
        raise ValueError(f"{path.name} is no plain file of at most {most_bytes} bytes")


def _environment(out: Path) -> dict[str, str]:
    """Return nothing of the user's but where libraries lie; numbers are computed in one way."""
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    home = {name: str(out) for name in ("HOME", "TMPDIR", "MPLCONFIGDIR")}
    nobody = {"USER": "nobody", "LOGNAME": "nobody", "LANG": "C.UTF-8", "CUDA_VISIBLE_DEVICES": ""}
    return {**environment, **threads, **home, **nobody}


def _how_it_ended(code: int, out: Path) -> str | None:
    if code == 0:
        return None
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        why = ", as the system ends what takes too much memory" if -code == signal.SIGKILL else ""
        return f"the process was ended by {names.get(-code, -code)}{why}"
    with suppress(OSError, ValueError):
        _require_plain(out / LOG, MOST_SAID)
        if lines := (out / LOG).read_text(errors="replace").split("\n"):
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            return f"the process ended with code {code}: {last}"[:LAST_WORDS]
    return f"the process ended with code {code}"


def _outcome(answer_bytes: bytes, ended: str | None, out: Path) -> Ran:
    ran = Ran(ended=ended)
    try:
        ran.began = json.loads(answer_bytes)
    except ValueError:
        return Ran(ended=ended or "the process said nothing")
    if ended is None:
        try:
            _require_plain(out / child.ANSWER, MOST_SAID)
            answer = json.loads((out / child.ANSWER).read_text())
            ran.answer = {name: part for name, part in answer.items() if isinstance(part, dict)}
        except (OSError, ValueError, AttributeError):
            ran.ended = "the process left no answer that can be read"
    return ran
