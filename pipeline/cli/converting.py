"""What `segpipe import` does with slices and with DICOM: both become NIfTI files in a folder of their own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.console import Console
from pipeline.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections import Counter

    from pipeline.importers import FoundDataset
    from pipeline.importers.dicom_labels import DicomTree
    from pipeline.importers.label_rules import LabelRules
    from pipeline.importers.slices import Found

DICOM_WORDS = {"MRI": "MR", "PET": "PT"}


@dataclass(frozen=True)
class Place:
    """Where the results go: the manifest, the NIfTI files, and the folder that the manifest's paths start from."""

    manifest: Path
    folder: Path
    root: Path


def place_of(source: Path, output: Path | None, converted: Path | None) -> Place:
    """NIfTI files lie in ``converted``, else beside the manifest, else beside the source with the manifest in it."""
    folder = converted or _beside(source, output)
    manifest = output or folder / "manifest.json"
    folder, beside = folder.resolve(), manifest.resolve().parent
    return Place(manifest, folder, beside if folder.is_relative_to(beside) else folder)


def _beside(source: Path, output: Path | None) -> Path:
    if output is not None:
        return output.parent / f"{output.stem}_nifti"
    source = source.resolve()
    return source.with_name(f"{source.name}_nifti")


def convert_slices(
    console: Console,
    place: Place,
    stacks: Found,
    spacing: tuple[float, float, float] | None,
    label_name: Sequence[str],
    skip_bad: bool,
) -> FoundDataset:
    """Make volumes of stacks of slices."""
    from pipeline.importers import read_slices

    if spacing is not None and not all(0 < edge < 1000 for edge in spacing):
        raise UsageError("no such spacing", found=spacing, expected="three lengths in mm above 0")
    with console.progress() as bar:
        task = bar.add_task("converting", total=len(stacks.stacks))
        found, left_out = read_slices(
            stacks,
            place.root,
            place.folder,
            spacing_mm=spacing or (1.0, 1.0, 1.0),
            label_names=label_name,
            skip_bad=skip_bad,
            assumed=spacing is None,
            advance=lambda: bar.advance(task),
        )
    console.note(found.about["description"])
    _tell_left_out(console, left_out)
    if stacks.passed_over:
        console.note(f"passed over: {len(stacks.passed_over)} images, e.g. {stacks.passed_over[0]}")
    return _as_listed(found, stacks, label_name)


def _as_listed(found: FoundDataset, stacks: Found, label_name: Sequence[str]) -> FoundDataset:
    """What the manifest that comes with the package says of the LGG data set, where it is that."""
    from pipeline.fetch import shipped_manifest
    from pipeline.manifest import load_manifest

    path = shipped_manifest("lgg_mri") if stacks.is_lgg else None
    if path is None:
        return found
    listed = load_manifest(path)
    said = {field: getattr(listed, field) for field in ("name", "reference", "source", "licence")}
    return replace(
        found,
        about={**found.about, **said},
        labels=found.labels if label_name else listed.labels,
        modality=listed.modality if len(found.modality) == listed.n_channels else found.modality,
    )


def find_series(console: Console, source: Path, modality: Sequence[str]) -> DicomTree:
    """The series of a tree of DICOM files, with what labels them."""
    from pipeline.importers.dicom_labels import find_labelled

    words = [DICOM_WORDS.get(word.upper(), word.upper()) for word in modality]
    with console.progress() as bar:
        task = bar.add_task("reading headers", total=None)
        return find_labelled(source, words, lambda done, total: bar.update(task, completed=done, total=total))


def show_names(console: Console, tree: DicomTree) -> None:
    """The names that somebody gave to regions and segments: for the eyes of who asked, and for nothing else."""
    names = sorted(tree.names().items())
    console.table("regions and segments", ("name", "label files"), names)


def rules_of(
    console: Console, tree: DicomTree, label: Sequence[str], label_name: Sequence[str]
) -> LabelRules:
    """The user's rules; where everything that is labelled has one name, it needs none.

    Raises:
        UsageError: several names and no rule, or a rule that fits none.
        DataError: there are no labels.
    """
    from pipeline.importers.label_rules import LabelRules, label_rules

    names = tree.names()
    if not names:
        faults = "".join(f"; {file}: {fault}" for file, fault in tree.faults.items())
        raise DataError(
            "no DICOM SEG or RTSTRUCT labels these series", path=tree.root,
            found=f"{len(tree.labelled) + len(tree.unlabelled)} series{faults}",
            expected="series and the labels that refer to them, in one tree",
        )  # fmt: skip
    if label:
        rules = label_rules(label)
        unused = rules.unused(names)
        if unused:
            raise UsageError(
                "no region or segment has such a name",
                found=", ".join(unused),
                hint="--show-names lists the names",
            )
        others = [name for name in names if rules.value_of(name) is None]
        if others:
            console.note(f"left out: {len(others)} names that fit no --label (--show-names lists all)")
        return rules
    if len({name.casefold() for name in names}) == 1 and len(label_name) <= 1:
        only = next(iter(names))
        return LabelRules(((only, 1),), {1: label_name[0] if label_name else "label_1"})
    raise _which_labels(console, tree, names)


def _which_labels(console: Console, tree: DicomTree, names: Counter[str]) -> UsageError:
    if sys.stdout.isatty():
        show_names(console, tree)
    return UsageError(
        "which regions or segments are wanted?", found=f"{len(names)} different names",
        expected="--label 'PATTERN=VALUE:NAME', e.g. --label 'GTV*=1:tumour' --label 'node*=2:lymph node'",
        hint="--show-names lists them on this terminal: free text that somebody typed, kept nowhere",
    )  # fmt: skip


def convert_dicom(
    console: Console,
    place: Place,
    tree: DicomTree,
    rules: LabelRules,
    overlap: str,
    allow_missing: bool,
    unlabelled: bool,
    skip_bad: bool,
) -> FoundDataset:
    """Make volumes and label maps of labelled series."""
    from pipeline.importers.dicom import Wanted, read_dicom

    if overlap not in ("refuse", "first", "last"):
        raise UsageError(f"no way {overlap!r} to go about overlaps", expected="refuse, first or last")
    wanted = Wanted(rules, overlap, allow_missing, unlabelled, skip_bad)  # type: ignore[arg-type]
    with console.progress() as bar:
        total = len(tree.labelled) + (len(tree.unlabelled) if unlabelled else 0)
        task = bar.add_task("converting", total=total)
        found, left_out, notes = read_dicom(tree, place.root, place.folder, wanted, lambda: bar.advance(task))
    for case, words in notes.items():
        console.note(f"{case}: {'; '.join(words)}")
    _tell_left_out(console, left_out)
    if "mixed" in found.modality.values():
        console.note(
            "the series are of several modalities: --modality CT (or MRI, PT, ...) takes those of one"
        )
    if tree.unlabelled and not unlabelled:
        console.note(f"passed over: {len(tree.unlabelled)} series without labels")
    if tree.elsewhere:
        console.note(f"passed over: {tree.elsewhere} label files of other modalities")
    return found


def _tell_left_out(console: Console, left_out: dict[str, str]) -> None:
    for case, fault in left_out.items():
        console.note(f"left out: {case}: {fault}")
