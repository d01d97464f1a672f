"""What a bundle is, from its files as data: inputs, labels, results, licence, requirements, the code it would run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segpipe.bundle.vet import Purpose, Use, Verdict, fits_a_line, grants_text, requirements, vet_bundle
from segpipe.common.files import write_text
from segpipe.errors import RefusedError, UsageError

MOST_NAMES = 1000  # that anyone would go through
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
        "members": _members(metadata),
        "parent": _parent(metadata),
        "results": metadata.get("results") or metadata.get("eval_metrics"),
        "requirements": [asdict(needed) for needed in requirements(metadata)],
        "size": {
            "files": len(verdict.sizes),
            "bytes": sum(verdict.sizes.values()),
            "weights_bytes": sum(size for file, size in verdict.sizes.items() if file.startswith("models/")),
        },
        "code": [_code(use, verdict) for use in verdict.uses],
        "card": verdict.card or None,
        "verdict": verdict.outcome,
        "trusted": False,
    }


def _members(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the members that an ensemble names; empty for a single model."""
    members = metadata.get("members")
    return [member for member in members if isinstance(member, dict)] if isinstance(members, list) else []


def _parent(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the bundle that the training began with; None where none is named."""
    training = metadata.get("training")
    parent = training.get("parent") if isinstance(training, dict) else None
    return parent if isinstance(parent, dict) else None


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


def _code(use: Use, verdict: Verdict) -> dict[str, Any]:
    return {
        "file": use.file,
        "place": use.place,
        "kind": use.kind,
        "text": use.text,
        "names": list(use.names),
        "admitted": not use.findings,
        "run_by_predict": verdict.is_run(use.file),
        "reasons": [finding.reason for finding in use.findings],
    }


@dataclass(frozen=True)
class AllowFile:
    """A file of names that was written.

    Attributes:
        needed: names for `segpipe predict`.
        more: names for the rest, which stand in it as comments.
        refused: findings on what predict runs that no name admits, and names that fit no line.
    """

    needed: tuple[str, ...]
    more: tuple[str, ...]
    refused: int


def write_allow_file(path: str | Path, file: Path, allow: Collection[str] = ()) -> AllowFile:
    """Write the names that a bundle needs beside the list, with what each grants, for ``--allow-file``.

    Args:
        path: the bundle.
        file: where they are written.
        allow: names that are taken for admitted; those that are needed are written as well.

    Raises:
        UsageError: not a bundle, or the file is there already.
    """
    if file.exists():
        raise UsageError("the file of names is there already", path=file, hint="choose another one, or take it away")
    needed, last = _needed(path, dict.fromkeys(allow, ""), "predict")
    everything, _ = _needed(path, needed, "all")
    more = {name: found_in for name, found_in in everything.items() if name not in needed}
    write_text(file, grants_text(f"{last.name} {last.version}".strip(), needed, more))
    return AllowFile(tuple(sorted(needed)), tuple(sorted(more)), len(last.of_predict))


def _needed(path: str | Path, names: Mapping[str, str], purpose: Purpose) -> tuple[dict[str, str], Verdict]:
    """Return the names that a purpose needs, each with a file that does, and the verdict with them.

    One name may open the view of another, such as that of an argument.
    """
    known = dict(names)
    while True:
        verdict = vet_bundle(path, known, purpose)
        asked = {found.name: found.file for found in verdict.findings if found.name and fits_a_line(found.name)}
        if not asked.keys() - known.keys() or len(known) > MOST_NAMES:
            return {name: file for name, file in known.items() if name in verdict.allowed}, verdict
        known = {**asked, **known}
