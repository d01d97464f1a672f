"""What a command is as jobs: a share, a fold or a seed each, or one job; what a job begun again runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segpipe.cluster.commands import Command
from segpipe.common.files import write_json
from segpipe.common.processes import child_environment, end_with, tied
from segpipe.data import chosen_folds, load_manifest
from segpipe.errors import UsageError

VERBS = ("predict", "train", "tune", "compare", "auto")  # whose same command goes on where it was stopped


@dataclass(frozen=True)
class Task:
    """One job: a call of the command line, in a process of its own. It is what a cluster's node is given.

    Attributes:
        name: that is shown, such as ``share 0 of 4``.
        words: of the command, without ``segpipe``.
        folder: that they are run in.
        result: file of the exit code, written when it ends.
        begun: file that is there once it was begun, or "": the same words go on.
        again: words with which it goes on then.
        after: whether it waits for all others.
        made: folder that is there when it has ended well, or "" where that is not known.
        owner: process of this machine with which it ends; 0 for none.
    """

    name: str
    words: tuple[str, ...]
    folder: str
    result: str
    begun: str = ""
    again: tuple[str, ...] = ()
    after: bool = False
    made: str = ""
    owner: int = 0

    def __call__(self, log: str | None = None) -> int:
        """Run it, and leave its exit code in its file; what it says goes to a file, or where ours goes."""
        if self.owner:
            end_with(self.owner)
        words = self.again if self.begun and (Path(self.folder) / self.begun).is_file() else self.words
        command = [sys.executable, "-m", "segpipe", *words]
        with nullcontext() if log is None else Path(log).open("ab") as said:
            code = subprocess.call(tied(command), cwd=self.folder, env=child_environment(), stdout=said, stderr=said)
        write_json(self.result, {"code": code})
        return code

    def checkpoint(self) -> Any:
        """Return what the cluster runs when it takes the node away and gives another one: the same, which goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def is_there(self) -> bool:
        """Whether what it made is still there, as far as that is known."""
        return not self.made or (Path(self.folder) / self.made).is_dir()

    def record(self) -> dict[str, Any]:
        """Return its plain values."""
        return {**asdict(self), "words": list(self.words), "again": list(self.again)}


def planned(
    command: Command, jobs: Path, array: int | None = None, folder: Path | None = None, allow_other_cpu: bool = False
) -> list[Task]:
    """Return the jobs of a command.

    Args:
        command: ``predict`` and ``compare`` with so many shares as ``array`` says,
            ``train`` with a job a fold or seed where it has ``--folds`` or ``--seeds``, ``tune --storage journal`` so
            many times, others as one job.
        jobs: folder of the jobs' files.
        array: shares or processes.
        folder: that the command is run in; None: this one.
        allow_other_cpu: of ``train``: what was begun goes on also on another kind of CPU.

    Raises:
        UsageError: it cannot be submitted.

    >>> [task.words[-2:] for task in planned(Command(("predict", "bundle", "scans", "out")), Path("jobs"), 2)]
    [('--shard', '0/2'), ('--shard', '1/2')]
    """
    verb, words = command.verb, command.words
    if verb not in VERBS:
        raise UsageError(
            "this command is not submitted",
            found=verb or "none",
            expected=f"after --: {', '.join(VERBS)}, with its words",
        )
    if allow_other_cpu and verb != "train":
        raise UsageError(
            "only a training is allowed another kind of CPU", found=verb, hint="leave --allow-other-cpu out"
        )
    made = _Planned(command, jobs.resolve(), str((folder or Path.cwd()).resolve()), allow_other_cpu)
    if verb == "predict":
        return made.shares(verb, array or 1)
    if verb == "compare":
        shares = made.shares(verb, array or 1)
        report = made.task("report", words, len(shares), after=True, made=made.out)
        return shares if len(shares) == 1 else [*shares, report]
    if verb == "train" and ("--folds" in command.options or "--seeds" in command.options):
        _refuse_array(array, "a cross-validation has a job a fold, and several seeds a job a seed")
        return made.folds() if "--folds" in command.options else made.seeds()
    if verb == "tune" and (array or 1) > 1:
        if command.text("--storage") != "journal":
            raise UsageError(
                "several processes of one search need its journal",
                found=f"--array {array}",
                hint="add --storage journal",
            )
        return [made.task(f"process {number}", words, number) for number in range(array or 1)]
    _refuse_array(array, "only predict, compare and tune run several times in one folder")
    if verb == "train" and "--resume" not in command.options and made.out:
        return [made.task(verb, words, 0, **made.begun(made.out))]
    return [made.task(verb, words, 0)]


@dataclass(frozen=True)
class _Planned:
    command: Command
    jobs: Path
    folder: str
    allow_other_cpu: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        return self.command.words

    @property
    def out(self) -> str:
        """The folder of the results: that of ``--out``, or the OUT of ``predict``; "" where it is not named."""
        return str(self.command.places.get("out") or self.command.text("--out") or "")

    def begun(self, run: str) -> dict[str, Any]:
        """Return how a single run goes on: with its own settings, and with what no run records."""
        again = ["train", "--resume", run]
        again += [] if (mlflow := self.command.text("--mlflow")) is None else ["--mlflow", mlflow]
        again += ["--json"] if "--json" in self.command.options else []
        again += ["--allow-other-cpu"] if self.allow_other_cpu else []
        return {"begun": f"{run}/run.json", "again": tuple(again), "made": run}

    def task(self, name: str, words: Sequence[str], number: int, **more: Any) -> Task:
        return Task(name, tuple(words), self.folder, str(self.jobs / f"task_{number}.json"), **more)

    def shares(self, verb: str, number: int) -> list[Task]:
        if "--shard" in self.command.options:
            raise UsageError(
                "the shares are those of the array", found="--shard", hint="leave it out, and give --array N"
            )
        if number == 1:
            return [self.task(verb, self.words, 0, made=self.out)]
        return [
            self.task(f"share {index} of {number}", [*self.words, "--shard", f"{index}/{number}"], index, made=self.out)
            for index in range(number)
        ]

    def folds(self) -> list[Task]:
        """A job a fold, each the run that `segpipe train --folds` would train, and one that measures them all."""
        manifest, out = self.manifest_and_out("folds", "all")
        if "--seeds" in self.command.options:
            raise UsageError(
                "--folds trains every fold with one seed", found="--seeds", hint="leave it out, or --folds"
            )
        self.require_fixed_length()
        chosen = chosen_folds(load_manifest(Path(self.folder) / manifest), self.command.text("--folds") or "all")
        shared = self.command.without("--folds", "--out", "--jobs")
        runs = {
            f"fold {fold}": ("--fold", str(fold), "--out", f"{out}/fold_{fold}", "--set", "keep_weights=last")
            for fold in chosen
        }
        return self.each(shared, runs, "measure")

    def require_fixed_length(self) -> None:
        """Refuse what `segpipe train --folds` would refuse, which is run when all folds have been trained."""
        from segpipe.training import RunSettings, read_fragment

        runtime = self.command.text("--runtime") or "cpu"
        beside = Path(self.folder) / runtime
        config = read_fragment("runtime", str(beside) if beside.is_file() else runtime)[0]
        pairs = [str(each).partition("=") for each in self.command.options.get("--set", ())]
        given = {name.strip(): 0 if value.strip() == "0" else value.strip() for name, _, value in pairs}
        config = {"early_stop_patience": 0, **config, "keep_weights": "last", **given}
        RunSettings(None, folds="all").require_fixed_length(config)

    def seeds(self) -> list[Task]:
        """A job a seed, each the run that `segpipe train --seeds` would train, and one that says how they differ."""
        _, out = self.manifest_and_out("seeds", "3")
        if any(str(each).replace(" ", "").startswith("seed=") for each in self.command.options.get("--set", ())):
            raise UsageError("--set seed would give all the same seed", hint="give --seed, the first of them")
        first, count = int(self.command.text("--seed") or 0), int(self.command.options["--seeds"])
        shared = self.command.without("--seeds", "--seed", "--out", "--jobs")
        runs = {
            f"seed {seed}": ("--seed", str(seed), "--out", f"{out}/seed{seed}") for seed in range(first, first + count)
        }
        return self.each(shared, runs, "spread")

    def manifest_and_out(self, what: str, example: str) -> tuple[str, str]:
        manifest, out = self.command.places.get("manifest"), self.command.text("--out")
        if manifest is None or out is None:
            raise UsageError(
                f"the {what} of this command are not known",
                found="no MANIFEST" if manifest is None else "no --out",
                expected=f"train MANIFEST ... --{what} {example} --out RUN",
            )
        if "--budget" in self.command.options:
            raise UsageError(
                f"each job would measure a length of its own, and the {what} have one",
                found="--budget",
                hint="name --epochs, or submit `segpipe auto --budget`",
            )
        return str(manifest), out

    def each(self, shared: Sequence[str], runs: Mapping[str, Sequence[str]], last: str) -> list[Task]:
        """Return a job for each run, by name its own words, and the command itself when all have ended."""
        tasks = [
            self.task(name, [*shared, *own], number, **self.begun(own[own.index("--out") + 1]))
            for number, (name, own) in enumerate(runs.items())
        ]
        return [*tasks, self.task(last, self.words, len(runs), after=True, made=self.out)]


def _refuse_array(array: int | None, why: str) -> None:
    if array not in (None, 1):
        raise UsageError("--array has no place here", found=array, hint=f"{why}: leave it out")
