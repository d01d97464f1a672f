"""The dynamic half of verifying a bundle: in an isolated process it must give what it gave on its author's machine.

The expected label map and scores never reach that process. It hands its own over as files, which are compared here.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from segpipe.bundle.golden import GOLDEN, LABELS, SCORES, Golden, read_golden
from segpipe.bundle.replay.child import LABELS as GIVEN_LABELS
from segpipe.bundle.replay.child import SCORES as GIVEN_SCORES
from segpipe.bundle.replay.isolated_process import Limits, Ran, read_array, run_isolated
from segpipe.bundle.vet import Finding, shown

METADATA, WEIGHTS = "configs/metadata.json", "models/model.pt"
HEADER = 4096  # bytes of a .npy file beside its values, at most


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
    said = metadata.get("golden")
    golden, replay.findings["replay"] = read_golden(root, isinstance(said, Mapping) and "voxels" in said)
    taken = _network_input(metadata)
    if replay.findings["replay"] or (golden is None and taken is None):
        return replay
    seed = None if golden is None else golden.document["scores"]["seed"]
    with tempfile.TemporaryDirectory(prefix="segpipe-replay-") as fresh:
        started = time.monotonic()
        request = {"input": taken, "golden": seed}
        ran = run_isolated(root, Path(fresh), request, limits or Limits.of_this_machine())
        replay.isolation, replay.reason = ran.isolation
        if not ran.began:
            replay.not_run = ran.ended
        elif ran.ended is not None:
            replay.refuse("replay" if golden else "network", "", ran.ended, "it does not come to an end as it should")
        else:
            if taken is not None:
                _judge_network(replay, ran.answer.get("network", {}), metadata)
            if golden is not None:
                _judge_golden(replay, golden, ran, Path(fresh) / "out")
        if replay.numbers is not None:
            replay.numbers["seconds"] = round(time.monotonic() - started, 1)
    return replay


def _network_input(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Channels and spatial shape of the network's input, None where the metadata does not say."""
    image = _tensor(metadata, "inputs", "image")
    channels, shape = image.get("num_channels"), image.get("spatial_shape")
    if not isinstance(channels, int) or not isinstance(shape, list) or not shape:
        return None
    if not all(isinstance(size, (int, str)) for size in shape):
        return None
    return {"channels": channels, "spatial_shape": shape}


def _tensor(metadata: Mapping[str, Any], side: str, name: str) -> Mapping[str, Any]:
    found: Any = metadata
    for key in ("network_data_format", side, name):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _judge_network(replay: Replay, answer: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    given, taken = answer.get("output"), answer.get("input")
    if not _is_shape(given) or not _is_shape(taken):
        why = "the network cannot be built with its weights, or does not take what the metadata says"
        return replay.refuse("network", WEIGHTS, answer.get("error", "no answer"), why)
    said = _tensor(metadata, "outputs", "pred")
    channels, shape = said.get("num_channels"), said.get("spatial_shape")
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
        labels = read_array(out, GIVEN_LABELS, golden.labels.nbytes + HEADER)
        scores = read_array(out, GIVEN_SCORES, golden.scores.nbytes + HEADER)
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


def _elsewhere(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What of versions, hardware and threads is not here as it was there; bits may differ where anything is."""
    parts = [(recorded[key], here[key]) for key in ("versions", "hardware")]
    parts.append(({"threads": recorded["threads"]}, {"threads": here["threads"]}))
    return [
        f"{name.replace('_', ' ')} {there.get(name)}, here {now.get(name)}"
        for there, now in parts
        for name in sorted({*there, *now})
        if there.get(name) != now.get(name)
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
