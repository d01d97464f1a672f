"""A run folder before its training: the config checked as far as possible, and what a new run begins with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segpipe.common.console import quiet_libraries
from segpipe.common.files import cannot_write, read_json, sha256_of, write_json, write_text
from segpipe.common.provenance import environment
from segpipe.data import FINGERPRINT, data_root, load_manifest
from segpipe.errors import UsageError
from segpipe.training.compose import Composed, check_components, check_network, compose_config

SCHEMA_VERSION = 1
PLACES = ("bundle_root", "dataset_dir")  # ids of a config that say where, not what


def compose_run(
    manifest: Path,
    data: Path | None,
    out: Path,
    fragments: Mapping[str, str],
    overrides: list[str],
    options: Mapping[str, tuple[Any, str]],
) -> Composed:
    """The config of a run on a manifest, checked as far as possible without starting it.

    Args:
        manifest: path of the manifest.
        data: data folder, or None for the manifest's own.
        out: run folder.
        fragments: kind to name or path.
        overrides: ``id=value``.
        options: id to value and the option that set it; a None value is left out.

    Raises:
        UsageError: see `segpipe.training.compose_config`; or labels and channels that are not the manifest's.
    """
    chosen = load_manifest(manifest)
    values: dict[str, tuple[Any, str]] = {
        "bundle_root": (str(out.resolve()), "--out"),
        "dataset_dir": (str(data_root(manifest, data).resolve()), "--data"),
        **{name: pair for name, pair in options.items() if pair[0] is not None},
    }
    composed = compose_config(fragments, overrides, values)
    config = composed.config
    for name, theirs in (("labels", list(chosen.labels.values())), ("channels", chosen.channels)):
        if config[name] != theirs:
            raise UsageError(
                f"the {name} of the task are not the manifest's",
                found=config[name],
                expected=theirs,
                hint="make the task fragment of this manifest with `segpipe plan`",
            )
    chosen.select("training", config["fold"])
    if not chosen.select("validation", config["fold"]):
        raise UsageError("the fold has no validation cases", found=f"fold {config['fold']}")
    quiet_libraries()
    check_components(config)
    check_network(config)
    return composed


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
        UsageError: the folder already holds a run, or weights of one.
    """
    taken = next((name for name in ("run.json", "last.pt", "best.pt") if (out / name).exists()), None)
    if taken is not None:
        raise UsageError(
            "the folder already holds a run",
            path=out,
            found=taken,
            hint="go on with `segpipe train --resume`, or choose another --out",
        )
    config = composed.config
    chosen = load_manifest(manifest)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    write_text(out / "manifest.json", Path(manifest).read_text(encoding="utf-8"))
    write_json(out / "config.json", config)
    if fingerprint is not None and fingerprint.is_file():
        write_text(out / FINGERPRINT, fingerprint.read_text(encoding="utf-8"))
    record = {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "config_sha256": sha256_of(out / "config.json"),
        "manifest_sha256": sha256_of(out / "manifest.json"),
        "dataset": chosen.name,
        "cases": {
            split: [case.id for case in chosen.select(split, config["fold"])] for split in ("training", "validation")
        },
        **{name: config[name] for name in ("fold", "seed", "threads", "num_workers")},
        "origins": composed.origins,
        "environment": environment(),
        "sessions": [],
    }
    write_json(out / "run.json", record)
    return record


def require_same(out: Path, config: Mapping[str, Any], manifest: Path) -> None:
    """Refuse a folder whose run has another config or data set; where its files lie does not matter.

    Raises:
        UsageError: naming what differs.
    """
    theirs = read_json(out / "config.json", "run config")
    ours = json.loads(json.dumps(config))
    differing = sorted(
        key for key in {*theirs, *ours} - set(PLACES) if theirs.get(key) != ours.get(key) or key not in theirs
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
