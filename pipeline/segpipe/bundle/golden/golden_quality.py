"""What the quality model of a bundle says of its golden case: recorded at export, and compared where it is replayed.

The golden image is no scan, so it lies far from every calibration case. That is what is compared: whether features,
distances and predictions are computed here as they were on the author's machine, from the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from segpipe.bundle.golden.golden_case import DOCUMENT, IMAGES
from segpipe.bundle.vet import FIRST_STAGE, Finding, shown
from segpipe.common.files import read_json, sha256_of, write_json
from segpipe.quality import QUALITY

TOLERANCE = {"distance": 0.05, "dice": 0.05}  # relative, and absolute; where versions or hardware differ
SAME = 1e-4  # relative, where they agree


def write_golden_quality(root: Path) -> None:
    """Write what the quality model says of the golden case into ``golden.json``; nothing where one of them is missing.

    Args:
        root: of a bundle that is whole but for its hashes.
    """
    if (root / QUALITY).is_file() and (root / DOCUMENT).is_file():
        said = assess_golden(root)
        if said is not None:
            write_json(root / DOCUMENT, {**read_json(root / DOCUMENT), "quality": said})


def assess_golden(root: Path) -> dict[str, Any] | None:
    """Return what a bundle's quality model says of its golden case; None where its engine shows nothing to judge by.

    Raises:
        SegpipeError: the bundle cannot be run, or its quality model cannot be read.
    """
    from segpipe.bundle.open import open_bundle
    from segpipe.bundle.segmentation import LoadedBundle
    from segpipe.inference import ModelOptions

    bundle = open_bundle(root)
    loaded = LoadedBundle(
        bundle.recipe(ModelOptions(device="cpu", runtime="torch", threads=1)), bundle.policy, bundle.is_foreign
    )
    images = in_order_of_channels((root / IMAGES).iterdir())
    quality = loaded.segment(tuple(map(str, images))).quality
    if quality is None:
        return None
    return {
        "sha256": sha256_of(root / QUALITY),
        "distance": quality.distance,
        "groups": dict(quality.groups),
        "dice": dict(quality.dice),
        "absent": list(quality.absent),
    }


def in_order_of_channels(images: Iterable[Path]) -> list[Path]:
    """Return image files in the order of channels: scans, then the masks of a first stage by their number."""
    stem = f"_{FIRST_STAGE}_"
    return sorted(images, key=lambda path: (stem in path.name, len(path.name) if stem in path.name else 0, path.name))


def changed_quality(root: Path, document: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the quality model where it is not the one that was recorded with the golden case."""
    recorded = document.get("quality")
    if not isinstance(recorded, Mapping):
        return
    if not (root / QUALITY).is_file():
        yield Finding(QUALITY, "", "not there", f"{DOCUMENT} was recorded with a quality model")
    elif sha256_of(root / QUALITY) != recorded["sha256"]:
        why = "the quality model is not the one that was recorded with the golden case"
        yield Finding(QUALITY, "", shown(f"sha256 {sha256_of(root / QUALITY)}"), f"{why}: {recorded['sha256']}")


def quality_differs(recorded: Mapping[str, Any], found: Mapping[str, Any], elsewhere: bool) -> str:
    """Return in words what the quality model says otherwise here; empty where it is within the tolerance."""
    numbers = [("distance", recorded["distance"], found.get("distance"), "distance")]
    for name, key in (("groups", "distance"), ("dice", "dice")):
        known, own = recorded[name], found.get(name) or {}
        numbers += [(f"{name} of {each}", known.get(each), own.get(each), key) for each in sorted({*known, *own})]
    for name, before, now, key in numbers:
        if before is None or now is None:
            close = before is now
        elif not elsewhere:
            close = math.isclose(before, now, rel_tol=SAME, abs_tol=SAME)
        elif key == "dice":
            close = abs(before - now) <= TOLERANCE[key]
        else:
            close = math.isclose(before, now, rel_tol=TOLERANCE[key])
        if not close:
            return f"{name}: recorded {before}, here {now}"
    return "" if list(recorded["absent"]) == list(found.get("absent") or []) else "labels that are absent"
