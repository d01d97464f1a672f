"""Which model made the label maps that are measured.

`segpipe predict` leaves a ``result.json`` beside each label map, which names the model and the hash of the file. What
these say, and whether the files are still those, stands in metrics.json, so that figures can be tied to a bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe.common.files import read_json, sha256_of
from segpipe.common.result_folder import RESULT
from segpipe.errors import SegpipeError

NOT_RECORDED = "no result.json of `segpipe predict` lies beside it"
TOO_OLD = "its result.json, of an older version, does not name model and hash: predict it again with --overwrite"
OTHERS = "its result.json is of another case"
CHANGED = "it is not the file that `segpipe predict` wrote"
MASKS = "its masks were given, so the first stage did not make it: predict it again from the scans alone"
TRUTH = "it is the file of the truth"
HOW = ("runtime", "engine", "precision", "segpipe")
SEVERAL = "the label maps are of several models"


@dataclass(frozen=True)
class Origin:
    """Where one label map came from.

    Attributes:
        sha256: of its file; None where that cannot be read.
        model: what made it: bundle, hashes of its files, post-processing, ensemble, mirrored axes; None where that is
            not known.
        reason: why not.
        how: runtime, engine, precision and version of segpipe, which change a label map by rounding alone.
        images: SHA-256 of each image file that it was made from.
        seen: whether the model was trained on the case, as `segpipe.bundle.TrainedCases.judge` says; empty where its
            bundle does not list what it was trained on.
    """

    sha256: str | None = None
    model: dict[str, Any] | None = None
    reason: str = ""
    how: Mapping[str, str] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    seen: Mapping[str, Any] = field(default_factory=dict)


def origin_of(prediction: Path, case_id: str, truth: Path) -> Origin:
    """Return what the ``result.json`` beside a label map says, where the file is the one that it speaks of."""
    try:
        sha256 = sha256_of(prediction)
    except OSError:
        return Origin(reason="it cannot be read")
    path = prediction.parent / RESULT
    if not path.is_file():
        return Origin(sha256, reason=NOT_RECORDED)
    try:
        result = read_json(path)
        if "model" not in result or "sha256" not in result:
            return Origin(sha256, reason=TOO_OLD)
        model = {
            "bundle": {name: str(result["bundle"][name]) for name in ("name", "version", "sha256")},
            "files": {str(name): str(value) for name, value in result["model"]["files"].items()},
            "postprocessing": list(result["model"]["postprocessing"]),
            "ensemble": [str(bundle["sha256"]) for bundle in result["ensemble"]],
            "mirror": [str(axis) for axis in result["mirror"]],
        }
        how = {"runtime": str(result["runtime"]), "engine": str(result["engine"])}
        how["precision"] = str(result.get("precision", "float32"))  # which older results do not name
        how["segpipe"] = str(result["versions"]["segpipe"])
        seen = dict(result.get("training") or {})
        images, written = tuple(map(str, result["source_sha256"])), result["sha256"].get(prediction.name)
    except (SegpipeError, KeyError, TypeError, AttributeError) as error:
        return Origin(sha256, reason=f"its result.json cannot be used ({type(error).__name__})")
    if result.get("id") != case_id:
        return Origin(sha256, reason=OTHERS)
    if written != sha256:
        return Origin(sha256, reason=CHANGED)
    if result.get("masks_given"):
        return Origin(sha256, reason=MASKS)
    if truth.is_file() and sha256_of(truth) == sha256:
        return Origin(sha256, reason=TRUTH)
    return Origin(sha256, model, how=how, images=images, seen=seen)


def made_by(origins: Mapping[str, Origin | None]) -> dict[str, Any]:
    """Return ``predictions`` of metrics.json.

    Args:
        origins: of each case by its id, None where it has no prediction.

    Returns:
        ``made_by``, the one model of all label maps, or None; then ``untied`` has the reason by case.
    """
    known = {case_id: origin for case_id, origin in origins.items() if origin is not None}
    untied = {case_id: origin.reason for case_id, origin in known.items() if origin.model is None}
    models = [origin.model for origin in known.values() if origin.model is not None]
    if any(model != models[0] for model in models):
        untied |= {case_id: SEVERAL for case_id in known if case_id not in untied}
    if untied or not models:
        return {"made_by": None, "untied": untied}
    how = {name: _each(origin.how[name] for origin in known.values()) for name in HOW}
    return {"made_by": {**(models[0] or {}), **how}, "untied": {}}


def _each(words: Iterable[str]) -> list[str]:
    return sorted(set(words))


def seal(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a metrics.json without its own ``content_sha256``: who changes a figure breaks it."""
    content = {name: value for name, value in document.items() if name != "content_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
