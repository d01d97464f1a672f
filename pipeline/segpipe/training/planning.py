"""From a dataset to the task fragment that suits it: every value with its reason and its source.

What is written is a plain YAML fragment, to be read and changed by hand. The rules stand in `planning_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.common.api_calls import checked_call
from segpipe.common.files import free_bytes as free_on_disk
from segpipe.common.files import write_text
from segpipe.common.memory import memory_here
from segpipe.common.processes import usable_cores
from segpipe.data import Fingerprint, Manifest, fingerprint_path, open_manifest, save_fingerprint, take_fingerprint
from segpipe.errors import UsageError
from segpipe.store import default_store
from segpipe.training import planning_rules as rules
from segpipe.training.budgets import parse_budget
from segpipe.training.first_stage_rules import first_stage_spacing, note_on_stages, require_first_stage
from segpipe.training.fragments import OWNED, Fragment, read_fragment
from segpipe.training.memory_rules import memory_rules, needs_of_plan, parse_memory, step_memory, too_large
from segpipe.training.network_axes import network_by_axis
from segpipe.training.planned_fragments import (
    BASE,
    network_path,
    network_text,
    runtime_path,
    runtime_text,
    task_of,
    task_text,
)
from segpipe.training.planning_notes import notes_on_labels, notes_on_voxels
from segpipe.training.planning_rules import NetworkProfile, Rule, profile_of
from segpipe.training.process_plan import dealt, process_rules, require_processes
from segpipe.training.slices import divisor_of_slices, sliced_axis, takes_slices

if TYPE_CHECKING:
    from segpipe.training.budget_plan import BudgetPlan
    from segpipe.training.budget_rules import Estimate


@dataclass(frozen=True)
class Plan:
    """What `plan` decided.

    Attributes:
        dataset: name of the dataset.
        has_folds: whether it is split; if not, the plan has seen cases that may be held out later.
        rules: by name, each with its value, why, and its source.
        task: the task fragment, ids of a MONAI config.
        settings: values of the runtime to train with: ``batch_size``, ``cache_rate``, ``store`` and ``overlap``; within
            a budget also how long, and how often to validate.
        fingerprint: of the training cases, which the rules went by.
        notes: what a training should know: labels that a fold lacks, labels that have a side.
        device: that the runtime fragment is for, ``cpu`` or ``cuda``.
        estimate: seconds of what is planned, by what takes them; None without a budget.
        network: a network fragment's content, where the voxels ask for strides of their own along an axis; None where
            the one that was named is right as it is.
    """

    dataset: str
    has_folds: bool
    rules: dict[str, Rule]
    task: dict[str, Any]
    settings: dict[str, Any]
    fingerprint: Fingerprint
    notes: tuple[str, ...] = ()
    device: str = "cpu"
    estimate: Estimate | None = None
    network: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """The task fragment as YAML, with reasons and sources as comments."""
        return task_text(self.task, self.rules, len(self.fingerprint.cases))

    @property
    def runtime_text(self) -> str:
        """The runtime fragment as YAML: that of the device, with the settings in their places."""
        return runtime_text(self.device, self.settings, self.rules)

    @property
    def network_text(self) -> str | None:
        """The network fragment as YAML, or None where none of its own is needed."""
        return None if self.network is None else network_text(self.network, self.rules)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the task fragment, with runtime, network and fingerprint beside it; returns the fingerprint's path.

        Raises:
            UsageError: the fragment is there already, or cannot be written.
        """
        _refuse_existing(path, overwrite)
        save_fingerprint(self.fingerprint, fingerprint_path(path))
        write_text(runtime_path(path), self.runtime_text)
        if self.network_text is None:
            network_path(path).unlink(missing_ok=True)  # of an earlier plan
        else:
            write_text(network_path(path), self.network_text)
        write_text(path, self.text)
        return fingerprint_path(path)


@checked_call
def plan(
    manifest: str | Path | Manifest,
    *,
    network: str = "unet",
    loss: str = "dice_ce",
    augment: str = "light",
    memory: str | int | None = None,
    budget: str | int | float | None = None,
    device: str = "cpu",
    folds: int | None = None,
    jobs: int = 1,
    first_stage: bool = False,
    processes: int = 1,
    data: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Plan:
    """Choose the task fragment that suits a dataset; test cases are never opened.

    >>> import segpipe
    >>> plan = segpipe.plan("data/manifest.json", network="unet", memory="2G")
    >>> plan.task["patch_size"], plan.settings["batch_size"]
    ([24, 24, 16], 2)
    >>> print(plan.rules["orientation"].source)
    NIfTI-1 standard; nibabel

    Args:
        manifest: the dataset, whose training cases are read once each.
        network: that will be trained: a name of `segpipe info networks`, or the path of a network fragment.
        loss, augment: fragments of loss and augmentation, whose time counts within a budget.
        memory: what training steps may use (one step, or one a job): bytes, or text such as ``8G`` and ``600M``; None
            for half of what this machine has, or what its container or batch job may take.
        budget: time that training may take on this machine, such as ``2h`` or ``45m``, or seconds. Steps, windows and
            loading are then measured here for some seconds, and spacing, patch, batch, steps and validations follow.
        device: ``cpu`` or ``cuda``, to train on.
        folds: trainings that share the budget, with the prediction of their validation cases; None for one run.
        jobs: of them at the same time, each with its share of cores and memory.
        first_stage: plan the first of two stages, on a grid so coarse that one patch sees all that is labelled.
        processes: that share each batch of one training; each then has its part of the machine's memory.
        data: folder that the manifest's paths start from, where it is not the manifest's own.
        out: task fragment to write, as `Plan.save` does; refused before any case is read where it is there.
        overwrite: replace it.
        progress: called with the number of cases read and of all.

    Raises:
        UsageError: no such network, folder, file or device, too little memory, or a fragment that is there already.
        DataError: a case cannot be used, which the error names, or the foreground has no intensities to scale by.
        RefusedError: no first stage can be trained with the manifest, which has regions that overlap, or masks of one.
    """
    dataset, root = open_manifest(manifest, data)
    require_processes(processes, dataset, budget is not None)
    most = step_memory() // processes if memory is None else parse_memory(memory)
    if first_stage and budget is not None:
        raise UsageError("a first stage is planned without a budget, which has a grid of its own choice")
    seconds = _seconds(budget, device, folds, jobs)
    asked = Wishes(network, loss, augment, most, device, seconds, folds, jobs, first_stage, processes)
    content = read_fragment("network", network)[0]
    profile_of(network, content["patch_divisor"])  # refused before any case is read
    if first_stage:
        require_first_stage(dataset, None if isinstance(manifest, Manifest) else manifest, network, content)
    if out is not None:
        _refuse_existing(out, overwrite)
    fingerprint = take_fingerprint(dataset, root, progress=progress)
    planned = plan_from(fingerprint, dataset, root, asked)
    if out is not None:
        planned.save(out, overwrite=overwrite)
    return planned


@dataclass(frozen=True)
class Wishes:
    """What is planned for; see `plan`.

    Attributes:
        network, loss, augment: fragments, by name or path.
        memory_bytes: what training steps may use at the same time.
        device: ``cpu`` or ``cuda``.
        seconds: the budget; None plans for no time.
        folds: trainings that share it; None for one run.
        jobs: trainings at the same time, which share cores and memory.
        first_stage: whether the first of two stages is planned.
        processes: that share each batch.
    """

    network: str = "unet"
    loss: str = "dice_ce"
    augment: str = "light"
    memory_bytes: int = field(default_factory=step_memory)
    device: str = "cpu"
    seconds: float | None = None
    folds: int | None = None
    jobs: int = 1
    first_stage: bool = False
    processes: int = 1


def plan_from(fingerprint: Fingerprint, dataset: Manifest, root: Path, asked: Wishes) -> Plan:
    """Plan from a fingerprint that was taken already; arguments and errors as of `plan`.

    Args:
        fingerprint: of the training cases.
        dataset: the manifest.
        root: folder that its paths start from.
        asked: what is planned for.
    """
    content = read_fragment("network", asked.network)[0]
    profile = profile_of(asked.network, content["patch_divisor"])
    free_bytes = memory_here().free
    memory_bytes = asked.memory_bytes // asked.jobs
    machine = (memory_bytes, free_bytes // (asked.jobs * asked.processes), max(1, usable_cores() // asked.jobs))
    stages = (asked.first_stage, asked.processes)
    planned = replace(
        apply_rules(fingerprint, dataset, profile, *machine, content, asked.device, *stages), device=asked.device
    )
    if asked.augment == "light" and len(dataset.foreground) > 1:
        words = f"{len(dataset.foreground)} labels: --augment by_class draws patches of each of them equally often"
        planned = replace(planned, notes=(*planned.notes, words))
    if not takes_slices(content["network_def"]):
        spacing, follows = planned.rules["spacing_mm"].value, planned.network is not None
        words_on_voxels = notes_on_voxels(fingerprint, spacing, asked.network, asked.augment, follows)
        planned = replace(planned, notes=(*planned.notes, *words_on_voxels))
    if asked.seconds is None:
        return _proposing_stages(planned, dataset)
    from segpipe.training.budget_plan import Request, within_budget  # with torch and MONAI

    request = Request(
        task=planned.task,
        fingerprint=fingerprint,
        manifest=dataset,
        root=root,
        network=asked.network if planned.network is None else Fragment(planned.network, "the plan"),
        loss=asked.loss,
        augment=asked.augment,
        profile=_profile_of(planned, profile, takes_slices(content["network_def"])),
        memory_bytes=memory_bytes,
        free_bytes=free_bytes,
        seconds=asked.seconds,
        folds=asked.folds,
        jobs=asked.jobs,
        device=asked.device,
    )
    return _proposing_stages(_with(planned, dataset, within_budget(request)), dataset)


def profile_of_slices(profile: NetworkProfile, spacing_mm: Sequence[float]) -> NetworkProfile:
    """Return what a network of slices needs, where these are cut along the coarsest axis."""
    axis = sliced_axis([0, 0, 0], spacing_mm)
    return replace(profile, divisor=divisor_of_slices(profile.divisor, axis), sliced_axis=axis)


def _profile_of(planned: Plan, profile: NetworkProfile, slices: bool) -> NetworkProfile:
    if slices:
        return profile_of_slices(profile, planned.rules["spacing_mm"].value)
    return profile if planned.network is None else replace(profile, divisor=tuple(planned.network["patch_divisor"]))


def _proposing_stages(planned: Plan, dataset: Manifest) -> Plan:
    spacing, patch = (planned.rules[name].value for name in ("spacing_mm", "patch_size"))
    words = note_on_stages(planned.fingerprint, dataset, spacing, patch)
    return planned if words is None else replace(planned, notes=(*planned.notes, words))


def _seconds(budget: str | int | float | None, device: str, folds: int | None, jobs: int) -> float | None:
    seconds = None if budget is None else parse_budget(budget)
    _require_sense(device, seconds, folds, jobs)
    return seconds


def _require_sense(device: str, seconds: float | None, folds: int | None, jobs: int) -> None:
    if device not in BASE:
        raise UsageError("no such device", found=device, expected="cpu or cuda")
    if folds is not None and (seconds is None or folds < 2):
        raise UsageError("--folds shares a budget among two folds or more", found=folds, hint="give --budget, e.g. 2h")
    if jobs < 1 or (jobs > 1 and folds is None):
        raise UsageError("--jobs says how many folds are trained at the same time", found=jobs, hint="give --folds")


def _with(planned: Plan, manifest: Manifest, decided: BudgetPlan) -> Plan:
    """Return the plan with what its budget decided."""
    by_name = {name: rule for name, rule in planned.rules.items() if name != "epoch_seconds"} | decided.rules
    settings = {name: rule.value for name, rule in by_name.items() if name in OWNED["runtime"]}
    return replace(
        planned,
        rules=by_name,
        task=task_of(manifest, by_name),
        settings=settings,
        notes=(*planned.notes, *decided.notes),
        estimate=decided.estimate,
    )


def apply_rules(
    fingerprint: Fingerprint,
    manifest: Manifest,
    profile: NetworkProfile,
    memory_bytes: int,
    free_bytes: int,
    cores: int,
    network: Mapping[str, Any] | None = None,
    device: str = "cpu",
    first_stage: bool = False,
    processes: int = 1,
) -> Plan:
    """Apply every rule.

    Args:
        fingerprint: of the manifest's training cases.
        manifest: names of channels and labels.
        profile: of the network to train.
        memory_bytes: what one training step of a process may use.
        free_bytes: memory that is free to a process.
        cores: cores to train on.
        network: content of its fragment, whose strides may have to follow the voxels; None leaves them.
        device: ``cpu`` or ``cuda``, whose own memory then holds the step.
        first_stage: whether the grid is to be as coarse as a first stage needs it.
        processes: that share each batch.

    Raises:
        UsageError: the memory does not hold the smallest patch.
        DataError: the intensities of the foreground cannot be scaled.
    """
    slices = network is not None and takes_slices(network["network_def"])
    spacing = rules.target_spacing(fingerprint, slices)
    if slices:
        profile = profile_of_slices(profile, spacing.value)
    if first_stage:
        spacing = first_stage_spacing(
            fingerprint,
            spacing,
            lambda edges: rules.patch_size(rules.resampled_shape(fingerprint, edges), profile, memory_bytes).value,
        )
    shape = rules.resampled_shape(fingerprint, spacing.value)
    changed = None if network is None else network_by_axis(network, spacing.value, shape)
    if changed is not None:
        profile = replace(profile, divisor=tuple(changed.value["patch_divisor"]))
    patch = rules.patch_size(shape, profile, memory_bytes)
    batch = dealt(rules.batch_size(fingerprint, shape, patch.value, profile, memory_bytes), processes)
    threads = read_fragment("runtime", BASE[device])[0]["threads"]
    trained = len(manifest.select("training", next(iter(manifest.folds()), None)))
    each = batch.value // processes
    needs = needs_of_plan(fingerprint, manifest, spacing.value, patch.value, each, profile, device, threads)
    kept = memory_rules(needs, free_bytes, free_on_disk(default_store()))
    stored = any(rule.name == "store" and rule.value is not None for rule in kept)
    applied = [
        rules.orientation(fingerprint),
        spacing,
        rules.crop(fingerprint),
        rules.intensity(fingerprint),
        patch,
        batch,
        *([] if changed is None else [changed]),
        rules.depth(patch.value, spacing.value),
        rules.overlap(),
        *kept,
        *process_rules(manifest, batch.value, processes, needs, stored, threads, cores),
        rules.epoch_time(trained, patch.value, batch.value, profile, min(cores, processes * threads)),
    ]
    by_name = {rule.name: rule for rule in applied}
    named = ("batch_size", "cache_rate", "store", "overlap", "processes", "steps_per_epoch")
    settings = {name: by_name[name].value for name in named if name in by_name}
    crowded = too_large(needs, free_bytes)
    notes = (*notes_on_labels(manifest, fingerprint), *([] if crowded is None else [crowded]))
    return Plan(
        dataset=manifest.name,
        has_folds=bool(manifest.folds()),
        rules=by_name,
        task=task_of(manifest, by_name),
        settings=settings,
        fingerprint=fingerprint,
        notes=notes,
        network=None if changed is None else changed.value,
    )


def _refuse_existing(path: str | Path, overwrite: bool) -> None:
    if Path(path).exists() and not overwrite:
        raise UsageError(
            "the task fragment is there already, and may have been changed by hand",
            path=path,
            hint="name another one with -o, or give --overwrite",
        )
