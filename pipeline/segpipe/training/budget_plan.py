"""From a budget of time to a plan for the machine at hand: measure, choose, and measure what was chosen."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segpipe.common.console import counted
from segpipe.common.files import free_bytes
from segpipe.data import Case, Fingerprint, Manifest
from segpipe.store import default_store
from segpipe.training import planning_rules as rules
from segpipe.training.budget_rules import (
    Cases,
    Estimate,
    Resolution,
    choose,
    estimate,
    larger,
    resolutions,
    whole_patch,
)
from segpipe.training.budget_rules import scaled as at_other_place
from segpipe.training.budgets import ENOUGH_STEPS, duration
from segpipe.training.fragments import Fragment
from segpipe.training.memory_rules import memory_rules, needs_of_plan
from segpipe.training.other_work import others_at_work
from segpipe.training.planned_fragments import BASE
from segpipe.training.planning_rules import NNUNET, NetworkProfile, Rule
from segpipe.training.step_measurement import Measured, measure, measure_config, require_device, startup_seconds

ROUNDS = 4  # measurements, each at what the one before let choose
OVERLAP = 0.5
UNSPLIT_FOLDS = 5  # as `segpipe split` makes, where there are none yet
OURS = "measured on this machine"


@dataclass(frozen=True)
class Request:
    """What a plan within a budget goes by.

    Attributes:
        task: the task fragment without a budget, whose spacing is the finest.
        fingerprint: of the training cases.
        manifest, root: the dataset, and the folder that its paths start from.
        network: name or path of the fragment, or itself; ``loss`` and ``augment`` by name or path.
        profile: of the network.
        memory_bytes: what one training step may use.
        free_bytes: memory that is free to this process.
        seconds: the budget of all runs.
        folds: runs that share it; None for a single run.
        jobs: runs at the same time, which share cores and free memory.
        device: ``cpu`` or ``cuda``.
    """

    task: Mapping[str, Any]
    fingerprint: Fingerprint
    manifest: Manifest
    root: Path
    network: str | Fragment
    loss: str
    augment: str
    profile: NetworkProfile
    memory_bytes: int
    free_bytes: int
    seconds: float
    folds: int | None
    jobs: int
    device: str

    @property
    def threads(self) -> int:
        """Return the threads of a run."""
        return max(1, torch.get_num_threads() // self.jobs)


@dataclass(frozen=True)
class Runs:
    """Trainings that share a time, ``jobs`` at once: one, one a seed (``seeds``), or one a fold (``folds``)."""

    seconds: float
    folds: tuple[int, ...] = ()
    seeds: int = 1
    jobs: int = 1

    @property
    def number(self) -> int:
        """Return how many there are."""
        return len(self.folds) or self.seeds

    @property
    def together(self) -> int:
        """Return how many are trained at the same time."""
        return min(self.jobs, self.number)


@dataclass(frozen=True)
class BudgetPlan:
    """What was decided: rules by name, and what a run is expected to take."""

    rules: dict[str, Rule]
    estimate: Estimate
    notes: tuple[str, ...]


def within_budget(request: Request) -> BudgetPlan:
    """Measure steps, windows and loading, and decide all that time decides.

    Raises:
        UsageError: there is no such device, or the network does not take what is tried.
        DataError: a case cannot be prepared.
    """
    require_device(request.device)
    startup_s = startup_seconds()
    spacing = next(item["pixdim"] for item in request.task["deterministic_transforms"] if "pixdim" in item)
    places = resolutions(request.fingerprint, spacing, request.profile, request.memory_bytes)
    place = places[-1]

    def price(other: Resolution) -> Estimate:
        return _estimate(request, at_other_place(known, place, other), other, startup_s)

    with others_at_work(request.jobs - 1, request.threads):
        known = _measured(request, place)
        for _ in range(ROUNDS):
            chosen = choose(places, price, lambda base: larger(base, request.profile, request.memory_bytes))
            if chosen == place:
                break
            known, place = _measured(request, chosen), chosen
    spent = _estimate(request, known, place, startup_s)
    return BudgetPlan(_rules(request, place, spent), spent, tuple(_notes(request, spent)))


def length_within(
    config: Mapping[str, Any], fingerprint: Fingerprint, manifest: Manifest, root: Path, runs: Runs
) -> Estimate:
    """Return how long a training that is decided but for its length may be.

    Args:
        config: composed, of one of the runs.
        fingerprint: of the training cases.
        manifest, root: the dataset, and the folder that its paths start from.
        runs: that share the time.

    Raises:
        UsageError: there is no such device.
        DataError: a case cannot be prepared.
    """
    require_device("cuda" if "cuda" in str(config["device"]) else "cpu")
    pixdim = [item["pixdim"] for item in config["deterministic_transforms"] if "pixdim" in item]
    spacing = list(pixdim[0] if pixdim else fingerprint.summary.median_spacing_ras_mm)
    shape = rules.resampled_shape(fingerprint, spacing)
    place = Resolution(1.0, spacing, list(config["patch_size"]), config["batch_size"], shape)
    startup_s = startup_seconds()
    with others_at_work(runs.together - 1, config["threads"]):
        known = measure_config(config, manifest, root, usual_cases(manifest, fingerprint))
    training, validation = cases_of_a_run(manifest, len(runs.folds))
    kept = config["cache_rate"] if config["store"] is None else 1.0
    cases = Cases(training, validation, runs.number, runs.together, predicted=bool(runs.folds), cached_share=kept)
    return estimate(known, place, fingerprint, cases, startup_s, runs.seconds, config["overlap"])


def cases_of_a_run(manifest: Manifest, folds: int | None) -> tuple[int, int]:
    """Return the training and validation cases of one run, the mean over the folds that are run."""
    known = sorted(manifest.folds())
    if not known:
        held = max(1, len(manifest.training) // (folds or UNSPLIT_FOLDS))
        return max(1, len(manifest.training) - held), held
    counted = known if folds else known[:1]
    sizes = [[len(manifest.select(split, fold)) for split in ("training", "validation")] for fold in counted]
    training, validation = (round(float(value)) for value in np.mean(sizes, axis=0))
    return training, validation


def usual_cases(manifest: Manifest, fingerprint: Fingerprint, number: int = 2) -> list[Case]:
    """Return the cases whose volume is in the middle."""
    order = sorted(fingerprint.cases, key=lambda case: math.prod(case.shape))
    first = max(0, (len(order) - number) // 2)
    ids = {case.id for case in order[first : first + number]}
    return [case for case in manifest.training if case.id in ids]


def _measured(request: Request, place: Resolution) -> Measured:
    task = copy.deepcopy(dict(request.task)) | {"patch_size": place.patch}
    for item in task["deterministic_transforms"]:
        if "pixdim" in item:
            item["pixdim"] = place.spacing_mm
    fragments = {name: getattr(request, name) for name in ("network", "loss", "augment")}
    fragments["runtime"] = BASE[request.device]
    values = {"batch_size": place.batch, "overlap": OVERLAP}
    if request.device == "cpu":
        values["threads"] = request.threads
    cases = usual_cases(request.manifest, request.fingerprint)
    return measure(task, fragments, values, request.manifest, request.root, cases)


def _estimate(request: Request, known: Measured, place: Resolution, startup_s: float) -> Estimate:
    training, validation = cases_of_a_run(request.manifest, request.folds)
    kept = {rule.name: rule.value for rule in _memory_rules(request, place)}
    cached = kept["cache_rate"] if kept["store"] is None else 1.0
    predicted = request.folds is not None
    cases = Cases(training, validation, request.folds or 1, request.jobs, predicted, cached)
    return estimate(known, place, request.fingerprint, cases, startup_s, request.seconds, OVERLAP)


def _memory_rules(request: Request, place: Resolution) -> list[Rule]:
    needs = needs_of_plan(
        request.fingerprint,
        request.manifest,
        place.spacing_mm,
        place.patch,
        place.batch,
        request.profile,
        request.device,
        request.threads,
    )
    return memory_rules(needs, request.free_bytes // request.jobs, free_bytes(default_store()))


def _rules(request: Request, place: Resolution, spent: Estimate) -> dict[str, Rule]:
    share = "15 %" if request.folds is None else "5 %"
    fewest, most = request.profile.batches
    step = f"a step of {place.batch} patches takes {spent.step_s:.3g} s"
    decided = [
        _spacing(place, spent),
        _patch(request, place),
        Rule(
            "batch_size",
            place.batch,
            f"{step}; from {fewest} to {most}, more only where the budget still gives {2 * ENOUGH_STEPS:,} steps",
            OURS,
        ),
        rules.depth(place.patch, place.spacing_mm),
        rules.overlap(),
        *_memory_rules(request, place),
        Rule(
            "steps_per_epoch",
            spent.steps_per_epoch,
            f"{counted(spent.steps, 'step')} in {counted(spent.epochs, 'epoch')}",
            OURS,
        ),
        Rule("max_epochs", spent.epochs, f"{step}: {counted(spent.steps, 'step')} in the budget of a run", OURS),
        Rule(
            "val_interval",
            spent.validation_interval,
            f"a validation case takes {spent.validation_case_s:.3g} s; validating costs at most {share} of a run, but "
            "the last epoch is always validated",
            OURS,
        ),
        Rule("seconds", round(spent.total_s, 1), _parts(spent, request.jobs), OURS),
    ]
    if request.device == "cpu":
        why = "PyTorch's own choice for this machine"
        if request.jobs > 1:
            why = f"{request.jobs} runs at the same time, each on its share of the cores"
        decided.append(Rule("threads", request.threads, why, "PyTorch"))
    return {rule.name: rule for rule in decided}


def _spacing(place: Resolution, spent: Estimate) -> Rule:
    if place.factor == 1 and spent.steps < ENOUGH_STEPS:
        why = "the data set's own: at a coarser one the smallest label would be lost, or it costs as much"
        return Rule("spacing_mm", place.spacing_mm, why, OURS)
    if place.factor == 1:
        return Rule("spacing_mm", place.spacing_mm, "the data set's own: the budget gives steps enough at it", NNUNET)
    why = (
        f"coarser than the data set's own, at which the budget gives fewer than {ENOUGH_STEPS:,} steps of patches that "
        "see half of the labelled region"
    )
    return Rule("spacing_mm", place.spacing_mm, why, OURS)


def _patch(request: Request, place: Resolution) -> Rule:
    whole = place.patch == whole_patch(place.shape, request.profile)
    size = "x".join(map(str, place.shape))
    why = f"the median image ({size} at the target spacing) {'whole' if whole else 'in parts'}: half of the labelled "
    why += f"region at least, more where the budget still gives {2 * ENOUGH_STEPS:,} steps"
    return Rule("patch_size", place.patch, f"{why}; multiples of {rules.divisor_words(request.profile.divisor)}", OURS)


def _parts(spent: Estimate, jobs: int) -> str:
    parts = {
        "starting": spent.startup_s,
        "loading": spent.loading_s,
        "training": spent.training_s,
        "validation": spent.validation_s,
        "prediction": spent.prediction_s,
    }
    words = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
    at_once = f", {jobs} at the same time" if jobs > 1 else ""
    return f"of a run: {words}" + (f"; {spent.runs} runs{at_once}" if spent.runs > 1 else "")


def _notes(request: Request, spent: Estimate) -> list[str]:
    notes = []
    if spent.steps < ENOUGH_STEPS:
        notes.append(
            f"the budget gives {counted(spent.steps, 'step')}, fewer than the {ENOUGH_STEPS:,} that such a network "
            "needs, at the coarsest spacing that keeps the labels: give more time"
        )
    if spent.total_s > request.seconds:
        notes.append(
            f"starting, loading and validating leave too little time to train in: about {duration(spent.total_s)} "
            f"instead of {duration(request.seconds)}"
        )
    return notes
