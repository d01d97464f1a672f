"""A bundle's training once more, from its own record: is the data the same, is the machine, are the weights?

`check_record` compares data and machine with it, and
`reproduce` trains in an ordinary run folder and judges what came of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from segpipe.bundle import State, read_state, tensors_sha256, weights_of
from segpipe.common.console import SCHEMA_VERSION
from segpipe.common.files import sha256_of, write_json
from segpipe.common.processes import usable_cores
from segpipe.common.provenance import environment
from segpipe.data import Case, data_root
from segpipe.errors import DataError, UsageError
from segpipe.studies.recorded import Recorded
from segpipe.training import accept_this_cpu, check_components, check_network, require_same, resume, start

MOST_NAMED = 10
REPORT = "reproduction.json"
KIND = "instructions for bfloat16"
WIDTH = 2.0  # standard deviations to either side of the mean over seeds
Verdict = Literal["bit-identical", "within the spread", "outside the spread", "spread unknown", "not bit-identical"]
VERDICTS: dict[Verdict, str] = {
    "bit-identical": "reproduced: bit-identical weights",
    "within the spread": "reproduced in another environment: other weights, and a validation Dice within the "
    "seed-to-seed spread",
    "outside the spread": "not reproduced: other weights, and a validation Dice outside the seed-to-seed spread",
    "spread unknown": "not shown: other weights, and the bundle records no seed-to-seed spread to judge by",
    "not bit-identical": "not reproduced: the environment is the recorded one, and the weights are others",
}
SEVERITY: tuple[Verdict, ...] = (
    "bit-identical",
    "within the spread",
    "spread unknown",
    "outside the spread",
    "not bit-identical",
)


@dataclass(frozen=True)
class Difference:
    """What is not as it was recorded; None where it is not there, or was not recorded."""

    what: str
    recorded: str | None
    here: str | None


@dataclass(frozen=True)
class Checked:
    """Data and machine beside the record.

    Attributes:
        data: number of ``cases`` and ``files``, and how many files are ``without_hash``.
        differences: between the environments; None where the bundle records none.
        notes: what a user should know before the training, in sentences.
    """

    data: dict[str, int]
    differences: list[Difference] | None
    notes: list[str]


def check_record(recorded: Recorded, data: Path, advance: Callable[[int], object] = lambda total: None) -> Checked:
    """Compare the data set and this machine with the record.

    Args:
        recorded: of the bundle.
        data: folder of the data set.
        advance: called with the number of all cases, once a case.

    Raises:
        DataError: files are missing or were changed; it names them.
    """
    cases = recorded.cases
    files = check_data(cases, data_root(recorded.manifest_file, data), lambda: advance(len(cases)))
    differing = differences(recorded.environment, environment(), recorded.on_gpu)
    notes, threads = [], recorded.config["threads"]
    if files["without_hash"]:
        notes.append(f"{files['without_hash']} of {files['files']} files have no recorded hash: taken as they are")
    if not all(each.finished for each in recorded.members or (recorded,)):
        notes.append("the recorded training did not finish: this one goes on to its end")
    if usable_cores() < threads:
        notes.append(f"recorded with {threads} threads, which is more than the cores here")
    if differing is None:
        notes.append("the bundle does not record where it was trained: a difference could not be explained")
    notes += [f"{part.what}: recorded {part.recorded}, here {part.here}" for part in differing or []]
    notes += ["so the weights may differ"] if differing else []
    return Checked(files, differing, notes)


def check_data(cases: list[Case], root: Path, advance: Callable[[], object]) -> dict[str, int]:
    """Compare each file below ``root`` with the hash that it had when the weights were trained."""
    faults, files, without = [], 0, 0
    for case in cases:
        for path in case.paths:
            expected = (case.sha256 or {}).get(path)
            files += 1
            without += expected is None
            if not (root / path).is_file():
                faults.append(f"missing {path}")
            elif expected is not None and sha256_of(root / path) != expected:
                faults.append(f"changed {path}")
        advance()
    if faults:
        more = f", and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        raise DataError(
            f"the data is not what the bundle was trained on: {len(faults)} of {files} files differ",
            path=root,
            found=", ".join(faults[:MOST_NAMED]) + more,
            expected="the files whose hashes the bundle's manifest holds",
            hint="name their folder with --data, or get the files again; other data would give other weights",
        )
    return {"cases": len(cases), "files": files, "without_hash": without}


def differences(
    recorded: Mapping[str, Any] | None, current: Mapping[str, Any], on_gpu: bool = False
) -> list[Difference] | None:
    """Return what differs between two environments of `segpipe.common.provenance`; None where nothing is recorded.

    Versions, revision, system, processor and its vector instructions count, and the GPUs of a training on one. Cores
    and memory do not: the number of threads is that of the config.
    """
    if recorded is None:
        return None
    then, now = _flat(recorded, on_gpu), _flat(current, on_gpu)
    if KIND not in then:  # of earlier versions
        now.pop(KIND, None)
    return [
        Difference(name, then.get(name), now.get(name)) for name in {**then, **now} if then.get(name) != now.get(name)
    ]


def _flat(environment: Mapping[str, Any], on_gpu: bool) -> dict[str, str]:
    hardware = environment.get("hardware") or {}
    values = {
        **(environment.get("versions") or {}),
        "segpipe's revision": environment.get("git_revision"),
        "system": environment.get("system"),
        "processor": hardware.get("processor"),
        "vector instructions": hardware.get("cpu_capability"),
        KIND: hardware.get("cpu_kind"),
        "GPUs": ", ".join(hardware.get("gpus") or []) if on_gpu else None,
    }
    return {what: str(value) for what, value in values.items() if value is not None}


def reproduce(recorded: Recorded, checked: Checked, out: Path, data: Path) -> dict[str, Any]:
    """Train with the recorded config, seed, threads and workers, judge the weights, and write ``reproduction.json``.

    A run that is there goes on, a finished one is kept. The members of an ensemble are trained one after the other.

    Args:
        recorded: of the bundle.
        checked: of `check_record`.
        out: run folder; of an ensemble the folder of its runs, ``fold_0`` and so on.
        data: folder of the data set.

    Returns:
        The report, as docs/schemas has it, but for the folder.

    Raises:
        UsageError: the folder holds another run, or the config needs what this version does not have.
        KeyboardInterrupt: the same call goes on from there.
    """
    if recorded.members and (out / "run.json").exists():
        raise UsageError("the folder holds a single run", path=out, hint="choose another --out")
    runs = [(each, out / f"fold_{each.fold}") for each in recorded.members] or [(recorded, out)]
    outcomes = [_outcome(each, folder, data) for each, folder in runs]
    first = outcomes[0]
    verdict = _worst([each.verdict for each in outcomes])
    members = [
        {"fold": each.fold, "seed": each.config["seed"], "folder": folder.name, **outcome.document()}
        for (each, folder), outcome in zip(runs, outcomes, strict=True)
    ]
    report = {
        "schema_version": SCHEMA_VERSION,
        "command": "reproduce",
        **report_head(recorded, replace(checked, differences=_all_differences(outcomes))),
        "seconds": round(sum(each.seconds for each in outcomes), 1),
        "weights": first.weights if len(outcomes) == 1 else _together([each.weights for each in outcomes]),
        "validation": first.validation if len(outcomes) == 1 else compare_validation(None, None, None),
        **({"members": members} if recorded.members else {}),
        "verdict": verdict,
        "reproduced": verdict in ("bit-identical", "within the spread"),
    }
    write_json(out / REPORT, report)
    return report


@dataclass(frozen=True)
class _Outcome:
    """What came of one training: seconds, both sides of its weights and validation, and the verdict."""

    seconds: float
    weights: dict[str, Any]
    validation: dict[str, Any]
    verdict: Verdict
    differences: list[Difference] | None

    def document(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "weights": self.weights,
            "validation": self.validation,
            "verdict": self.verdict,
        }


def _outcome(recorded: Recorded, out: Path, data: Path) -> _Outcome:
    record = _train(recorded, out, data)
    differing = differences(recorded.environment, record["environment"], recorded.on_gpu)  # of when it was trained
    weights = compare_weights(recorded.weights, read_state(weights_of(out)))
    validation = compare_validation(recorded.best, record.get("best"), recorded.spread)
    verdict = _verdict(weights["identical"], validation["within_spread"], differing)
    seconds = round(sum(session["seconds"] for session in record["sessions"]), 1)
    return _Outcome(seconds, weights, validation, verdict, differing)


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on an ensemble: it is reproduced where each of its members is."""
    return max(verdicts, key=SEVERITY.index)


def _all_differences(outcomes: Sequence[_Outcome]) -> list[Difference] | None:
    """Return each difference between the environments once; None where one member has no record of its own."""
    if any(each.differences is None for each in outcomes):
        return None
    return list(dict.fromkeys(part for each in outcomes for part in each.differences or []))


def _together(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the weights of all members as one: sums, the largest difference, and hashes over theirs."""
    apart = [each["max_abs_difference"] for each in members]
    hashes = {
        side: hashlib.sha256("\n".join(each["sha256"][side] for each in members).encode()).hexdigest()
        for side in ("recorded", "here")
    }
    return {
        "identical": all(each["identical"] for each in members),
        "tensors": sum(each["tensors"] for each in members),
        "differing": sum(each["differing"] for each in members),
        "max_abs_difference": None if None in apart else max(apart),
        "sha256": hashes,
    }


def report_head(recorded: Recorded, checked: Checked) -> dict[str, Any]:
    """Return the part of the report that is known before the training."""
    differing = checked.differences
    return {
        "bundle": recorded.bundle,
        "training": recorded.numbers,
        "data": checked.data,
        "environment": {"recorded": differing is not None, "differences": [asdict(part) for part in differing or []]},
    }


def _train(recorded: Recorded, out: Path, data: Path) -> dict[str, Any]:
    composed = recorded.at(out, data)
    if (out / "run.json").exists():
        require_same(out, composed.config, recorded.manifest_file)
        accept_this_cpu(out)  # the report tells of the difference
        return resume(out, data)
    check_components(composed.config)
    check_network(composed.config)
    return start(composed, recorded.manifest_file, out)


def compare_weights(recorded: State, trained: State) -> dict[str, Any]:
    """Return how far two state dicts are apart; ``max_abs_difference`` is None where names, types or shapes differ."""
    import torch

    hashes = {"recorded": tensors_sha256(recorded), "here": tensors_sha256(trained)}
    names = sorted({*recorded, *trained})
    unequal = [name for name in names if _hash(recorded, name) != _hash(trained, name)]
    apart: float | None = 0.0
    if any(_form(recorded, name) != _form(trained, name) for name in unequal):
        apart = None
    elif unequal:
        gaps = [(recorded[name].double() - trained[name].double()).abs().max() for name in unequal]
        largest = float(torch.stack(gaps).max())  # which is NaN where one is
        apart = largest if math.isfinite(largest) else None
    return {
        "identical": hashes["recorded"] == hashes["here"],
        "tensors": len(names),
        "differing": len(unequal),
        "max_abs_difference": apart,
        "sha256": hashes,
    }


def compare_validation(
    recorded: Mapping[str, Any] | None, trained: Mapping[str, Any] | None, spread: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the best validation Dice of both sides, and whether the one here lies within the spread over seeds.

    Within: at most `WIDTH` sample standard deviations from the mean over seeds, or between their least and largest.
    """
    measured = spread if spread and spread.get("sd") is not None else None
    within = None
    if measured and trained:
        value = trained["val_mean_dice"]
        near = abs(value - measured["mean"]) <= WIDTH * measured["sd"]
        within = near or measured["min"] <= value <= measured["max"]
    return {
        "recorded": recorded and dict(recorded),
        "here": trained and dict(trained),
        "difference": trained["val_mean_dice"] - recorded["val_mean_dice"] if recorded and trained else None,
        "spread": spread and dict(spread),
        "within_spread": within,
    }


def _verdict(identical: bool, within: bool | None, differing: list[Difference] | None) -> Verdict:
    if identical:
        return "bit-identical"
    if differing == []:
        return "not bit-identical"
    if within is None:
        return "spread unknown"
    return "within the spread" if within else "outside the spread"


def _hash(state: State, name: str) -> str | None:
    return tensors_sha256({name: state[name]}) if name in state else None


def _form(state: State, name: str) -> tuple[Any, ...] | None:
    return (state[name].dtype, tuple(state[name].shape)) if name in state else None
