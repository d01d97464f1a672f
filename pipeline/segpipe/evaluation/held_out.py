"""Test cases: were they held out of the training, and how often has the test set been read.

Which cases a model was trained on stands in its bundle; `segpipe predict` notes in each ``result.json`` whether the
case is one of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.common.console import some_of
from segpipe.data import Manifest, Readings, record_reading
from segpipe.errors import RefusedError
from segpipe.evaluation.case_evaluation import CaseResult
from segpipe.evaluation.made_by import Origin, made_by


def refuse_trained_cases(results: Sequence[CaseResult], manifest_sha256: str) -> None:
    """Refuse to call cases test cases that the model was trained on, or chosen by.

    Args:
        results: of a test set.
        manifest_sha256: of the manifest that calls them so.

    Raises:
        RefusedError: the bundle that made a label map lists the case's image, or the case of this very manifest.
    """
    seen = {result.id: result.origin for result in results if part_of_training(result.origin, manifest_sha256)}
    if seen:
        first = next(iter(seen.values()))
        bundle = ((first and first.model) or {}).get("bundle", {})
        raise RefusedError(
            "cases that the model was trained on cannot be called test cases",
            found=f"{len(seen)} of {len(results)}: {some_of(list(seen))}",
            expected=f"cases that {bundle.get('name')} {bundle.get('version')} ({str(bundle.get('sha256'))[:12]}) does "
            "not list among those of its training and validation",
            hint="measure them with --split all, which calls them nothing; for a test take cases that it did not see",
        )


def part_of_training(origin: Origin | None, manifest_sha256: str) -> str | None:
    """Return whether the model of a label map was trained on the case (``training``) or chosen by it (``validation``).

    Args:
        origin: of the label map; nothing is known without a model, or where its bundle lists nothing.
        manifest_sha256: of the manifest whose case it is: in the manifest of the training an id is the same case.
    """
    if origin is None or origin.model is None:
        return None
    same = manifest_sha256 in origin.seen.get("manifests", ())
    part = origin.seen.get("image") or (origin.seen.get("case") if same else None)
    return None if part is None else str(part)


def read_test_set(
    manifest: str | Path | Manifest,
    manifest_sha256: str,
    results: Sequence[CaseResult],
    test: Collection[str],
    reason: str | None,
) -> Readings | None:
    """Count a reading of a manifest's test set; None where none of its cases has a prediction that was measured.

    Args:
        manifest: whose ledger it is.
        manifest_sha256: of it.
        results: what was measured.
        test: ids of the test cases.
        reason: what for.

    Raises:
        DataError: the ledger cannot be used.
    """
    origins = {result.id: result.origin for result in results if result.id in test}
    if not any(origins.values()):
        return None
    made = made_by(origins)["made_by"]
    bundle = None if made is None else made["bundle"]
    return record_reading(manifest, _identity(origins, made), bundle, manifest_sha256, len(origins), reason)


def _identity(origins: Mapping[str, Origin | None], made: Mapping[str, Any] | None) -> str:
    """Return a hash of what decides on a label map, whatever its bundle is called; else of the label maps."""
    if made is None:
        content: Any = {case_id: origin and origin.sha256 for case_id, origin in origins.items()}
    else:
        content = {name: made[name] for name in ("files", "postprocessing", "ensemble", "mirror")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
