"""Jobs of Slurm, or processes of this machine to try it, through submitit; or tasks of Ray. Which are still there."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from segpipe.cluster.tasks import Task
from segpipe.common.processes import tied
from segpipe.errors import UsageError

ENGINES = ("slurm", "local", "ray")
RETRIES = 3  # by Ray, of a task whose worker or node died
UNKNOWN = "unknown"  # state of a job that nobody could be asked about
NOT_REACHED = (  # words of sbatch, what they mean, what is expected, what to do
    (
        ("configuration source", "configuration file"),
        "Slurm's programs are here, but nothing says which cluster this machine belongs to",
        "a slurm.conf, or the address of its controller (slurmctld)",
        "go to a login node, where `sinfo` lists the nodes, or name the cluster's file: export SLURM_CONF=PATH",
    ),
    (
        ("munge",),
        "Slurm cannot prove who you are: munge does not answer",
        "munged at work on this machine, with the cluster's key",
        "have it started (systemctl start munge)",
    ),
    (
        ("contact slurm controller",),
        "Slurm's controller (slurmctld) does not answer",
        "`scontrol ping` says that it is UP",
        "wait until it does, or go to a login node, where `sinfo` lists the nodes",
    ),
)
ERROR = re.compile(r"segpipe[ a-z]*: error: ")  # begins what a command of ours says of its failure
MOST_WORDS = 8  # lines of it


@dataclass(frozen=True)
class Resources:
    """What each job is given.

    Attributes:
        minutes: after which it is ended, and given a node anew by Slurm.
        cpus, gpus: of each.
        memory_gb: None: the cluster's default.
        partition, account: of Slurm; None: its default.
        at_once: jobs of an array at the same time; None: all.
        address: of Ray's cluster.
    """

    minutes: int = 60
    cpus: int = 1
    gpus: int = 0
    memory_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    at_once: int | None = None
    address: str | None = None


class Engine(Protocol):
    """Where jobs run."""

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        """Submit tasks as one array; return the ids of their jobs."""

    def states(self, jobs: Sequence[str]) -> dict[str, str]:
        """Return the state of each job that waits or runs, in the engine's word; others are not there."""

    def cancel(self, jobs: Sequence[str]) -> None:
        """End what ends with the command that submitted it."""


def engine_of(name: str, folder: Path, resources: Resources) -> Engine:
    """Return an engine.

    Raises:
        UsageError: there is none of that name, its library is not installed, or no Slurm and no Ray answers.
    """
    if name not in ENGINES:
        raise UsageError("no such engine", found=name, expected=" or ".join(ENGINES))
    if name == "ray":
        return _Ray(folder, resources)
    try:
        import submitit
    except ImportError as error:
        raise UsageError(
            "jobs need submitit, which is not installed", hint="install it: pip install 'segpipe[slurm]'"
        ) from error
    parameters: dict[str, Any] = {"timeout_min": resources.minutes, "cpus_per_task": resources.cpus, "name": "segpipe"}
    if resources.gpus:
        parameters["gpus_per_node"] = resources.gpus
    if resources.memory_gb is not None:
        parameters["mem_gb"] = resources.memory_gb
    if name == "slurm":
        parameters["slurm_partition"] = resources.partition
        parameters["slurm_array_parallelism"] = resources.at_once
        parameters["slurm_additional_parameters"] = {"account": resources.account} if resources.account else None
        parameters = {key: value for key, value in parameters.items() if value is not None}
    try:
        executor = submitit.AutoExecutor(folder, cluster=name)
        executor.update_parameters(**parameters)
    except RuntimeError as error:
        raise UsageError(
            "there is no Slurm here", found=str(error), hint="run it on a login node, or try it with --engine local"
        ) from error
    return _Slurm(executor) if name == "slurm" else _Local(executor)


class _Slurm:
    def __init__(self, executor: Any) -> None:
        self._executor = executor

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        from submitit.core.utils import FailedJobError

        try:
            with self._executor.batch():
                jobs = [self._executor.submit(task) for task in tasks]
        except FailedJobError as error:
            said = str(error).strip()
            if (reason := _not_reached(said)) is not None:
                raise reason from error
            raise UsageError(
                "Slurm does not take the jobs", found=said, hint="check --partition, --time, --memory, --gpus"
            ) from error
        return [str(job.job_id) for job in jobs]

    def states(self, jobs: Sequence[str]) -> dict[str, str]:
        if not jobs:
            return {}
        command = ["squeue", "--noheader", "--array", "--format=%i|%T"]
        try:
            listed = subprocess.run(tied(command), capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):  # the controller is away: nothing is known, and nothing is dead
            return dict.fromkeys(jobs, UNKNOWN)
        rows = (line.partition("|") for line in listed.stdout.split())
        found = {job: state.lower() for job, _, state in rows}
        return {job: found[job] for job in jobs if job in found and found[job] != "completing"}

    def cancel(self, jobs: Sequence[str]) -> None:
        """Leave them: they are Slurm's."""


def _not_reached(said: str) -> UsageError | None:
    """Return why Slurm is not reached, by what sbatch said; None where it answered."""
    for words, what, expected, first in NOT_REACHED:
        if any(word in said.lower() for word in words):
            hint = f"{first}, and give the same command again; or try it on this machine with --engine local"
            return UsageError(what, found=said.splitlines()[-1].strip(), expected=expected, hint=hint)
    return None


class _Local:
    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self._jobs: dict[str, Any] = {}

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        for task in tasks:
            job = self._executor.submit(replace(task, owner=os.getpid()))
            self._jobs[str(job.job_id)] = job
        return list(self._jobs)[-len(tasks) :]

    def states(self, jobs: Sequence[str]) -> dict[str, str]:
        return {job: "running" for job in jobs if job in self._jobs and not self._jobs[job].done()}

    def cancel(self, jobs: Sequence[str]) -> None:
        for job in self.states(jobs):
            self._jobs[job].cancel()


class _Ray:
    """A task is a thin call of the command line on a node: nothing of ours runs in Ray's own process."""

    def __init__(self, folder: Path, resources: Resources) -> None:
        if resources.address is None:
            raise UsageError(
                "Ray's cluster is not named",
                hint="give --address HOST:PORT, of a cluster in a network that you trust: none is started here",
            )
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                "the engine needs Ray, which is not installed", hint="install it: pip install 'segpipe[cluster]'"
            ) from error
        try:
            ray.init(address=resources.address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(
                "Ray does not answer there",
                found=f"{resources.address}: {type(error).__name__}",
                hint="run it on a node of the cluster, with the address that `ray start` said",
            ) from error
        options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": RETRIES}
        if resources.memory_gb is not None:
            options["memory"] = int(resources.memory_gb * 2**30)
        self._ray, self._folder = ray, folder
        self._run = ray.remote(_called).options(**options)
        self._tasks: dict[str, Any] = {}

    def submit(self, tasks: Sequence[Task]) -> list[str]:
        jobs = []
        for task in tasks:
            log = self._folder.resolve() / f"{Path(task.result).stem}_0_log.err"
            reference = self._run.remote(task, str(log))
            jobs.append(f"{Path(task.result).stem}")
            self._tasks[jobs[-1]] = reference
        return jobs

    def states(self, jobs: Sequence[str]) -> dict[str, str]:
        known = {job: self._tasks[job] for job in jobs if job in self._tasks}
        if not known:
            return {}
        _, waiting = self._ray.wait(list(known.values()), num_returns=len(known), timeout=0)
        return {job: "running" for job, reference in known.items() if reference in waiting}

    def cancel(self, jobs: Sequence[str]) -> None:
        for job in self.states(jobs):
            self._ray.cancel(self._tasks[job], force=True)


def _called(task: Task, log: str) -> int:
    return task(log)


def last_words(folder: Path, job: str, lines: int = 3) -> list[str]:
    """Return what a job wrote of its failure to its standard error, else the last lines, without empty ones."""
    found: list[str] = []
    for path in sorted(folder.glob(f"{job}_*_log.err")):
        with path.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 8192))
            found += stream.read().decode(errors="replace").splitlines()
    found = [line for line in found if line.strip()]
    said = [number for number, line in enumerate(found) if ERROR.match(line)]
    if not said:
        return found[-lines:]
    first, *rest = found[said[-1] :]
    more = next((number for number, line in enumerate(rest) if not line.startswith(" ")), len(rest))
    return [first, *rest[: min(more, MOST_WORDS - 1)]]
