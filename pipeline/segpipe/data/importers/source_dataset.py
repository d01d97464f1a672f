"""The form in which every reader describes the data set that it found, and how readers complain."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segpipe.common.console import some_of
from segpipe.data.case_ids import ids_of_files
from segpipe.data.importers.label_values import NO_RULES, ValueRules, require_run
from segpipe.errors import DataError

CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class SourceCase:
    """One case as it lies on disk; paths are POSIX and relative to the data root, notes as in the manifest.

    ``name`` is what its files are called, where that could not be its id; ``registered`` whether its channels are taken
    as registered though no file says so, or by what in words; ``covariates`` what is known of who and how was scanned.
    """

    id: str
    images: list[str]
    label: str | None = None
    patient_id: str | None = None
    notes: tuple[str, ...] = ()
    label_turned: str | None = None
    name: str | None = None
    registered: bool | str = False
    covariates: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceDataset:
    """What a reader finds below ``root``.

    Attributes:
        root: the data folder.
        training, test: the cases.
        labels: value to name.
        modality: channel to word.
        units: channel to the unit of its values, of those that are known.
        about: the manifest's descriptive fields.
        notes: what was passed over.
        ignore_label: value of voxels that nobody annotated, where there are any.
        regions: name to the label values that it joins, in order; empty where labels exclude each other.
        has_pseudonyms: whether its patients are pseudonyms already.
    """

    root: Path
    training: list[SourceCase]
    test: list[SourceCase]
    labels: dict[str, str]
    modality: dict[str, str]
    about: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    units: dict[str, str] = field(default_factory=dict)
    ignore_label: int | None = None
    regions: dict[str, list[int]] = field(default_factory=dict)
    has_pseudonyms: bool = False


def with_own_ids(dataset: SourceDataset) -> SourceDataset:
    """Return a data set in which every case has an id of its own that can be one; the others stay as they are.

    Raises:
        DataError: an image that is listed twice.
    """
    cases = [*dataset.training, *dataset.test]
    image, count = Counter(case.images[0] for case in cases).most_common(1)[0] if cases else ("", 0)
    if count > 1:
        raise DataError(
            "an image is listed twice",
            path=dataset.root / image,
            found=f"{count} cases of it",
            expected="one case an image",
            hint="take the others out of the list",
        )
    ids = ids_of_files([(case.id, case.images[0]) for case in cases])
    own = [
        case if case.id == id else replace(case, id=id, name=case.name or case.id)
        for case, id in zip(cases, ids, strict=True)
    ]
    return replace(dataset, training=own[: len(dataset.training)], test=own[len(dataset.training) :])


def rooted(dataset: SourceDataset, place: Path) -> SourceDataset:
    """Let the paths start from a folder that holds both the data set and what was made of it."""
    root = Path(os.path.commonpath([dataset.root.resolve(), place]))
    if root == dataset.root.resolve():
        return dataset

    def from_root(path: str) -> str:
        return Path(os.path.relpath((dataset.root / path).absolute(), root)).as_posix()

    def moved(case: SourceCase) -> SourceCase:
        label = None if case.label is None else from_root(case.label)
        return replace(case, images=[from_root(path) for path in case.images], label=label)

    training, test = ([moved(case) for case in cases] for cases in (dataset.training, dataset.test))
    return replace(dataset, root=root, training=training, test=test)


def refusal(noun: str, faults: Mapping[str, str], usable: int) -> DataError:
    """Return the error that names everything that cannot be used, with the reason."""
    return DataError(
        f"{len(faults)} {noun} cannot be used, {usable} can",
        found="; ".join(f"{id}: {fault}" for id, fault in sorted(faults.items())),
        hint="mend them, or leave them out with --skip-bad" if usable else "mend them",
    )


def require_files(root: Path, cases: Iterable[SourceCase], source: Path) -> None:
    """Refuse cases whose files are not there: not at all, or a link to nothing, or no file.

    Raises:
        DataError: naming the missing files.
    """
    paths = [path for case in cases for path in [*case.images, *([case.label] if case.label else [])]]
    missing = [path for path in paths if not (root / path).is_file()]
    if missing:
        links = sum((root / path).is_symlink() for path in missing)
        raise DataError(
            f"{len(missing)} of {len(paths)} files are missing",
            path=source,
            found=some_of(missing) + (f" ({links} links to files that are not there)" if links else ""),
            expected=f"below {root}",
            hint="complete the data (for links: fetch what they stand for), or take these cases out of it",
        )


def require_promised(document: Mapping[str, Any], found: Mapping[str, int], source: Path) -> None:
    """Refuse a ``dataset.json`` that promises more cases than there are.

    Args:
        document: with ``numTraining`` and ``numTest``, or without them.
        found: number of cases by that name.
        source: the file.

    Raises:
        DataError: there are fewer.
    """
    for name, count in found.items():
        promised = document.get(name)
        if isinstance(promised, int) and promised > count:
            raise DataError(
                "there are fewer cases than dataset.json promises",
                path=source,
                found=f"{count} cases",
                expected=f"{name}: {promised}",
                hint=f"complete the data, or write {count} into {name} where it is complete",
            )


def passed_over(paths: Iterable[Path], what: str) -> tuple[str, ...]:
    """Return the note on files that are no part of the data set, naming the first; none where there are none."""
    names = [path.name for path in sorted(paths)]
    return (f"passed over: {len(names)} {what}, e.g. {names[0]}",) if names else ()


@dataclass(frozen=True)
class LabelNames:
    """What a ``dataset.json`` says of its label values; see `SourceDataset`."""

    labels: dict[str, str]
    ignore_label: int | None = None
    regions: dict[str, list[int]] = field(default_factory=dict)


def label_names(document: Any, source: Path, rules: ValueRules = NO_RULES) -> LabelNames:
    """Read ``{"1": "liver"}`` (Decathlon) or ``{"liver": 1, "ignore": 2}`` (nnU-Net).

    Where a name stands for several values, ``{"tumour": [1, 2], "core": [2]}``, all names are regions (nnU-Net); a
    label that is a region alone has its name, the others are ``label_1``, ``label_2``, ...

    Args:
        document: the object.
        source: the file that it stands in.
        rules: which values become another label; what becomes background loses its name.

    Raises:
        DataError: not a mapping, or no whole numbers.
    """
    if not isinstance(document, dict) or not document:
        raise DataError("the data set names no labels", path=source, found=repr(document), expected="an object")
    named: list[tuple[str, list[int]]] = []
    ignored = rules.ignored
    for key, entry in document.items():
        several = isinstance(entry, (list, tuple))
        if several and str(key).isdecimal():
            raise DataError("a region of several values has no name", path=source, found=f"{key!r}: {entry!r}")
        words, name = ([key], str(entry)) if str(key).isdecimal() else (entry if several else [entry], str(key))
        values = [_value(word, name, source) for word in words]
        becomes = list(dict.fromkeys(label for value in values if (label := int(rules.label_of(value))) or not value))
        if name.lower() == "ignore" and len(becomes) == 1 and rules.ignored is None:
            ignored = becomes[0]
        elif becomes and becomes != [ignored]:
            named.append((name, becomes))
    regions = {name: values for name, values in named if values != [0]} if any(len(v) > 1 for _, v in named) else {}
    names = _names_of_regions(regions) if regions else _names_of_labels(named, source)
    require_run(map(int, names), source)
    return LabelNames(names, ignored, regions)


def _value(word: Any, name: str, source: Path) -> int:
    if not re.fullmatch("[0-9]{1,3}", str(word)) or isinstance(word, bool):
        raise DataError(
            f"label {name[:80]!r} has no whole number", path=source, found=repr(word)[:80], expected="0 to 255"
        )
    return int(word)


def _names_of_labels(named: Iterable[tuple[str, list[int]]], source: Path) -> dict[str, str]:
    names: dict[str, str] = {"0": "background"}
    for name, (label,) in named:
        if label and str(label) in names:
            raise DataError(f"label value {label} has two names", path=source, found=f"{name!r}")
        names[str(label)] = "background" if label == 0 else name
    return names


def _names_of_regions(regions: Mapping[str, list[int]]) -> dict[str, str]:
    alone = {values[0]: name for name, values in regions.items() if len(values) == 1}
    values = sorted(set().union(*regions.values()))
    return {"0": "background", **{str(value): alone.get(value, f"label_{value}") for value in values}}


def channel_names(document: Any, source: Path) -> dict[str, str]:
    """Return channel index to modality, from an object or a list.

    Raises:
        DataError: neither, or empty.
    """
    if isinstance(document, list):
        document = {str(index): name for index, name in enumerate(document)}
    if not isinstance(document, dict) or not document:
        raise DataError("the data set names no image channels", path=source, found=repr(document))
    return {str(index): str(name) for index, name in document.items()}
