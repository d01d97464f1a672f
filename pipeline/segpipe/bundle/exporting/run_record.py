"""A run folder as data, still what was trained or refused, and ``provenance.json``, with which to train it again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segpipe.bundle.exporting.bundle_configs import train_config
from segpipe.bundle.tensors import State, tensors_sha256
from segpipe.common.files import read_json, sha256_of
from segpipe.common.provenance import versions as installed_versions
from segpipe.data import FINGERPRINT, Manifest, load_manifest, read_fingerprint
from segpipe.errors import DataError, RefusedError, UsageError
from segpipe.reporting import read_history

PROVENANCE, MANIFEST, TRAIN = "provenance.json", "configs/manifest.json", "configs/train.json"
SCHEMA_VERSION = 1
SEEDS = "seeds.json"
PLACES = "places.json"
WHEN_WRITTEN = {
    "best.pt": "after its first validation, at its last epoch at the latest",
    "final.pt": "after its last epoch",
}
NEEDED = ("deterministic_transforms", "network_def", "patch_size", "out_channels", "activation")


@dataclass(frozen=True)
class Run:
    """A run folder as data.

    Attributes:
        config: the resolved config.
        record: ``run.json``.
        manifest: the data set.
        seen: what `seen_in_training` makes of the cases that were trained on; None where the run has no fingerprint.
        history: rows of ``history.csv``; empty where there is none.
        seeds: the runs that differ from it by their seed alone, as ``seeds.json`` beside it says; None without it.
        data: where the data lay; empty where that is not known.
    """

    config: Mapping[str, Any]
    record: Mapping[str, Any]
    manifest: Manifest
    seen: Mapping[str, Any] | None = None
    history: Sequence[Mapping[str, str]] = ()
    seeds: Mapping[str, Any] | None = None
    data: str = ""

    @property
    def versions(self) -> dict[str, str]:
        """Packages that the run was trained with, else those installed here."""
        recorded = (self.record.get("environment") or {}).get("versions") or {}
        return {**installed_versions(), **recorded}

    @property
    def cases(self) -> Mapping[str, list[str]]:
        """Ids of the cases that were trained on and validated on."""
        return self.record.get("cases") or {}


def read_run(folder: Path, unfinished: bool = False) -> Run:
    """Read what `segpipe train` wrote.

    Args:
        folder: with ``config.json``, ``run.json``, ``manifest.json`` and the weights of `weights_of`.
        unfinished: take a run whose training did not finish.

    Raises:
        UsageError: not a run folder.
        DataError: a file of it cannot be read.
        RefusedError: the run did not finish, or its config or manifest is not the one that it was trained with.
    """
    if not folder.is_dir():
        raise UsageError("there is no such run folder", path=folder, expected="what `segpipe train` writes")
    for name in ("config.json", "run.json", "manifest.json", weights_of(folder).name):
        if not (folder / name).is_file():
            raise UsageError(
                "not a finished run folder",
                path=folder,
                found=f"no {name}",
                expected="what `segpipe train` writes",
                hint=f"a run has its {name} {WHEN_WRITTEN.get(name, 'from its start')}: go on with `segpipe train "
                "--resume`, with --epochs for more of them where it has ended",
            )
    config, record = (read_json(folder / "config.json", "run config"), read_json(folder / "run.json", "run record"))
    if not isinstance(config, dict) or not isinstance(record, dict):
        raise DataError("the run's config or record is not a mapping", path=folder)
    missing = next((key for key in NEEDED if key not in config), None)
    if missing:
        raise UsageError("the run's config lacks an id", path=folder / "config.json", expected=missing)
    _require_as_trained(folder, record, unfinished)
    return Run(
        config,
        record,
        load_manifest(folder / "manifest.json"),
        seen_by(folder, (record.get("cases") or {}).get("training", [])),
        read_history(folder) if (folder / "history.csv").is_file() else (),
        _read_seeds(folder),
        _read_place(folder, config),
    )


def weights_of(run: Path) -> Path:
    """Return the file of a run folder that export takes: ``final.pt`` where the last weights are kept, or ``best.pt``.

    It need not be there yet.
    """
    config = read_json(run / "config.json", "run config") if (run / "config.json").is_file() else {}
    keeps_last = isinstance(config, dict) and config.get("keep_weights") == "last"
    return run / ("final.pt" if keeps_last else "best.pt")


def _require_as_trained(folder: Path, record: Mapping[str, Any], unfinished: bool) -> None:
    for name, key in (("config.json", "config_sha256"), ("manifest.json", "manifest_sha256")):
        if key in record and sha256_of(folder / name) != record[key]:
            raise RefusedError(
                f"the run's {name} is not the one that it was trained with",
                path=folder / name,
                found=sha256_of(folder / name),
                expected=record[key],
                hint="put the original back; a changed run is another run: train it",
            )
    if record.get("status") != "finished" and not unfinished:
        raise RefusedError(
            "the run's training did not finish",
            path=folder,
            found=record.get("status", "not recorded"),
            expected="finished",
            hint="go on with `segpipe train --resume`, or export what there is with --unfinished",
        )


def seen_by(folder: Path, trained: Collection[str]) -> dict[str, Any] | None:
    """Read spacing and intensity of the cases that were trained on; None where the run has no fingerprint."""
    fingerprint = read_fingerprint(folder / FINGERPRINT)
    cases = [case for case in fingerprint.cases if case.id in trained] if fingerprint else []
    if not cases:
        return None
    return seen_in_training(
        [case.spacing_ras_mm for case in cases],
        [[channel.overall.percentiles for channel in case.channels] for case in cases],
    )


def seen_in_training(
    spacings_ras_mm: Sequence[Sequence[float]], intensities: Sequence[Sequence[Sequence[float]]]
) -> dict[str, Any]:
    """Return what `segpipe.bundle.out_of_distribution.far_from_training` compares a case with, for a bundle's metadata.

    Args:
        spacings_ras_mm: of each training case, along the axes of RAS.
        intensities: of each training case and channel, the values at the percentiles 0.5, 5, 50, 95 and 99.5.

    Returns:
        The least and largest edge of a voxel along each axis, and of each channel those of each percentile.
    """
    return {
        "spacing_ras_mm": [_range(edges) for edges in zip(*spacings_ras_mm, strict=True)],
        "intensity": [
            [_range(values) for values in zip(*channel, strict=True)] for channel in zip(*intensities, strict=True)
        ],
    }


def _range(values: Sequence[float]) -> list[float]:
    return [float(f"{min(values):.6g}"), float(f"{max(values):.6g}")]


def _read_place(folder: Path, config: Mapping[str, Any]) -> str:
    """Return where the data lay: a run of a pseudonymised data set says it in a file of its own."""
    place = read_json(folder / PLACES, "place of the data") if (folder / PLACES).is_file() else config
    return str(place.get("dataset_dir", "")) if isinstance(place, dict) else ""


def _read_seeds(folder: Path) -> dict[str, Any] | None:
    """Read what ``seeds.json`` beside a run says of the runs that differ by their seed; None where it is not of them.

    Raises:
        DataError: it is not what `segpipe train --seeds` writes.
    """
    path = folder.resolve().parent / SEEDS
    if not path.is_file():
        return None
    document = read_json(path, "seed-to-seed spread")
    try:
        runs = [
            {"seed": int(run["seed"]), "status": run["status"], "epochs": run["epochs"], "best": run["best"]}
            for run in document["seeds"]
        ]
        folders = {Path(str(run["folder"])).name for run in document["seeds"]}
        spread = {key: document["val_mean_dice"][key] for key in ("mean", "sd", "min", "max", "n")}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "not a record of several seeds",
            path=path,
            found=f"{type(error).__name__}: {error}",
            expected="what `segpipe train --seeds` writes",
        ) from error
    return {"runs": runs, "val_mean_dice": spread} if folder.resolve().name in folders else None


def provenance(
    run: Run,
    states: Mapping[str, State],
    root: Path,
    evaluation: Mapping[str, Any] | None = None,
    members: Sequence[Run] = (),
    estimate: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return all of ``provenance.json``.

    Args:
        run: what was trained; of an ensemble its members together.
        states: the weights by file.
        root: the bundle, with manifest, train config and weights already in it.
        evaluation: what ties the figures to it, where it has some.
        members: of an ensemble the run of each, in the order of the weights.
        estimate: what ties the figures of fold models to it, where they stand for it.
    """
    record, manifest = run.record, run.manifest
    sessions = record.get("sessions") or []
    return {
        "schema_version": SCHEMA_VERSION,
        "status": record.get("status"),
        "manifest": {
            "name": manifest.name,
            "sha256": record.get("manifest_sha256"),
            "in_bundle": {"file": MANIFEST, "sha256": sha256_of(root / MANIFEST)},
            "files_sha256": {path: sha256 for case in manifest.cases() for path, sha256 in (case.sha256 or {}).items()},
        },
        "split": {
            "rule": manifest.split_rule,
            "patients": manifest.patient_rule,
            "fold": record.get("fold"),
            "training": run.cases.get("training", []),
            "validation": run.cases.get("validation", []),
            "test": [case.id for case in manifest.test],
        },
        "config": train_config(run.config),
        "config_in_bundle": {"file": TRAIN, "sha256": sha256_of(root / TRAIN)},
        "config_sha256": record.get("config_sha256"),
        "seed": record.get("seed"),
        "threads": record.get("threads"),
        "workers": record.get("num_workers"),
        "epochs": record.get("epochs"),
        "best": record.get("best"),
        "duration_seconds": round(sum(float(session.get("seconds") or 0) for session in sessions), 1),
        "sessions": [_session(session) for session in sessions],
        **({"extensions": record["extensions"]} if record.get("extensions") else {}),
        "environment": record.get("environment"),
        **({"parent": record["parent"]} if "parent" in record else {}),
        "weights": _weights(root, *next(iter(states.items()))),
        "seeds": run.seeds,
        "evaluation": evaluation,
        **({} if estimate is None else {"estimate": estimate}),
        **({"members": _members(members, states, root)} if members else {}),
    }


def _weights(root: Path, file: str, state: State) -> dict[str, Any]:
    return {
        "file": file,
        "sha256": sha256_of(root / file),
        "tensors_sha256": tensors_sha256(state),
        "tensors": len(state),
        "parameters": sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point()),
    }


def _members(runs: Sequence[Run], states: Mapping[str, State], root: Path) -> list[dict[str, Any]]:
    """Return of each member what is its own."""
    return [
        {
            **{name: run.record.get(name) for name in ("status", "fold", "seed", "epochs", "best", "config_sha256")},
            **{part: run.cases.get(part, []) for part in ("training", "validation")},
            **({"parent": run.record["parent"]} if "parent" in run.record else {}),
            "environment": run.record.get("environment"),
            "weights": _weights(root, file, state),
        }
        for run, (file, state) in zip(runs, states.items(), strict=True)
    ]


def _session(session: Mapping[str, Any]) -> dict[str, Any]:
    began = session.get("began")
    return {
        "resumed": bool(session.get("resumed")),
        "began": None if began is None else datetime.fromtimestamp(float(began), UTC).isoformat("T", "seconds"),
        "seconds": session.get("seconds"),
        "versions": session.get("versions"),
    }
