"""Which cases a bundle was trained on, by its own lists: ``provenance.json`` and the manifest that lies in it."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe.bundle.lineage import seen_before
from segpipe.bundle.vet import FIRST_STAGE, read_mapping
from segpipe.errors import SegpipeError

PROVENANCE, MANIFEST = "provenance.json", "configs/manifest.json"
PARTS = ("validation", "training")  # of a case that stands in both, the latter


@dataclass(frozen=True)
class TrainedCases:
    """What a bundle lists.

    Attributes:
        cases: id to ``training``, or ``validation``, by which weights may have been chosen; those that the bundle saw
            that the training began with are of the former.
        images: the same of each image file's SHA-256, as far as the manifest has hashes; with those of every training
            that the weights went through before.
        manifests: SHA-256 of the manifest of the training, and of the one that lies in the bundle.
    """

    cases: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    manifests: tuple[str, ...] = ()

    @classmethod
    def of(cls, roots: Iterable[Path]) -> TrainedCases | None:
        """Return what bundles, whose scores are averaged, and their first stages list; None where they list nothing."""
        stages = [stage for root in roots for stage in (root, root / FIRST_STAGE)]
        known = [each for root in stages if (each := _listed(root)) is not None]
        if not known:
            return None
        return cls(
            dict(ChainMap(*(dict(each.cases) for each in known))),
            dict(ChainMap(*(dict(each.images) for each in known))),
            tuple(dict.fromkeys(sha256 for each in known for sha256 in each.manifests)),
        )

    def judge(self, case_id: str, image_sha256: Iterable[str]) -> dict[str, Any]:
        """Return what ``result.json`` says of a case.

        Args:
            case_id: its id, which means the same case in the manifests of the bundle alone.
            image_sha256: of its image files; none of a DICOM series.

        Returns:
            ``image`` and ``case``, which are ``training``, ``validation`` or None, and ``manifests``.
        """
        images = (self.images[sha256] for sha256 in image_sha256 if sha256 in self.images)
        return {"image": next(images, None), "case": self.cases.get(case_id), "manifests": list(self.manifests)}


def _listed(root: Path) -> TrainedCases | None:
    """Read one bundle's lists; None where it has none, or none that can be read."""
    try:
        record, manifest = read_mapping(root / PROVENANCE, "provenance"), read_mapping(root / MANIFEST, "manifest")
        cases = {str(case_id): part for part in PARTS for case_id in record["split"].get(part) or ()}
        overlap = (record.get("parent") or {}).get("overlap", {}).get("cases", {})
        cases |= dict.fromkeys(map(str, overlap), "training")  # which the parent saw
        hashes = (record["manifest"].get("sha256"), (record["manifest"].get("in_bundle") or {}).get("sha256"))
        before = seen_before(record["parent"]).images if record.get("parent") else {}
        own = {
            str(case["sha256"][path]): cases[case["id"]]
            for case in (*manifest.get("training", ()), *manifest.get("test", ()))
            if case["id"] in cases
            for path in ([case["image"]] if isinstance(case["image"], str) else case["image"])
            if path in (case.get("sha256") or {})
        }
        earlier = {sha256: how for sha256, how in before.items() if how in PARTS}
        images = {**earlier, **own, **{sha256: how for sha256, how in earlier.items() if how == "training"}}
    except (SegpipeError, OSError, KeyError, TypeError, AttributeError, ValueError):
        return None
    return TrainedCases(cases, images, tuple(str(sha256) for sha256 in hashes if sha256)) if cases else None
