"""What a plan changes where several processes train one network: the batch they deal out, and what all of them take."""

from __future__ import annotations

import math
from dataclasses import replace

from segpipe.data import Manifest
from segpipe.errors import UsageError
from segpipe.training.memory_rules import Needs, in_gb
from segpipe.training.planning_rules import Rule

OURS = "docs/reference/commands/train.md, several processes"


def require_processes(processes: int, manifest: Manifest, budgeted: bool) -> None:
    """Refuse a plan for so many processes that no training could follow.

    Raises:
        UsageError: there is no such number, a fold has fewer validation cases, or a budget would measure one process.
    """
    if processes < 1:
        raise UsageError("no such number of processes", found=processes, expected="1 or more")
    if processes > 1 and budgeted:
        raise UsageError(
            "--budget measures one process", found=f"--processes {processes}", hint="leave one of them out"
        )
    fewest = min((len(manifest.select("validation", fold)) for fold in manifest.folds()), default=processes)
    if fewest < processes:
        raise UsageError(
            "a fold has fewer validation cases than processes",
            found=f"{fewest} cases, {processes} processes",
            hint=f"--processes {fewest}",
        )


def dealt(batch: Rule, processes: int) -> Rule:
    """Return a batch of which every process has the same number of patches, and no more than the whole one had."""
    if processes == 1:
        return batch
    each = math.ceil(batch.value / processes)
    why = f"{each} for each of {processes} processes; of one, {batch.why}"
    return replace(batch, value=each * processes, why=why)


def process_rules(
    manifest: Manifest, batch: int, processes: int, needs: Needs, stored: bool, threads: int, cores: int
) -> list[Rule]:
    """Return what several processes need beside one; nothing where there is one.

    Args:
        manifest: whose folds are trained.
        batch: patches of a step, over all processes.
        processes: that train.
        needs: of each.
        stored: whether cases are kept on disk.
        threads: of each process.
        cores: to train on.
    """
    if processes == 1:
        return []
    each = needs.from_store if stored else needs.in_memory
    shared = f", {processes * threads} threads on {cores} cores" if processes * threads > cores else ""
    decided = [
        Rule(
            "processes",
            processes,
            f"each with a network{'' if stored else ' and all cases'} of its own: {in_gb(each)} each, "
            f"{in_gb(processes * each)} of memory in all{shared}; what exchanging gradients takes is not counted",
            OURS,
        )
    ]
    folds: list[int | None] = [*manifest.folds()] or [None]
    sizes = [len(manifest.select("training", fold)) for fold in folds]
    if any(0 < size % batch < processes for size in sizes):
        steps = math.ceil(max(sizes) / batch)
        why = "the last batch would leave a process without a case: it is filled with cases that are drawn again"
        decided.append(Rule("steps_per_epoch", steps, why, OURS))
    return decided
