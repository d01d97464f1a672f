"""What a bundle says of its cases: patients are numbers, and what pseudonyms hide is named nowhere."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from segpipe.bundle.disclosure import find_disclosures, machine_words
from segpipe.bundle.exporting.run_record import Run
from segpipe.bundle.vet import plain
from segpipe.common.image_names import image_stem
from segpipe.data import Case, Manifest
from segpipe.errors import RefusedError

CHANNEL = re.compile(r"_\d{4}$")


def anonymous(manifest: Manifest) -> Manifest:
    """Return the manifest as it is passed on: patients are numbers, since only the grouping is needed, and no more.

    Where ids are pseudonyms, files are called after them: what they are called at home says who is meant.
    """
    groups: dict[str, str] = {}
    for case in manifest.cases():
        if case.patient_id is not None:
            groups.setdefault(case.patient_id, f"p{len(groups) + 1:05}")
    sections = {
        name: [
            case.model_copy(
                update={
                    "patient_id": groups.get(case.patient_id or ""),
                    "covariates": None,
                    **(_files_by_id(case) if manifest.pseudonymised else {}),
                }
            )
            for case in getattr(manifest, name)
        ]
        for name in ("training", "test")
    }
    return manifest.model_copy(update=sections)


def _files_by_id(case: Case) -> dict[str, Any]:
    """Return the paths and hashes of a case under names that are made of its id."""
    several = len(case.images) > 1
    images = [
        f"images/{case.id}{f'_{index:04}' if several else ''}{_ending(path)}" for index, path in enumerate(case.images)
    ]
    label = f"labels/{case.id}{_ending(case.label)}" if case.label else None
    renamed = dict(zip(case.paths, [*images, label] if label else images, strict=True))
    hashes = {renamed[path]: value for path, value in (case.sha256 or {}).items() if path in renamed}
    return {"image": images if several else images[0], "label": label, "sha256": hashes or None}


def _ending(path: str) -> str:
    """Return all endings of a file name, such as ``.nii.gz``."""
    return path.rpartition("/")[2][len(image_stem(path)) :].lower()


def names_at_home(manifest: Manifest, run: Run) -> set[str]:
    """Return what files and folders of a pseudonymised data set are called where it lies, but words of its labels."""
    paths = [PurePosixPath(path) for case in manifest.cases() for path in case.paths]
    names = {*(image_stem(path.name) for path in paths), *(part for path in paths for part in path.parts[:-1])}
    names |= {CHANNEL.sub("", name) for name in names} | {PurePosixPath(run.data).name}
    words = (*manifest.labels.values(), *manifest.targets.values(), *manifest.channels)
    own = {word.casefold() for word in words}
    hidden = {case.id for case in manifest.cases()}
    return {name for name in names if name.casefold() not in own and CHANNEL.sub("", name) not in hidden}


def require_nameless(folder: Path, names: Collection[str]) -> None:
    """Refuse a written bundle that says one of some names, or a word of this machine.

    Raises:
        RefusedError: naming where.
    """
    findings = find_disclosures(folder, (*names, *machine_words()))
    if findings:
        raise RefusedError(
            "the bundle would name what its pseudonyms hide",
            findings=plain(findings),
            hint="say nothing of it in --name, --description, --authors, --limit and the manifest, then export again",
        )
