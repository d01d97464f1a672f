"""Make a manifest of a data set in a foreign layout: detect the layout, tell the patients apart, hash what was seen.

How patients follow from case ids, where the data set does not say who a case is of:

    none            nothing is known: every case stands for itself
    pairs           cases 2k-1 and 2k are of one patient: number n in the id gives patient (n + 1) // 2
    regex:PATTERN   the one group of the pattern, searched for in the id, is the patient
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

from segpipe.common.files import read_json, sha256_of
from segpipe.common.processes import Progress
from segpipe.data.importers.folder_pair import folder_pair, is_folder_pair, some_folders
from segpipe.data.importers.label_values import NO_RULES, ValueRules
from segpipe.data.importers.layouts import looks_like_nnunet, read_decathlon, read_folders, read_nnunet
from segpipe.data.importers.pseudonym_key import keyed_pseudonym
from segpipe.data.importers.slice_stacks import looks_like_slices
from segpipe.data.importers.source_dataset import SourceCase, SourceDataset, with_own_ids
from segpipe.data.manifest import Manifest, parse_manifest
from segpipe.errors import DataError, UsageError

Layout = Literal["decathlon", "nnunet", "folders", "slices", "dicom"]


def detect_layout(source: Path) -> Layout:
    """Detect which layout a folder or a ``dataset.json`` has.

    Raises:
        UsageError: no such file or folder, or no layout that is known.
    """
    from segpipe.dicom import has_dicom

    path = source / "dataset.json" if source.is_dir() else source
    if path.is_file():
        return "nnunet" if looks_like_nnunet(path.parent, read_json(path, "dataset.json")) else "decathlon"
    if source.is_dir() and looks_like_slices(source):
        return "slices"
    if source.is_dir() and has_dicom(source):
        return "dicom"
    if is_folder_pair(source):
        return "folders"
    folders = some_folders(source)
    raise UsageError(
        "no data set is found here",
        path=source,
        found=None if folders is None else f"folders with images: {folders}",
        expected="a dataset.json (Decathlon or nnU-Net) or its folder, a folder of images beside one of labels, slices "
        "beside their masks, or DICOM files",
        hint="`segpipe import` takes two folders with --images DIR --labels DIR, slices with --slices PATTERN --masks "
        "PATTERN, and writes a manifest",
    )


def find_dataset(source: Path, layout: str | None = None, rules: ValueRules = NO_RULES) -> SourceDataset:
    """Read a Decathlon or nnU-Net data set, or a folder of images beside one of labels.

    The layout is detected where it is not named.

    Raises:
        UsageError: nothing there, or an unknown layout.
        DataError: what is there cannot be used.
    """
    layout = layout or detect_layout(source)
    readers: dict[str, Callable[[Path, ValueRules], SourceDataset]] = {
        "decathlon": read_decathlon,
        "nnunet": read_nnunet,
        "folders": lambda source, rules: read_folders(*folder_pair(source), rules=rules),
    }
    if layout not in readers:
        raise UsageError(f"cannot read layout {layout!r} here", expected=", ".join(get_args(Layout)))
    return readers[layout](source, rules)


def to_manifest(
    dataset: SourceDataset,
    rule: str = "none",
    *,
    pseudonymise: bool = False,
    key: bytes = b"",
    about: dict[str, Any] | None = None,
    annotated: Sequence[tuple[str, list[str]]] = (),
) -> Manifest:
    """Make a manifest of a data set.

    Args:
        dataset: cases, labels, channels.
        rule: how patient ids follow from case ids (`patient_rule`); ids that the source states are kept.
        pseudonymise: replace case and patient ids by keyed hashes, and leave out the name of the folder.
        key: of the pseudonyms; where there is one, the manifest says that its ids are pseudonyms.
        about: descriptive fields that override its own.
        annotated: patterns of case ids and the labels that were looked for in these cases; the first that fits counts.

    Raises:
        UsageError: no such patient rule, or a pattern that fits no case.
        DataError: an image that is listed twice, a patient rule that does not fit an id, or labels and channels that
            are no manifest.
    """
    patient_of = patient_rule(rule)
    dataset = with_own_ids(dataset)
    looked_for = _looked_for(dataset, annotated)

    def plain(case: SourceCase) -> dict[str, Any]:
        patient = case.patient_id or patient_of(case.name or case.id)
        if pseudonymise and not dataset.has_pseudonyms:
            patient = patient and keyed_pseudonym("patient", patient, key)
        name = keyed_pseudonym("case", case.images[0], key) if pseudonymise else case.id
        image = case.images[0] if len(case.images) == 1 else case.images
        notes = list(case.notes) or None
        plain: dict[str, Any] = {"id": name, "image": image, "label": case.label, "patient_id": patient, "notes": notes}
        plain["registered"] = case.registered or None
        plain["covariates"] = dict(case.covariates) or None
        plain |= {"annotated_labels": looked_for[case.id]} if case.id in looked_for else {}
        return plain if case.label_turned is None else {**plain, "label_turned": case.label_turned}

    document = {
        "name": "dataset" if key or pseudonymise else dataset.root.resolve().name or "dataset",
        **dataset.about,
        **{name: value for name, value in (about or {}).items() if value},
        "modality": dataset.modality,
        "labels": dataset.labels,
        "units": dataset.units or None,
        "ignore_label": dataset.ignore_label,
        "regions": dataset.regions or None,
        "patient_rule": None if rule == "none" else rule.partition(":")[0] if pseudonymise else rule,
        "pseudonymised": True if key or pseudonymise else None,
        "training": [plain(case) for case in dataset.training],
        "test": [plain(case) for case in dataset.test],
    }
    return parse_manifest(document, dataset.root)


def _looked_for(dataset: SourceDataset, annotated: Sequence[tuple[str, list[str]]]) -> dict[str, list[str]]:
    """Return the labels that were looked for, by id of the labelled cases that a pattern fits.

    Raises:
        UsageError: a pattern that fits none, or a name that is no label.
    """
    found: dict[str, list[str]] = {}
    names = [name for value, name in dataset.labels.items() if value != "0"]
    for pattern, labels in annotated:
        unknown = [label for label in labels if label not in names]
        if unknown:
            raise UsageError(f"--annotated names what is no label: {unknown[0]!r}", expected=", ".join(names))
        fits = [case.id for case in [*dataset.training, *dataset.test] if case.label and _is_called(case, pattern)]
        if not fits:
            raise UsageError("--annotated fits no labelled case", found=pattern, expected="a case id, with * for any")
        for id in fits:
            found.setdefault(id, labels)
    return found


def _is_called(case: SourceCase, pattern: str) -> bool:
    """Return whether a pattern fits what a case is called, or what its files are where that cannot be its id."""
    return any(fnmatchcase(name, pattern) for name in (case.id, case.name) if name is not None)


def add_hashes(manifest: Manifest, root: Path, progress: Progress | None = None) -> None:
    """Fill ``sha256`` of every case from the files below ``root``.

    Raises:
        UsageError: a file that may not be read.
    """
    files = [(case, path) for case in manifest.cases() for path in case.paths]
    for case in manifest.cases():
        case.sha256 = {}
    for done, (case, path) in enumerate(files, start=1):
        try:
            case.sha256 = {**(case.sha256 or {}), path: sha256_of(root / path)}
        except OSError as error:
            raise UsageError("cannot read a file", path=root / path, found=error.strerror) from error
        if progress is not None:
            progress(done, len(files))


PatientOf = Callable[[str], str | None]


def patient_rule(rule: str) -> PatientOf:
    """Return the function from case id to patient id that a rule stands for.

    Raises:
        UsageError: no such rule, or a pattern that is not one with exactly one group.
    """
    if rule == "none":
        return lambda _case_id: None
    if rule == "pairs":
        return _pair
    if rule.startswith("regex:"):
        return _matcher(rule.removeprefix("regex:"))
    raise UsageError("no such patient rule", found=rule, expected="pairs, regex:PATTERN or none")


def _pair(case_id: str) -> str:
    numbers = re.findall(r"\d+", case_id)
    if len(numbers) != 1 or int(numbers[0]) < 1:
        raise DataError(
            "the patient rule `pairs` cannot be applied",
            case_id=case_id,
            found=f"numbers {numbers}",
            expected="exactly one number of at least 1 in the id",
            hint="use --patient-rule regex:PATTERN or none",
        )
    return f"P{(int(numbers[0]) + 1) // 2:03d}"


def _matcher(pattern: str) -> PatientOf:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError("the patient rule's pattern cannot be read", found=f"{pattern!r}: {error}") from error
    if compiled.groups != 1:
        raise UsageError(
            "the patient rule's pattern needs exactly one group",
            found=f"{pattern!r} with {compiled.groups}",
            expected=r"e.g. regex:^(sub-\d+)_",
        )

    def patient_of(case_id: str) -> str:
        match = compiled.search(case_id)
        if match is None or not match.group(1):
            raise DataError("the patient rule does not match the id", case_id=case_id, expected=pattern)
        return match.group(1)

    return patient_of
