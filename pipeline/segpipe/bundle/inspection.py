"""What a bundle is, from its files as data: inputs, labels, results, licence, requirements, the code it would run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segpipe.bundle.vet import Use, requirements, vet_bundle
from segpipe.errors import RefusedError

_ABOUT = "task description intended_use authors copyright data_source data_type limits references"


def inspect_bundle(path: str | Path, allow: Collection[str] = ()) -> dict[str, Any]:
    """Return all that `segpipe bundle inspect` shows, as plain values; nothing of the bundle is executed.

    Raises:
        UsageError: not a bundle.
        RefusedError: its archive is not safe to be unpacked.
    """
    verdict = vet_bundle(path, allow)
    if not verdict.sizes:
        first = verdict.findings[0]
        raise RefusedError(
            "the bundle cannot be looked into safely",
            path=path,
            found=f"{first.file}: {first.reason}",
            hint="`segpipe bundle verify` lists all that was found",
        )
    metadata = verdict.metadata
    formats = metadata.get("network_data_format")
    inputs, outputs = (_tensors(formats, side) for side in ("inputs", "outputs"))
    return {
        "bundle": {"name": verdict.name, "version": verdict.version, "sha256": verdict.sha256},
        "about": {key: metadata[key] for key in _ABOUT.split() if metadata.get(key)},
        "licence": metadata.get("license"),
        "inputs": inputs,
        "outputs": outputs,
        "labels": _labels(outputs),
        "results": metadata.get("results") or metadata.get("eval_metrics"),
        "requirements": [asdict(needed) for needed in requirements(metadata)],
        "size": {
            "files": len(verdict.sizes),
            "bytes": sum(verdict.sizes.values()),
            "weights_bytes": sum(size for file, size in verdict.sizes.items() if file.startswith("models/")),
        },
        "code": [_code(use) for use in verdict.uses],
        "card": verdict.card or None,
        "verdict": verdict.outcome,
        "trusted": False,
    }


def _tensors(formats: Any, side: str) -> dict[str, Any]:
    tensors = formats.get(side) if isinstance(formats, dict) else None
    return {str(name): tensor for name, tensor in tensors.items()} if isinstance(tensors, dict) else {}


def _labels(outputs: Mapping[str, Any]) -> dict[str, str]:
    """Return label names by value, of the first output that has names."""
    for tensor in outputs.values():
        names = tensor.get("channel_def") if isinstance(tensor, Mapping) else None
        if isinstance(names, Mapping):
            return {str(value): str(name) for value, name in names.items()}
    return {}


def _code(use: Use) -> dict[str, Any]:
    return {
        "file": use.file,
        "place": use.place,
        "kind": use.kind,
        "text": use.text,
        "names": list(use.names),
        "admitted": not use.findings,
        "reasons": [finding.reason for finding in use.findings],
    }
