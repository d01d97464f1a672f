"""Run and resume a training, and try one without writing: a thin shell over MONAI's ConfigWorkflow.

The run folder is described in docs/decisions/0001; what runs is its ``config.json``, so
``python -m monai.bundle run --config_file RUN/config.json`` does the same without this module. That of a pseudonymised
data set names no place of this machine, and is told it with ``--dataset_dir``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segpipe.common.console import Console, quiet_libraries
from segpipe.common.files import cannot_write, json_text, read_json, sha256_of, write_json
from segpipe.common.folder_lock import locked
from segpipe.common.memory import freed_memory_kept, memory_here, return_freed_memory
from segpipe.common.partial import temporary_folder
from segpipe.common.processes import place_among_processes
from segpipe.common.provenance import versions
from segpipe.data import load_manifest, require_as_imported
from segpipe.errors import DataError, UsageError, chain, first_cause, ours_within
from segpipe.reporting import read_history
from segpipe.training.data_parallel import follows, joined, launch, processes_of, require_its_gpus, settle_processes
from segpipe.training.fine_tuning import INITIAL, require_initial
from segpipe.training.fragments import Composed
from segpipe.training.memory_rules import needs_of_run
from segpipe.training.run_folder import CROSS_VALIDATION, SEEDS, prepare, read_places, weights_of
from segpipe.training.same_cpu import require_same_cpu
from segpipe.training.tracking import Tracker, tracker_of

ENDING_S = 5.0  # in which loader processes of a killed training, which share its lock, notice and end
Progress = Callable[[str], object]


def start(
    composed: Composed, manifest: Path, out: Path, fingerprint: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Begin a new run and train to its end; arguments and errors as of `prepare` and `segpipe.train`.

    Returns:
        The run record.
    """
    if follows():
        return _follow(out, composed.config, False, None)
    with locked(out, _busy(out)):  # of two that begin at once, the second leaves nothing beside the first
        record = prepare(composed, manifest, out, fingerprint)
    if place_among_processes()[1] < processes_of(record):
        launch(out, processes_of(record), {"resume": out}, progress)
        return _read_record(out)
    return _session(out, record, False, None, progress)


def resume(
    out: Path,
    data: Path | None = None,
    progress: Progress | None = None,
    epochs: int | None = None,
    processes: int | None = None,
    allow_other_processes: bool = False,
) -> dict[str, Any]:
    """Continue a run as if it had never stopped, with the recorded config, seed, threads and workers.

    Args:
        out: run folder.
        data: folder of the data set, where it moved.
        progress: called with a line for each epoch.
        epochs: extend the run to so many, also one that is finished. It goes on with the learning rates of a run of
            that many epochs, which the record says.
        processes: that train it; None for as many as before.
        allow_other_processes: go on with another number of them, which the record will say.

    Raises:
        UsageError: no run there, its config was changed, it began on another kind of CPU or with another number of
            processes, or ``epochs`` that it has already.
        DataError: training cases have other files than the manifest says.
    """
    record = _read_record(out)
    if record["status"] == "finished" and epochs is None:
        if not follows() and (tracker := tracker_of(out, progress)) is not None:
            tracker.end(record, read_history(out))
        return record
    if follows():
        return _follow(out, read_json(out / "config.json", "run config"), True, data)
    if not _has_its_config(out, record):
        raise UsageError(
            "the run's config.json was changed",
            path=out / "config.json",
            hint="a changed config is another run: train it with another --out",
        )
    require_same_cpu(out, record)
    require_initial(out, record)
    before = Path({**read_json(out / "config.json", "run config"), **read_places(out)}["dataset_dir"])
    place, copy = data or before, out / "manifest.json"
    require_as_imported(load_manifest(copy).training, place, since=copy if place.resolve() == before else None)
    if epochs is not None:
        _require_more(out, record, epochs)
    asked = processes or processes_of(record)
    require_its_gpus({**read_json(out / "config.json", "run config"), "processes": asked})
    wanted = settle_processes(out, record, processes, allow_other_processes)
    if place_among_processes()[1] < wanted:
        arguments = {"resume": out, "epochs": epochs, "data": data and data.resolve()}
        launch(out, wanted, arguments, progress)
        return _read_record(out)
    return _session(out, record, True, data, progress, epochs)


def _read_record(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = read_json(out / "run.json", "run record")
    return record


def _follow(out: Path, config: Mapping[str, Any], resume: bool, data: Path | None) -> dict[str, Any]:
    """Train beside the first process, which has the folder's lock and record and writes all files."""
    with joined(out, config):
        _train(out, resume, data)
    return _read_record(out)


def _has_its_config(out: Path, record: dict[str, Any]) -> bool:
    """Return whether the config is as recorded; one of an extension that was cut off is written as it was to be."""
    if sha256_of(out / "config.json") == record["config_sha256"]:
        return True
    for extension in record.get("extensions", [])[-1:]:
        extended = {**read_json(out / "config.json", "run config"), "max_epochs": extension["to"]}
        if hashlib.sha256(json_text(extended).encode()).hexdigest() == record["config_sha256"]:
            write_json(out / "config.json", extended)
            return True
    return False


def _require_more(out: Path, record: dict[str, Any], epochs: int) -> None:
    planned = read_json(out / "config.json", "run config").get("max_epochs")
    if not isinstance(planned, int) or epochs <= planned:
        raise UsageError(
            "the run is not extended by so many epochs",
            path=out,
            found=f"{epochs}; it was planned for {planned} and has {record.get('epochs', 0)}",
            expected="more than it was planned for",
            hint=f"name more, e.g. --epochs {planned * 2}" if isinstance(planned, int) else "max_epochs is no number",
        )
    for file, noun in ((SEEDS, "seed"), (CROSS_VALIDATION, "fold")):
        if (out.resolve().parent / file).is_file():
            raise UsageError(
                f"the run is one of several {noun}s, which differ by their {noun} alone",
                path=out,
                hint="train all of them with more epochs and another --out",
            )


def _extend(out: Path, record: dict[str, Any], epochs: int) -> str:
    """Plan the run for more epochs; the record goes first, and says what the config is to be."""
    config = read_json(out / "config.json", "run config")
    begun = len(read_history(out)) if (out / "history.csv").is_file() else 0
    schedule = f"from epoch {begun + 1} on, the learning rate is that of a run of {epochs} epochs"
    extended = {**config, "max_epochs": epochs}
    record["status"] = "running"
    record["config_sha256"] = hashlib.sha256(json_text(extended).encode()).hexdigest()
    extension = {"from": config["max_epochs"], "to": epochs, "after_epoch": begun, "schedule": schedule}
    record["extensions"] = [*record.get("extensions", []), extension]
    write_json(out / "run.json", record)
    write_json(out / "config.json", extended)
    return schedule


def _session(
    out: Path,
    record: dict[str, Any],
    resume: bool,
    data: Path | None,
    progress: Progress | None,
    epochs: int | None = None,
) -> dict[str, Any]:
    began = time.time()
    session: dict[str, Any] = {
        "resumed": resume and (out / "last.pt").is_file(),
        "began": round(began, 1),
        "versions": versions(),
        "seconds": 0.0,  # until it ends
    }
    with locked(out, _busy(out), wait_s=ENDING_S):
        _count_killed(out, record)
        if epochs is not None:
            (progress or Console("train").note)(_extend(out, record, epochs))
        record["sessions"].append(session)
        write_json(out / "run.json", record)
        tracker = tracker_of(out, progress)
        try:
            _execute(out, resume, data, progress, tracker)
            record["status"] = "finished"
        except KeyboardInterrupt:
            record["status"] = "interrupted"
            raise
        except BaseException:
            record["status"] = "failed"
            raise
        finally:
            session["seconds"] = round(time.time() - began, 1)
            record.update(_best(out))
            write_json(out / "run.json", record)
            if tracker is not None:
                tracker.end(record, read_history(out) if (out / "history.csv").is_file() else [])
    return record


def _busy(out: Path) -> UsageError:
    return UsageError("another process trains in this folder", path=out, hint="wait for it, or choose another --out")


def _count_killed(out: Path, record: dict[str, Any]) -> None:
    """Give a session that was killed the time of its epochs, which is all that is known of it."""
    last = record["sessions"][-1] if record["sessions"] else None
    if last is not None and not last["seconds"] and (out / "history.csv").is_file():
        rows = read_history(out)
        last["seconds"] = round(sum(float(row["seconds"] or 0) for row in rows[record.get("epochs", 0) :]), 1)
        record["epochs"] = len(rows)


def _execute(
    out: Path, resume: bool, data: Path | None, progress: Progress | None, tracker: Tracker | None = None
) -> None:
    with joined(out, read_json(out / "config.json", "run config")):
        _train(out, resume, data, progress, tracker)


def _train(
    out: Path, resume: bool, data: Path | None, progress: Progress | None = None, tracker: Tracker | None = None
) -> None:
    quiet_libraries()
    from ignite.engine import Events
    from monai.bundle import ConfigWorkflow

    override: dict[str, Any] = {"bundle_root": str(out.resolve()), "resume": resume}
    override |= read_places(out) | ({} if data is None else {"dataset_dir": str(data.resolve())})
    try:
        workflow = ConfigWorkflow(
            config_file=str(out / "config.json"), workflow_type="train", logging_file=False, **override
        )
        workflow.initialize()
        if progress is not None:
            workflow.parser.get_parsed_content("train::log").report_to(progress)
        if tracker is not None:
            workflow.parser.get_parsed_content("train::log").follow(tracker.rows)
        for event in (Events.STARTED, Events.ITERATION_COMPLETED):  # whole volumes of many sizes leave holes
            workflow.parser.get_parsed_content("validate::evaluator").add_event_handler(event, return_freed_memory)
        # as the config's `run` says, but not through eval(), after which Python ends any Ctrl-C by a signal
        with freed_memory_kept():
            workflow.parser.get_parsed_content("train::trainer").run()
    except Exception as error:
        raise unwrap(error) from error


def _best(out: Path) -> dict[str, Any]:
    """Return the epoch whose weights are kept, by the history: the best or the last; none before it is validated."""
    if not (out / "history.csv").is_file():
        return {}
    rows = read_history(out)
    judged = [row for row in rows if row["val_mean_dice"]]
    if not judged:
        return {"epochs": len(rows)}
    if weights_of(out).name == "final.pt":
        judged = judged[-1:]
    best = max(judged, key=lambda row: float(row["val_mean_dice"]))
    return {"epochs": len(rows), "best": {"epoch": int(best["epoch"]), "val_mean_dice": float(best["val_mean_dice"])}}


def dry_run(composed: Composed, manifest: Path) -> dict[str, Any]:
    """Instantiate everything and run one training step and one validation case, before any caching.

    Of several processes it is the share of one, alone: what exchanging gradients takes is not measured.

    Returns:
        Parameters, shapes, seconds a step, and an estimate of the whole.
    """
    quiet_libraries()
    import torch
    from monai.bundle import ConfigParser

    given = ConfigParser(json.loads(json.dumps(composed.config)))
    processes, whole = given.get_parsed_content("processes"), given.get_parsed_content("batch_size")
    uncached = {"cache_rate": 0.0, "store": None, "manifest": str(manifest), "batch_size": whole // processes}
    config = {**json.loads(json.dumps(composed.config)), **uncached}
    try:
        with temporary_folder() as folder:
            if composed.initial is not None:
                composed.initial.write(config, folder)
                config["initial_weights"] = str(folder / INITIAL)
            parser = ConfigParser(config)
            parser.get_parsed_content("initialize")
            network = parser.get_parsed_content("train::network")
        trainer, device = parser.get_parsed_content("train::trainer"), parser.get_parsed_content("device")
        loss = parser.get_parsed_content("train::loss")
        loader = parser.get_parsed_content("train::dataloader")
        augment = parser.get_parsed_content("train::augmentation")
        batch = next(iter(loader))
        network.train()
        for _ in range(2):  # the first step warms up
            began = time.perf_counter()
            given = augment(batch, device=device)
            value = loss(network(given["image"].to(device)), given["label"].to(device))
            value.backward()
            seconds = time.perf_counter() - began
        case = next(iter(parser.get_parsed_content("validate::dataloader")), None)  # none where the fold is none
        scores, validation_seconds = None, None
        network.eval()
        if case is not None:
            began = time.perf_counter()
            with torch.no_grad():
                scores = parser.get_parsed_content("validate::inferer")(case["image"].to(device), network)
            loss(scores, case["label"].to(device))
            validation_seconds = round(time.perf_counter() - began, 3)
    except Exception as error:
        raise unwrap(error) from error
    if not math.isfinite(float(value)):
        raise DataError("the first loss is not finite", found=float(value))
    epochs, cases = trainer.state.max_epochs, len(parser.get_parsed_content("validate::dataset"))
    checks = math.ceil(epochs / composed.config["val_interval"]) * math.ceil(cases / processes)
    trained = len(parser.get_parsed_content("train::dataset"))
    steps = composed.config["steps_per_epoch"] or math.ceil(trained / whole)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "batch_shape": list(batch["image"].shape),
        "first_loss": float(value),
        "validation_scores_shape": None if scores is None else list(scores.shape),
        "seconds_per_step": round(seconds, 3),
        "steps_per_epoch": steps,
        "seconds_per_validation_case": validation_seconds,
        "estimated_minutes": round((epochs * steps * seconds + checks * (validation_seconds or 0)) / 60, 1),
        "processes": processes,
        **_memory(composed.config, manifest),
    }


def _memory(config: dict[str, Any], manifest: Path) -> dict[str, float]:
    """Return what all processes of a run take of memory, by the headers of its cases, and what is free."""
    needs = needs_of_run(config, load_manifest(manifest), Path(config["dataset_dir"]))
    cached = needs.in_memory - int((1 - config["cache_rate"]) * needs.cases)
    each = cached if config["store"] is None else needs.from_store
    return {
        "memory_gb": float(f"{config['processes'] * each / 1e9:.3g}"),
        "free_memory_gb": float(f"{memory_here().free / 1e9:.3g}"),
    }


def unwrap(error: BaseException) -> BaseException:
    """Return the error of ours, or the disk's, within what MONAI and Ignite wrap around it; else the first cause."""
    ours = ours_within(error)
    if ours is not None:
        return ours
    for link in chain(error):
        if isinstance(link, OSError) and link.errno in (errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EDQUOT):
            return cannot_write(link.filename or "the run folder", link)
    return first_cause(error)
