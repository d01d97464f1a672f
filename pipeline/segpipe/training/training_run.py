"""`segpipe.train`: a run from its settings to its weights, the same with several seeds or on every fold, or a trial."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segpipe.bundle import TrustPolicy
from segpipe.common.api_calls import checked_call
from segpipe.common.console import Console, counted, quoted
from segpipe.common.partial import temporary_folder
from segpipe.common.processes import place_among_processes, usable_cores
from segpipe.data import (
    NOT_HASHED,
    Manifest,
    chosen_folds,
    fingerprint_path,
    load_manifest,
    patients_note,
    read_fingerprint,
    save_manifest,
    take_fingerprint,
)
from segpipe.errors import UsageError
from segpipe.training.budgets import duration, parse_budget
from segpipe.training.cross_validation import resume_folds, train_folds
from segpipe.training.data_parallel import follows, require_its_gpus
from segpipe.training.fine_tuning import FineTuning
from segpipe.training.fragments import Composed
from segpipe.training.out_of_fold import measure_out_of_fold
from segpipe.training.run_folder import CROSS_VALIDATION, SEEDS, RunSettings, compose_run
from segpipe.training.same_cpu import accept_this_cpu
from segpipe.training.seeds import resume_seeds, train_seeds
from segpipe.training.session import dry_run as try_run
from segpipe.training.session import resume as resume_run
from segpipe.training.session import start
from segpipe.training.several_runs import Sources, alone_in
from segpipe.training.tracking import told

WITH_RESUME = (
    *("resume", "data", "epochs", "jobs", "processes", "mlflow", "allow_other_cpu", "allow_other_processes"),
    "progress",
)


@dataclass(frozen=True)
class TrainingRun:
    """How a training ended.

    Attributes:
        root: the run folder, or the folder of all runs where there are several; of a dry run the folder that was named,
            which is not made.
        status: ``finished``, or ``dry run``.
        epochs: that were trained.
        best_epoch: of the best validation; None where none was validated, and of several runs.
        val_mean_dice: validation Dice of that epoch; of several seeds the mean of theirs, of a cross-validation that of
            all cases, each by the model that left it out.
        fold, seed: of the run; of several seeds the first. No fold where the run has every case, or there are several.
        seconds: of all sessions together.
        notes: what was adapted, such as a padded patch.
        trial: what a dry run measured: parameters, shapes, seconds a step, minutes in all.
        seeds: content of ``seeds.json``, where there are several.
        folds: content of ``cross_validation.json``, of a cross-validation.
        out_of_fold: content of ``out_of_fold.json``, of a cross-validation.
    """

    root: Path
    status: str
    epochs: int = 0
    best_epoch: int | None = None
    val_mean_dice: float | None = None
    fold: int | None = None
    seed: int | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    trial: Mapping[str, Any] | None = None
    seeds: Mapping[str, Any] | None = None
    folds: Mapping[str, Any] | None = None
    out_of_fold: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """Return what ``segpipe train --json`` prints."""
        if self.trial is not None:
            return {"dry_run": dict(self.trial)}
        if self.seeds is not None:
            return {"run": str(self.root), **{name: self.seeds[name] for name in ("seeds", "val_mean_dice")}}
        if self.folds is not None and self.out_of_fold is not None:
            figures = {name: self.out_of_fold[name] for name in ("of", "patients", "figure", "spread", "selected")}
            return {"run": str(self.root), "folds": self.folds["folds"], "out_of_fold": figures}
        best = None if self.best_epoch is None else {"epoch": self.best_epoch, "val_mean_dice": self.val_mean_dice}
        facts = {name: getattr(self, name) for name in ("epochs", "fold", "seed", "seconds")}
        return {"run": str(self.root), "status": self.status, "best": best, **facts}


@checked_call
@told
def train(
    manifest: str | Path | Manifest | None = None,
    *,
    task: str | Path | None = None,
    out: str | Path | None = None,
    network: str | Path | None = None,
    loss: str | Path = "dice_ce",
    augment: str | Path = "light",
    runtime: str | Path = "cpu",
    fold: int | None = 0,
    folds: str | Sequence[int] | None = None,
    jobs: int = 1,
    seed: int = 0,
    epochs: int | None = None,
    threads: int | None = None,
    workers: int | None = None,
    processes: int | None = None,
    batch_rule: str = "split",
    data: str | Path | None = None,
    store: str | Path | None = None,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    budget: str | int | float | None = None,
    parent: str | Path | None = None,
    member: int | None = None,
    freeze: str | None = None,
    allow_seen: bool = False,
    allow_other_preprocessing: bool = False,
    resume: str | Path | None = None,
    allow_other_cpu: bool = False,
    mlflow: str | None = None,
    allow_other_processes: bool = False,
    dry_run: bool = False,
    allow: Sequence[str] = (),
    run_unvetted_code: bool = False,
    progress: Callable[[str], object] | None = None,
) -> TrainingRun:
    """Train a network and keep everything that repeats it, as ``segpipe train`` does.

    Random states and the number of threads of this process are set. An interrupted run (KeyboardInterrupt) goes on
    with ``resume=out``, bit for bit as if it had never stopped.

    >>> import segpipe
    >>> small = ["network_def#channels=[4,8]", "network_def#strides=[2]", "val_interval=1"]
    >>> settings = {"task": "task.yaml", "epochs": 1, "threads": 1, "overrides": small, "progress": lambda line: None}
    >>> trial = segpipe.train("data/manifest.json", dry_run=True, **settings).trial
    >>> trial["steps_per_epoch"]
    1
    >>> run = segpipe.train("data/manifest.json", out="runs/first", **settings)
    >>> run.status, run.best_epoch, (run.root / "best.pt").is_file()
    ('finished', 1, True)

    Args:
        manifest: with folds; its cases are read. Needed, as ``task``, unless ``resume`` is given.
        task: task fragment: the path of one that `segpipe.plan` wrote, or a name of those that are shipped. With
            ``parent``, None prepares images as it did.
        out: new run folder; not needed for a dry run.
        network, loss, augment, runtime: fragments, by name or path; see ``segpipe info``. No network: the parent's,
            or a U-Net without one.
        fold: that is validated; None trains on every training case, validates none and keeps the last weights.
        folds: cross-validation: ``all`` folds, or some, each in a process of its own, into ``out/fold_0``, ...
        jobs: folds or seeds at the same time.
        seed: of everything random.
        epochs, threads, workers: None leaves them to the runtime fragment. With ``resume``, ``epochs`` extends a run.
        processes: of this machine that share each batch, one for each GPU where there are some; None leaves it to the
            runtime fragment, and with ``resume`` to the run. Not for a process that ``torchrun`` started.
        batch_rule: ``split`` deals ``batch_size`` out, so that the run is that of one process; with ``scaled`` each
            process has so many cases.
        data: folder that the manifest's paths start from, where it is not the manifest's own.
        store: folder where prepared cases are kept and read from, instead of memory; ``default`` for this user's own,
            ``auto`` for that where memory does not hold them, ``none``; None leaves it to the runtime fragment.
        overrides: ``id=value``, the value in YAML, nested ids as ``network_def#channels``.
        budget: time for all of it, such as ``2h``: a step is measured and the number of steps follows, not ``epochs``.
        seeds: train with so many seeds, from ``seed`` on, each in a process of its own, into ``out/seed0``, ...
        parent: bundle whose weights the training begins with.
        member: of an ensemble, which of its networks; None: the one that did not see the cases of the fold.
        freeze: ``encoder`` keeps its weights as they are.
        allow_seen: go on where the parent saw cases that the run is measured on; each figure says so.
        allow_other_preprocessing: go on where images are prepared in another way than the parent's.
        resume: run folder, or that of several seeds or folds, to continue; its settings are its own, and others are
            refused, but for ``data`` and more ``epochs``, with which also a finished run goes on, at the learning rates
            of a run of so many.
        allow_other_cpu: with ``resume``: go on also on another kind of CPU, where bits differ; the record says so.
        mlflow: address of an MLflow server, or ``sqlite:///FILE``, that is told parameters, each epoch and the record;
            with ``resume`` too it is told only where it is named.
        allow_other_processes: with ``resume``: go on also with another number of processes; the record says so.
        dry_run: build everything, run one batch, write nothing.
        allow, run_unvetted_code: for a bundle that manifest or fragments lie in, as `segpipe.open_bundle` has them.
        progress: called with a line of text for each epoch and note; None writes them to standard error.

    Raises:
        UsageError: what is asked for does not fit together or is not there, or the run diverged.
        DataError: a case cannot be used; the error names it.
        RefusedError: the parent, or a bundle that manifest or fragments lie in, is not trusted; or the parent saw cases
            that the run would be measured on, or prepares images in another way.
    """
    given = dict(locals())
    if follows():
        progress = progress or (lambda line: None)
    if place_among_processes()[1] > 1:
        _require_one_run(folds, seeds, budget, dry_run, resume)
    if resume is not None:
        if dry_run:
            raise UsageError(
                "--resume goes on with the training, and --dry-run would not train",
                hint="leave one of them out: what a run is configured by stands in RUN/config.json",
            )
        _require_settings_of_the_run(given)
        root, place = Path(resume), None if data is None else Path(data)
        if allow_other_cpu:
            accept_this_cpu(root)
        several = next((name for name in (SEEDS, CROSS_VALIDATION) if (root / name).is_file()), None)
        if several and epochs is not None:
            raise UsageError(
                f"several {'seeds' if several == SEEDS else 'folds'} are not extended",
                path=root,
                hint="train them with more --epochs and another --out",
            )
        if several and processes is not None:
            raise UsageError("the runs have their number of processes", path=root, hint="leave --processes out")
        if several == SEEDS:
            with alone_in(root):
                return _of_seeds(root, resume_seeds(root, place, jobs, progress))
        if several:
            with alone_in(root):
                trained = resume_folds(root, place, jobs, progress)
                return _of_folds(root, trained, measure_out_of_fold(root, place, jobs, progress))
        _require_several(jobs, ())
        return _of_record(root, resume_run(root, place, progress, epochs, processes, allow_other_processes))
    if allow_other_processes:
        raise UsageError("--allow-other-processes goes with --resume", hint="a new run has as many as are asked for")
    if allow_other_cpu:
        raise UsageError("--allow-other-cpu goes with --resume", hint="a new run begins on any CPU")
    if manifest is None or (task is None and parent is None) or (out is None and not dry_run):
        raise UsageError("a manifest, task= and out= are needed", hint="or resume=RUN, to go on with a run")
    start = None
    if parent is not None:
        start = FineTuning(Path(parent), member, freeze, allow_seen, allow_other_preprocessing)
    elif member is not None or freeze is not None or allow_seen or allow_other_preprocessing:
        raise UsageError(
            "--member, --freeze, --allow-seen and --allow-other-preprocessing go with --from",
            hint="name the bundle that the training begins with: --from BUNDLE",
        )
    _require_several(jobs, (folds, seeds))
    if budget is not None and epochs is not None:
        raise UsageError("--budget and --epochs both say how long", hint="give one of them")
    if folds is not None and (seeds is not None or fold != 0):
        raise UsageError(
            "--folds trains every fold with one seed",
            found="--seeds" if seeds is not None else "--fold",
            hint="leave it out, or --folds",
        )
    settings = RunSettings(
        task,
        network,
        loss,
        augment,
        runtime,
        fold,
        seed,
        epochs,
        threads,
        workers,
        data,
        tuple(overrides),
        folds,
        store,
        start,
        processes,
        batch_rule,
    )
    policy = TrustPolicy(tuple(allow), run_unvetted_code)
    seconds = None if budget is None else parse_budget(budget)
    if not isinstance(manifest, Manifest):
        return _train(Path(manifest), out, settings, policy, seeds, jobs, dry_run, seconds, progress)
    if data is None:
        raise UsageError("a manifest in memory does not say where its files are", hint="name their folder as data")
    with temporary_folder() as folder:
        save_manifest(manifest, folder / "manifest.json")
        return _train(folder / "manifest.json", out, settings, policy, seeds, jobs, dry_run, seconds, progress)


def _require_settings_of_the_run(given: Mapping[str, Any]) -> None:
    """Refuse settings beside ``resume`` that would be passed over: those of a run are its own."""
    parameters = inspect.signature(train).parameters
    others = [
        name for name, value in given.items() if name not in WITH_RESUME and value not in ([], parameters[name].default)
    ]
    if others:
        raise UsageError(
            "--resume takes its settings from the run",
            found=", ".join(others),
            expected=f"beside it only {', '.join(WITH_RESUME[1:-1])}",
            hint="give --resume RUN alone (and --data if it moved, --epochs for more of them)",
        )


def _require_several(jobs: int, several: Sequence[object]) -> None:
    """Refuse jobs of a single run."""
    if jobs > 1 and all(each is None for each in several):
        raise UsageError(
            "--jobs is of several runs, and this is one",
            found=jobs,
            expected="--folds or --seeds with it",
            hint="leave --jobs out; --processes shares the batches of one run",
        )


def _train(
    manifest: Path,
    out: str | Path | None,
    settings: RunSettings,
    policy: TrustPolicy,
    seeds: int | None,
    jobs: int,
    dry_run: bool,
    seconds: float | None,
    progress: Callable[[str], object] | None,
) -> TrainingRun:
    root = Path(out or "dry-run")
    composed = compose_run(manifest, root, settings, policy)
    require_its_gpus(composed.config)
    if seconds is not None and composed.config["processes"] > 1:
        raise UsageError("--budget measures one process", hint="--processes 1, or name --epochs")
    if seconds is not None:
        length = _length(manifest, root, settings, composed, seeds, jobs, seconds, progress)
        composed = compose_run(manifest, root, replace(settings, **length), policy)
    dataset = load_manifest(manifest)
    doubt = None if settings.folds is None else patients_note(dataset)
    unhashed = None if all(case.is_hashed for case in dataset.training) else NOT_HASHED
    notes = (*composed.notes, *(note for note in (doubt, unhashed) if note))
    for note in notes:
        (progress or Console("train").note)(note)
    if dry_run:
        return TrainingRun(root, "dry run", notes=notes, trial=try_run(composed, manifest))
    _note_crowded(composed.config, jobs, progress)
    fingerprint = None if settings.task is None else fingerprint_path(settings.task)
    sources = Sources(composed, manifest, fingerprint, Path(composed.config["dataset_dir"]))
    if seeds is not None:
        with alone_in(root):
            return _of_seeds(root, train_seeds(sources, root, seeds, jobs, progress), notes)
    if settings.folds is not None:
        chosen = chosen_folds(dataset, settings.folds)
        with alone_in(root):
            trained = train_folds(sources, root, chosen, jobs, progress)
            return _of_folds(root, trained, measure_out_of_fold(root, sources.data, jobs, progress), notes)
    return _of_record(root, start(composed, manifest, root, fingerprint, progress), notes)


def _length(
    manifest: Path,
    root: Path,
    settings: RunSettings,
    composed: Composed,
    seeds: int | None,
    jobs: int,
    seconds: float,
    progress: Callable[[str], object] | None,
) -> dict[str, Any]:
    """Return the settings that say how long to train, by a step that is measured here."""
    from segpipe.training.budget_plan import Runs, length_within  # with torch and MONAI

    if any(path.is_file() for path in (root / "run.json", *root.glob("*/run.json"))):
        hint = f"go on with `segpipe train --resume {quoted(root)}`, or choose another --out"
        raise UsageError("the folder already holds a run, whose length is decided", path=root, hint=hint)
    dataset, place = load_manifest(manifest), Path(composed.config["dataset_dir"])
    known = None if settings.task is None else read_fingerprint(fingerprint_path(settings.task))
    fingerprint = known or take_fingerprint(dataset, place)
    folds = () if settings.folds is None else tuple(chosen_folds(dataset, settings.folds))
    runs = Runs(seconds, folds, seeds or 1, jobs)
    spent = length_within(composed.config, fingerprint, dataset, place, runs)
    at_once = f", {runs.together} at the same time" if runs.together > 1 else ""
    (progress or Console("train").note)(
        f"{counted(spent.steps, 'step')} of {spent.step_s:.3g} s in {counted(spent.epochs, 'epoch')}, {spent.runs} "
        f"{'run' if spent.runs == 1 else 'runs'}{at_once}: about {duration(spent.total_s)} of {duration(seconds)}"
    )
    lengths = {"steps_per_epoch": spent.steps_per_epoch, "val_interval": spent.validation_interval}
    overrides = (*settings.overrides, *(f"{name}={value}" for name, value in lengths.items()))
    return {"epochs": spent.epochs, "overrides": overrides}


def _note_crowded(config: Mapping[str, Any], jobs: int, progress: Callable[[str], object] | None) -> None:
    threads, cores, processes = config["threads"], usable_cores(), config["processes"]
    if jobs * processes > 1 and jobs * processes * threads > cores:
        of_run = f"of {processes} processes, " if processes > 1 else ""
        what = f"{jobs} runs {of_run}at the same time," if jobs > 1 else f"{processes} processes"
        text = f"{what} with {threads} threads each, share {cores} cores"
        (progress or Console("train").note)(text)


def _require_one_run(folds: object, seeds: object, budget: object, dry_run: bool, resume: str | Path | None) -> None:
    """Refuse what several processes that torchrun started would each do for themselves."""
    root = None if resume is None else Path(resume)
    several = root is not None and any((root / name).is_file() for name in (SEEDS, CROSS_VALIDATION))
    if several or folds is not None or seeds is not None or budget is not None or dry_run:
        raise UsageError(
            "torchrun starts the processes of one training",
            found="several runs" if several else "--folds, --seeds, --budget or --dry-run",
            hint="without torchrun: segpipe train ... --processes N",
        )


def _of_record(root: Path, record: Mapping[str, Any], notes: tuple[str, ...] = ()) -> TrainingRun:
    """Summarise a run by its record, the content of ``run.json``."""
    best = record.get("best") or {}
    return TrainingRun(
        root,
        record["status"],
        record.get("epochs", 0),
        best.get("epoch"),
        best.get("val_mean_dice"),
        record.get("fold"),
        record.get("seed"),
        round(sum(session.get("seconds", 0) for session in record["sessions"]), 1),
        notes,
    )


def _of_seeds(root: Path, document: Mapping[str, Any], notes: tuple[str, ...] = ()) -> TrainingRun:
    """Summarise several runs by the content of ``seeds.json``."""
    rows = document["seeds"]
    return TrainingRun(
        root,
        "finished",
        sum(row["epochs"] for row in rows),
        val_mean_dice=document["val_mean_dice"]["mean"],
        seed=rows[0]["seed"],
        notes=notes,
        seeds=document,
    )


def _of_folds(
    root: Path, document: Mapping[str, Any], out_of_fold: Mapping[str, Any], notes: tuple[str, ...] = ()
) -> TrainingRun:
    """Summarise a cross-validation by the content of ``cross_validation.json`` and ``out_of_fold.json``."""
    return TrainingRun(
        root,
        "finished",
        sum(row["epochs"] for row in document["folds"]),
        val_mean_dice=out_of_fold["figure"]["raw"]["mean"],
        notes=notes,
        folds=document,
        out_of_fold=out_of_fold,
    )
