"""A run folder before its training: the config checked as far as possible, and what a new run begins with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.bundle import STORE_BESIDE, TrustPolicy, require_vetted_sources
from segpipe.bundle import weights_of as weights_of
from segpipe.common.console import quiet_libraries, quoted
from segpipe.common.files import cannot_write, json_text, read_json, sha256_of, write_json, write_text
from segpipe.common.memory import memory_here
from segpipe.common.precision import precision_of
from segpipe.common.processes import place_among_processes
from segpipe.common.provenance import environment
from segpipe.data import (
    FINGERPRINT,
    Manifest,
    chosen_folds,
    data_root,
    load_manifest,
    require_apart,
    require_as_imported,
)
from segpipe.errors import DataError, UsageError
from segpipe.store import default_store
from segpipe.training.config_checks import check_components, check_network
from segpipe.training.data_parallel import of_several_processes, settle_batch
from segpipe.training.fine_tuning import FineTuning, InitialOfParent, begin_with, describe
from segpipe.training.fragments import Composed, Fragment, compose_config
from segpipe.training.memory_rules import fits, needs_of_run
from segpipe.training.mirroring import mirrored_in_training
from segpipe.training.parent import Parent, read_parent

SCHEMA_VERSION = 1
SEEDS = "seeds.json"  # beside runs that differ by their seed alone
OF_THE_RECORD = ("fold", "seed", "threads", "num_workers", "processes", "precision", "channels_last")  # ids
CROSS_VALIDATION = "cross_validation.json"  # beside runs that differ by the fold that they leave out
DISTRIBUTED = "distributed.json"  # what torchrun -m monai.bundle run takes beside the config
PLACES = {"bundle_root": ".", "dataset_dir": "data"}  # ids that say where, not what, as config.json has them
PLACE = "places.json"  # of a pseudonymised data set: where it and its store lie, for the run's owner alone


@dataclass(frozen=True)
class RunSettings:
    """What a training is asked for; see `segpipe.train`.

    Attributes:
        task, network, loss, augment, runtime: fragments, by name or path; no task: the parent's; no network: the
            parent's, or a U-Net without one.
        fold: that is validated; None trains on every case, and keeps the weights of the last epoch.
        seed, epochs, threads, workers: ids of the config; None leaves the value of the fragment.
        data: data folder, or None for the manifest's own.
        overrides: ``id=value``.
        folds: of a cross-validation, ``all`` or some such as ``0,2``; the config is that of the first, and every model
            keeps the weights of its last epoch.
        store: folder of prepared cases, ``default`` for that of this user, ``auto`` for it where memory does not hold
            them, ``none``; None leaves the fragment's.
        start: the bundle that the training begins with; None: it begins by chance.
        processes: that share each batch; None leaves the fragment's.
        batch_rule: ``split``: ``batch_size`` is that of all processes; ``scaled``: of each.
    """

    task: str | Path | None
    network: str | Path | None = None
    loss: str | Path = "dice_ce"
    augment: str | Path = "light"
    runtime: str | Path = "cpu"
    fold: int | None = 0
    seed: int = 0
    epochs: int | None = None
    threads: int | None = None
    workers: int | None = None
    data: str | Path | None = None
    overrides: Sequence[str] = ()
    folds: str | Sequence[int] | None = None
    store: str | Path | None = None
    start: FineTuning | None = None
    processes: int | None = None
    batch_rule: str = "split"

    def fragments(self, dataset: Manifest, parent: Parent | None) -> dict[str, str | Fragment]:
        """Return kind to name or path, or to what the parent's training had."""
        named: dict[str, str | Fragment] = {
            kind: str(getattr(self, kind)) for kind in ("task", "network", "loss", "augment", "runtime")
        }
        if self.network is None:
            named["network"] = parent.network if parent else "unet"
        if self.task is None and parent:
            named["task"] = parent.task(dataset)
        return named

    @property
    def values(self) -> dict[str, tuple[Any, str]]:
        """Id to value and the option that set it."""
        started = place_among_processes()[1]
        values = {
            "fold": (self.fold, "--fold"),
            "seed": (self.seed, "--seed"),
            "max_epochs": (self.epochs, "--epochs"),
            "threads": (self.threads, "--threads"),
            "num_workers": (self.workers, "--workers"),
            "processes": (self.processes, "--processes") if started == 1 else (started, "torchrun"),
            "keep_weights": ("last", self._why_last) if self._why_last else (None, ""),
        }
        return {name: pair for name, pair in values.items() if pair[0] is not None}

    @property
    def _why_last(self) -> str:
        return "--fold none" if self.fold is None else "--folds" if self.folds is not None else ""

    def require_fixed_length(self, config: Mapping[str, Any]) -> None:
        """Refuse a choice of the weights by validation, where nothing is validated or the figure is of those cases.

        Raises:
            UsageError: naming the id.
        """
        if not self._why_last:
            return
        for name, needed in (("keep_weights", "last"), ("early_stop_patience", 0)):
            if config[name] != needed:
                raise UsageError(
                    f"{self._why_last} keeps the weights of the last of a fixed number of epochs",
                    found=f"{name}: {config[name]}",
                    expected=f"{name}: {needed}",
                    hint=f"leave {name} out, or set it to {needed}",
                )


def compose_run(manifest: Path, out: Path, settings: RunSettings, policy: TrustPolicy) -> Composed:
    """Compose the config of a run on a manifest, checked as far as possible without starting it.

    Args:
        manifest: path of the manifest.
        out: run folder.
        settings: what is asked for.
        policy: for a bundle that manifest or fragments lie in.

    Raises:
        RefusedError: such a bundle did not pass; or see `segpipe.training.fine_tuning`.
        DataError: the manifest's test set has patients of its training.
        UsageError: see `segpipe.training.compose_config`; or labels and channels that are not the manifest's.
    """
    if settings.task is None and settings.start is None:
        raise UsageError("a task fragment is needed", hint="make one with `segpipe plan`, and name it with --task")
    parent = None if settings.start is None else read_parent(settings.start.bundle, policy)
    require_vetted_sources((manifest,), policy)
    dataset, place = load_manifest(manifest), data_root(manifest, settings.data).resolve()
    require_apart(dataset)
    fragments = settings.fragments(dataset, parent)
    require_vetted_sources([each for each in fragments.values() if isinstance(each, str)], policy)
    values: dict[str, tuple[Any, str]] = {
        "bundle_root": (str(out.resolve()), "--out"),
        "dataset_dir": (str(place), "--data"),
        **settings.values,
    }
    if settings.store is not None:
        values["store"] = (None if settings.store == "none" else str(settings.store), "--store")
    if settings.folds is not None:
        values["fold"] = (chosen_folds(dataset, settings.folds)[0], "--folds")
    composed = compose_config(fragments, settings.overrides, values)
    config = composed.config
    theirs_by_name: dict[str, Any] = {
        "labels": list(dataset.labels.values()),
        "channels": dataset.channels,
        "ignore_label": dataset.ignore_label,
        "regions": dataset.regions or {},
        "annotated_sets": dataset.annotated_sets,
    }
    for name, theirs in theirs_by_name.items():
        if config[name] != theirs or (name == "regions" and list(config[name]) != list(theirs)):
            raise UsageError(
                f"the {name} of the task are not the manifest's",
                found=config[name],
                expected=theirs,
                hint="make the task fragment of this manifest with `segpipe plan`",
            )
    settings.require_fixed_length(config)
    require_cases(dataset, config["fold"])
    quiet_libraries()
    _settle_precision(composed)
    check_components(config)
    check_network(config)
    composed.notes += settle_batch(config, composed.origins, settings.batch_rule, dataset)
    _settle_store(composed, dataset)
    if parent is not None and settings.start is not None:
        initial = InitialOfParent(parent, settings.start, dataset, place)
        composed.initial = begin_with(config, composed.origins, initial)
        folds = [config["fold"]] if settings.folds is None else chosen_folds(dataset, settings.folds)
        composed.notes += describe(composed.initial, config, folds)
    return composed


def _settle_precision(composed: Composed) -> None:
    """Replace ``auto`` by what it is here, so that a run that goes on elsewhere computes as it began."""
    config = composed.config
    used = precision_of(config["precision"], "cuda" if "cuda" in str(config["device"]) else "cpu")
    if used != config["precision"]:
        composed.origins["precision"] += f", auto: {used} on this machine"
        config["precision"] = used


def _settle_store(composed: Composed, dataset: Manifest) -> None:
    """Replace ``auto`` and ``default`` by a folder, or ``auto`` by null where memory holds the cases."""
    config, said = composed.config, composed.config["store"]
    if not isinstance(said, str) or said.startswith(("$", "@")):
        return
    if said == "auto":
        processes = config["processes"]
        needs, free = needs_of_run(config, dataset, Path(config["dataset_dir"])), memory_here().free // processes
        in_memory = fits(needs, free)
        words = f"{needs.in_memory / 1e9:.3g} GB with the cases in memory, {free / 1e9:.3g} GB free"
        words += f", for each of {processes} processes" if processes > 1 else ""
        composed.origins["store"] += f", auto: {words}"
        composed.notes.append(f"{words}: {'they are kept there' if in_memory else 'they are kept in a store on disk'}")
        said = None if in_memory else "default"
    if said is not None:
        said = str(default_store() if said == "default" else Path(said).absolute())
        composed.notes.append(
            f"cases are prepared once and read from {said}; when no training needs it any more: "
            f"segpipe store remove {quoted(said)}"
        )
    config["store"] = said


def require_cases(dataset: Manifest, fold: int | None) -> None:
    """Refuse a fold, or a whole data set where it is None, that nothing can be trained on or validated.

    Raises:
        UsageError: naming the fold.
    """
    if not dataset.select("training", fold):
        raise UsageError("there are no cases to train on", found="no fold" if fold is None else f"fold {fold}")
    if fold is not None and not dataset.select("validation", fold):
        raise UsageError("the fold has no validation cases", found=f"fold {fold}")


def prepare(composed: Composed, manifest: Path, out: Path, fingerprint: Path | None = None) -> dict[str, Any]:
    """Write what a new run begins with; `resume` trains it.

    Args:
        composed: what `compose_run` gave.
        manifest: of the data set.
        out: the run folder.
        fingerprint: of the data set, kept in the run for the bundle that it becomes; passed over where it is not there.

    Returns:
        The run record.

    Raises:
        UsageError: the folder already holds a run, or weights of one; or it is not known which weights it begins with.
        DataError: training cases have other files than the manifest says.
    """
    taken = next((name for name in ("run.json", "last.pt", "best.pt", "final.pt") if (out / name).exists()), None)
    if taken is not None:
        raise UsageError(
            "the folder already holds a run",
            path=out,
            found=taken,
            hint="go on with `segpipe train --resume`, or choose another --out",
        )
    config = composed.config
    if "initial_weights" in config and composed.initial is None:
        raise UsageError(
            "the weights that the run begins with are its parent's", path=out, hint="give the first command again"
        )
    dataset = load_manifest(manifest)
    validated = [] if config["fold"] is None else dataset.select("validation", config["fold"])
    require_as_imported(dataset.training, Path(config["dataset_dir"]))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    write_text(out / "manifest.json", manifest.read_text(encoding="utf-8"))
    if dataset.pseudonymised:  # the folder's name may name whom the pseudonyms hide
        places = {name: config[name] for name in ("dataset_dir", "store") if config.get(name) is not None}
        write_text(out / PLACE, json_text(places), mode=0o600)
        config = {**config, **PLACES, "store": STORE_BESIDE if "store" in places else None}
    write_json(out / "config.json", config)
    write_json(out / DISTRIBUTED, of_several_processes(config))
    if fingerprint is not None and fingerprint.is_file():
        write_text(out / FINGERPRINT, fingerprint.read_text(encoding="utf-8"))
    record = {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "config_sha256": sha256_of(out / "config.json"),
        "manifest_sha256": sha256_of(out / "manifest.json"),
        "dataset": dataset.name,
        "cases": {
            "training": [case.id for case in dataset.select("training", config["fold"])],
            "validation": [case.id for case in validated],
        },
        **{name: config[name] for name in OF_THE_RECORD if name in config},
        "mirror_axes": mirrored_in_training(config),
        **({} if composed.initial is None else {"parent": composed.initial.write(config, out)}),
        "origins": composed.origins,
        "environment": environment(),
        "sessions": [],
    }
    write_json(out / "run.json", record)
    return record


def read_places(out: Path) -> dict[str, str]:
    """Return where the run's data lies, where its config does not say it.

    Raises:
        DataError: the file cannot be read.
    """
    if not (out / PLACE).is_file():
        return {}
    places = read_json(out / PLACE, "place of the data")
    places = places if isinstance(places, dict) else {}
    known = {name: places[name] for name in ("dataset_dir", "store") if name in places}
    if "dataset_dir" not in known or not all(isinstance(place, str) for place in known.values()):
        raise DataError("not what `segpipe train` writes", path=out / PLACE, hint="name the data folder with --data")
    return known


def require_same(out: Path, config: Mapping[str, Any], manifest: Path) -> None:
    """Refuse a folder whose run has another config or data set; where its files lie does not matter.

    Raises:
        UsageError: naming what differs.
    """
    recorded = read_json(out / "config.json", "run config")
    composed = json.loads(json.dumps(config))
    for each in (recorded, composed):  # whether voxels are rounded as a store does matters, where it lies does not
        each["store"] = each.get("store") is not None
    differing = sorted(
        key
        for key in {*recorded, *composed} - set(PLACES)
        if recorded.get(key) != composed.get(key) or key not in recorded
    )
    if load_manifest(out / "manifest.json") != load_manifest(manifest):
        differing.append("the manifest")
    if differing:
        raise UsageError(
            "the folder holds a run with another config",
            path=out,
            found=f"other: {', '.join(differing)}",
            hint="give the same settings to go on with it, or another --out",
        )
