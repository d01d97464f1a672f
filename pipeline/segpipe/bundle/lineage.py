"""What the weights of a bundle have seen: the cases of their own training, and those of every training before it.

A bundle that was fine-tuned has in ``provenance.json``, as ``parent``, which bundle it began with and what that one had
seen, and so on for the parents of that one. Cases are known by the SHA-256 of their image files, whatever they are
called; one without a hash by its id in a data set of the same name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segpipe.bundle.vet import read_mapping
from segpipe.data import Case, load_manifest
from segpipe.errors import SegpipeError

PROVENANCE, MANIFEST = "provenance.json", "configs/manifest.json"
How = Literal["training", "validation", "patient"]
ORDER: tuple[How, ...] = ("patient", "validation", "training")  # the last counts where a case was seen several ways


@dataclass(frozen=True)
class Seen:
    """Cases that weights were made with.

    Attributes:
        images: SHA-256 of an image file to how it was seen: ``training``; ``validation``, by which they may have been
            chosen; or ``patient``, of whom another image was seen.
        cases: the same of cases without hashes by their id, of each data set by its name.
        is_known: whether that is all of them; False where a training lists none, or has no hashes for some.
    """

    images: Mapping[str, How] = field(default_factory=dict)
    cases: Mapping[str, Mapping[str, How]] = field(default_factory=dict)
    is_known: bool = False

    def __or__(self, other: Seen) -> Seen:
        """Return what either has."""
        names = [*self.cases, *(name for name in other.cases if name not in self.cases)]
        cases = {name: _joined(self.cases.get(name, {}), other.cases.get(name, {})) for name in names}
        return Seen(_joined(self.images, other.images), cases, self.is_known and other.is_known)

    def how(self, data_set: str, case_id: str, images_sha256: Iterable[str]) -> How | None:
        """Return how a case was seen; None where it was not, as far as that is known."""
        found = {self.images[sha256] for sha256 in images_sha256 if sha256 in self.images}
        found |= {how for how in [self.cases.get(data_set, {}).get(case_id)] if how}
        return max(found, key=ORDER.index, default=None)

    def document(self) -> dict[str, Any]:
        """Return it as ``provenance.json`` has it."""
        cases = {name: dict(sorted(each.items())) for name, each in self.cases.items()}
        return {"is_known": self.is_known, "images": dict(sorted(self.images.items())), "cases": cases}

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Seen:
        """Return what `document` gave.

        Raises:
            KeyError, TypeError, AttributeError: it is something else.
        """
        cases = {str(name): dict(each) for name, each in document["cases"].items()}
        return cls(dict(document["images"]), cases, document["is_known"] is True)


def seen_by_bundle(root: Path, member: int | None = None) -> Seen:
    """Return what the weights of a bundle have seen, through all its parents.

    Args:
        root: its folder.
        member: of an ensemble, the number of the one that counts; None: all of them.
    """
    try:
        record = read_mapping(root / PROVENANCE, "provenance")
        part = record if member is None else record["members"][member]
        lists = record["split"] if member is None else part
        listed = {str(case_id): how for how in ORDER[1:] for case_id in _counting(lists, how, record["config"])}
        own = _seen_in(root, listed)
        return own if not part.get("parent") else own | seen_before(part["parent"])
    except (SegpipeError, OSError, KeyError, IndexError, TypeError, AttributeError, ValueError):
        return Seen()


def seen_before(parent: Mapping[str, Any]) -> Seen:
    """Return what the weights had seen that a training began with, by its ``parent`` in ``provenance.json``."""
    return Seen.of_document(parent["seen"])


def _counting(lists: Mapping[str, Any], how: How, config: Mapping[str, Any]) -> Iterable[str]:
    """Return the cases of a part; those of a validation by which nothing was chosen do not count."""
    chosen = config.get("keep_weights", "best") != "last" or config.get("early_stop_patience", 0) != 0
    return (lists.get(how) or ()) if how != "validation" or chosen else ()


def _seen_in(root: Path, listed: Mapping[str, How]) -> Seen:
    manifest = load_manifest(root / MANIFEST)
    patients = {case.patient_id for case in manifest.cases() if case.id in listed and case.patient_id}
    of_them: dict[str, How] = {case.id: "patient" for case in manifest.cases() if case.patient_id in patients}
    seen = {**of_them, **listed}
    cases = [case for case in manifest.cases() if case.id in seen]
    images = {sha256: seen[case.id] for case in cases for sha256 in hashes_of(case)}
    known = {case.id for case in cases if len(hashes_of(case)) == len(case.images)}
    by_id = {case_id: how for case_id, how in seen.items() if case_id not in known}
    return Seen(images, {manifest.name: by_id} if by_id else {}, bool(listed) and not set(listed) - known)


def hashes_of(case: Case) -> list[str]:
    """Return the SHA-256 of each image file of a case that its manifest has."""
    return [case.sha256[path] for path in case.images if path in (case.sha256 or {})] if case.sha256 else []


def _joined(one: Mapping[str, How], other: Mapping[str, How]) -> dict[str, How]:
    keys: Collection[str] = {**one, **other}
    return {key: max([each[key] for each in (one, other) if key in each], key=ORDER.index) for key in keys}
