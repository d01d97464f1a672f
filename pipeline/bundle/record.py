"""``provenance.json``: where a bundle's weights come from, and all that is needed to train them again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pipeline.bundle.configs import train_config
from pipeline.bundle.run import Run
from pipeline.bundle.tensors import State, tensors_sha256
from pipeline.files import sha256_of
from pipeline.manifest import Manifest

PROVENANCE = "provenance.json"
MANIFEST, TRAIN, WEIGHTS = "configs/manifest.json", "configs/train.json", "models/model.pt"
SCHEMA_VERSION = 1


def provenance(run: Run, state: State, root: Path) -> dict[str, Any]:
    """All of ``provenance.json``.

    Args:
        run: what was trained.
        state: the weights.
        root: the bundle, with manifest, train config and weights already in it.
    """
    record = run.record
    sessions = record.get("sessions") or []
    return {
        "schema_version": SCHEMA_VERSION,
        "status": record.get("status"),
        "manifest": {
            "name": run.manifest.name,
            "sha256": record.get("manifest_sha256"),
            "in_bundle": {"file": MANIFEST, "sha256": sha256_of(root / MANIFEST)},
            "files_sha256": _files(run.manifest),
        },
        "split": _split(run),
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
        "environment": record.get("environment"),
        "weights": {
            "file": WEIGHTS,
            "sha256": sha256_of(root / WEIGHTS),
            "tensors_sha256": tensors_sha256(state),
            "tensors": len(state),
            "parameters": sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point()),
        },
        "seeds": run.seeds,
    }


def _split(run: Run) -> dict[str, Any]:
    """Which cases were trained on, validated on and held out."""
    cases = run.record.get("cases") or {}
    return {
        "rule": run.manifest.split_rule,
        "patients": run.manifest.patient_rule,
        "fold": run.record.get("fold"),
        "training": cases.get("training", []),
        "validation": cases.get("validation", []),
        "test": [case.id for case in run.manifest.test],
    }


def _files(manifest: Manifest) -> dict[str, str]:
    """SHA-256 of each file of the data set that was hashed when it was seen."""
    return {path: digest for case in manifest.cases() for path, digest in (case.sha256 or {}).items()}


def _session(session: Mapping[str, Any]) -> dict[str, Any]:
    began = session.get("began")
    return {
        "resumed": bool(session.get("resumed")),
        "began": None
        if began is None
        else datetime.fromtimestamp(float(began), timezone.utc).isoformat("T", "seconds"),
        "seconds": session.get("seconds"),
        "versions": session.get("versions"),
    }
