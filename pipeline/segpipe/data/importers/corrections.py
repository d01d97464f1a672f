"""Corrections come back: label maps that somebody mended become cases of the next version of a manifest.

What was predicted, or what the manifest had, stays as it is. A corrected label map is written anew beside it, and the
manifest keeps who made it, when, and what it began with. Such a case is trained on and never measured: a label map that
began as a prediction agrees with the model that drew it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from segpipe.common.console import counted, some_of
from segpipe.common.files import sha256_of
from segpipe.common.processes import Progress
from segpipe.data.annotation import Annotation, checked_annotator
from segpipe.data.importers.corrected_maps import files_of_nobody, find_corrected, read_corrected, write_corrected
from segpipe.data.importers.correction_lines import CorrectionLines, read_correction_lines
from segpipe.data.importers.correction_origins import (
    FOLDER,
    ManifestOrigins,
    Origin,
    ResultOrigins,
    image_of,
    placed_images,
    require_grid_of_case,
    require_same_start,
)
from segpipe.data.importers.new_cases import NOT_SAID, NewCases
from segpipe.data.importers.places import require_beside, require_new
from segpipe.data.importers.source_dataset import refusal
from segpipe.data.manifest import Case, Manifest, load_manifest, parse_manifest, save_manifest
from segpipe.data.reading_ledger import carry_readings
from segpipe.errors import DataError, RefusedError, SegpipeError, UsageError


@dataclass
class Corrected:
    """The next version of a manifest.

    Attributes:
        manifest: with the corrected cases.
        path: of its file.
        root: the folder that its paths start from.
        taken: ids of the cases that were corrected.
        unchanged: ids of those whose label map is the one that they began with, and which were left out.
        known: ids of those whose correction the manifest has already.
        left_out: ids of those that cannot be used, with the reason.
    """

    manifest: Manifest
    path: Path
    root: Path
    taken: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def import_corrections(
    source: str | Path,
    corrections: str | Path,
    *,
    into: str | Path | None = None,
    output: str | Path | None = None,
    annotator: str | None = None,
    confirmed: bool = False,
    selection: str = "chosen",
    skip_bad: bool = False,
    modality: Sequence[str] = (),
    name: str | None = None,
    patient_rule: str | None = None,
    key: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
    note: Callable[[str], object] = lambda text: None,
) -> Corrected:
    """Take corrected label maps into the next version of a manifest.

    Args:
        source: the result folder whose label maps were corrected, or a manifest whose own were.
        corrections: folder with a label map for each case that was corrected: NIfTI or another image file called as
            `predict` calls them (``ID.nii.gz``, ``ID_seg.nii.gz``, ``ID/segmentation.nii.gz``), or a DICOM SEG
            (``ID.dcm``, or one in ``ID/``). It may be the result folder itself, where they were changed in place.
        into: manifest that the cases go into; None: ``source`` where that is one, else a new one.
        output: manifest to write; None: the next version beside ``into``, ``manifest_2.json`` of ``manifest.json``.
        annotator: pseudonym of who made them, but for those of which ``corrections.jsonl`` in their folder says it.
        confirmed: take label maps that are as they began, too: somebody looked at each and found it right.
        selection: how the cases came to be annotated, ``chosen`` or drawn at ``random``. What was labelled from
            scratch, of cases of a manifest without a label, may be measured where they were drawn at random.
        skip_bad: leave out what cannot be used, instead of refusing all.
        modality: of a new manifest, once for each channel.
        name: of a new manifest.
        patient_rule: patient from file name, of cases that are new; None: as the manifest's own patients were told.
        key: file of the key of pseudonyms, for new cases of DICOM series, or of a manifest whose ids are pseudonyms.
        overwrite: replace a manifest that is there.
        progress: called with the number of steps done and of all, two for each correction.
        note: called with each of the notes.

    Raises:
        UsageError: no such folder, nothing to take, options that do not go together, or new cases whose patients
            would be named otherwise than the manifest's.
        RefusedError: a test case, a case of a patient of the test set, another image called as a case that is
            measured, or one that has some of its channels.
        DataError: a correction cannot be used.
    """
    source, folder = Path(source), Path(corrections)
    if selection not in ("chosen", "random"):
        raise UsageError("no such way to select cases", found=selection, expected="chosen or random")
    if not folder.is_dir():
        raise UsageError("no such folder of corrections", path=folder, hint="check the path")
    if source.is_file() and into is not None:
        raise UsageError("a manifest that is corrected is itself the one that they go into", hint="leave --into out")
    base = Path(into) if into is not None else source if source.is_file() else None
    before = None if base is None else load_manifest(base)
    path = require_new(Path(output) if output is not None else _next_version(base), overwrite)
    root = (path if base is None else base).resolve().parent
    require_beside(path, root)
    of_manifest = before is not None and base == source
    known = ManifestOrigins(before, root) if before and of_manifest else ResultOrigins(source, before, root)
    said = read_correction_lines(folder)
    found, faults = _found(folder, known.ids)
    origins: list[Origin] = []
    refused: dict[str, RefusedError] = {}
    for done, id in enumerate(found, 1):
        try:
            origins.append(_require_another(known.origin(id), origins))
        except RefusedError as error:
            refused[id] = error
            faults[id] = error.sentence(folder)
        except (SegpipeError, OSError) as error:
            faults[id] = _why(error, folder)
        progress(done, 2 * len(found))
    if refused and not skip_bad:
        first = next(iter(refused.values()))
        same = [id for id, error in refused.items() if error.message == first.message]
        raise _refused(first.message, same, first.expected)
    result = Corrected(before or _new_manifest(origins, modality, name, path), path, root)
    _refuse_test_cases(result, origins, skip_bad)
    names = NewCases(before, root, patient_rule, key)
    names.require_usable(origins)
    taker = _Taker(result, said, annotator, confirmed, selection, names)
    cases = []
    for done, origin in enumerate(origins, 1):
        try:
            case = None if origin.id in result.left_out else taker.take(origin, found[origin.id])
            cases += [] if case is None else [case]
        except (DataError, OSError) as error:
            faults[origin.id] = _why(error, folder)
        progress(len(found) + done, len(found) + len(origins))
    if faults and not skip_bad:
        raise refusal("corrections", faults, len(cases))
    result.left_out |= faults
    cases = _without_test_patients(result, cases, skip_bad)
    if not cases:
        raise _nothing(result, folder, source, len(found))
    if folder.resolve() != source.resolve() and (others := files_of_nobody(folder, set(found.values()))):
        named = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        note(f"passed over: {counted(len(others), 'label map')} of no case of {source.name}: {named}")
    result.manifest = _with(result.manifest, cases, path, note)
    result.taken = [case.id for case in cases]
    if base is not None:
        carry_readings(base, path)
    save_manifest(result.manifest, path)
    return result


def _found(folder: Path, ids: Sequence[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the label map of each case that came back, and why that of others cannot be told."""
    found, faults = {}, {}
    for id in ids:
        try:
            if (file := find_corrected(folder, id)) is not None:
                found[id] = file
        except SegpipeError as error:
            faults[id] = error.sentence(folder)
    return found, faults


def _require_another(origin: Origin, others: Sequence[Origin]) -> Origin:
    """Refuse a second result on the image of one case: only one label map can be its next."""
    same = [each.id for each in others if origin.case is not None and each.case is origin.case]
    if same:
        raise DataError("it is of the same case as another", found=", ".join(same), expected="one correction of a case")
    return origin


def _why(error: SegpipeError | OSError, folder: Path) -> str:
    return error.sentence(folder) if isinstance(error, SegpipeError) else "it cannot be read"


@dataclass(frozen=True)
class _Taker:
    """Takes corrections one by one; what it leaves out for a good reason stands in the result."""

    result: Corrected
    said: CorrectionLines
    annotator: str | None
    confirmed: bool
    selection: str
    names: NewCases

    def take(self, origin: Origin, file: Path) -> Case | None:
        """Return the case as it is from now on; None where there is nothing to take.

        Raises:
            DataError: the correction cannot be used.
            UsageError: nobody said who made it, or a file cannot be written.
        """
        digest, manifest, root = sha256_of(file), self.result.manifest, self.result.root
        if any(each.sha256 == digest for each in (origin.case.history if origin.case else None) or ()):
            self.result.known.append(origin.id)
            return None
        require_same_start(origin, self.said.start(origin.id, digest))
        image, series = image_of(origin)
        require_grid_of_case(origin, image, root)
        _require_same_labels(origin, manifest)
        start = origin.start if origin.start != file else None
        corrected = read_corrected(file, image, series, manifest.foreground, manifest.ignore_label, start)
        same = corrected.changed_voxels == 0 or (origin.begun is not None and digest == origin.begun.sha256)
        if same and not self.confirmed:
            self.result.unchanged.append(origin.id)
            return None
        line = self.said.of(digest)
        annotation = Annotation(
            annotator=checked_annotator(line.annotator or self.annotator),
            date=line.date or datetime.now(UTC).isoformat("T", "seconds"),
            sha256=digest,
            start=origin.begun,
            changed_voxels=corrected.changed_voxels,
            minutes=line.minutes,
        )
        patient = self.names.patient(origin, series) if origin.case is None else origin.case.patient_id
        origin = replace(origin, id=self.names.id(origin))
        label = root / FOLDER / "labels" / f"{origin.id}-{digest[:8]}.nii.gz"
        write_corrected(corrected, image, label)
        images = placed_images(origin, series, root) if origin.case is None else origin.case.images
        below = label.relative_to(root).as_posix()
        return _case(origin, annotation, images, below, patient, self.result, self.selection)


def _next_version(base: Path | None) -> Path:
    """Return the next free name beside a manifest."""
    if base is None:
        raise UsageError(
            "where is the manifest to be written?",
            expected="-o data/manifest.json for a new one, or --into manifest.json for the next version of one",
        )
    stem, _, number = base.stem.rpartition("_")
    stem, version = (stem, int(number) + 1) if stem and number.isdecimal() else (base.stem, 2)
    while (path := base.with_name(f"{stem}_{version}{base.suffix}")).exists():
        version += 1
    return path


def _new_manifest(origins: Sequence[Origin], modality: Sequence[str], name: str | None, path: Path) -> Manifest:
    """Return a manifest without cases that has the labels of the results.

    Raises:
        DataError: the results have different labels, or ones that a manifest cannot have.
    """
    sets = {tuple(sorted(origin.labels.items())) for origin in origins} or {((1, "label_1"),)}
    if len(sets) > 1 or () in sets:
        raise DataError(
            "the results have different labels" if len(sets) > 1 else "the results do not say what labels there are",
            found=" and ".join(str(dict(each)) for each in sorted(sets)),
            hint="--into manifest.json names a manifest whose labels they are",
        )
    labels = {"0": "background", **{str(value): text for value, text in next(iter(sets))}}
    channels = {str(index): word for index, word in enumerate(modality)} or {"0": "unknown"}
    document = {"name": name or path.resolve().parent.name, "modality": channels, "labels": labels}
    return parse_manifest(document, path)


def _require_same_labels(origin: Origin, manifest: Manifest) -> None:
    """Refuse results whose values mean something else in the manifest."""
    other = {value: text for value, text in origin.labels.items() if manifest.foreground.get(value) != text}
    if other:
        raise DataError(
            "the values of the result mean something else in the manifest",
            found=", ".join(f"{value} ({text})" for value, text in sorted(other.items())),
            expected=", ".join(f"{value} ({text})" for value, text in manifest.foreground.items()),
        )


def _refuse_test_cases(result: Corrected, origins: Sequence[Origin], skip_bad: bool) -> None:
    """Refuse corrections of cases of the test set, or leave them out.

    Raises:
        RefusedError: naming them.
    """
    held_out = {case.id for case in result.manifest.test if case.label is not None}
    found = [origin.id for origin in origins if origin.case is not None and origin.case.id in held_out]
    if found and not skip_bad:
        raise _refused(
            "corrections of test cases", found, "cases that may be trained on: a test case never becomes one"
        )
    result.left_out |= dict.fromkeys(found, "a test case")


def _without_test_patients(result: Corrected, cases: Sequence[Case], skip_bad: bool) -> list[Case]:
    """Refuse further cases of patients of the test set, or leave them out.

    Raises:
        RefusedError: naming them.
    """
    held_out = {case.group for case in result.manifest.test if case.label is not None}
    found = [case.id for case in cases if case.patient_id is not None and case.group in held_out]
    if found and not skip_bad:
        raise _refused("corrections of patients of the test set", found, "patients that nothing is measured on")
    result.left_out |= dict.fromkeys(found, "of a patient of the test set")
    return [case for case in cases if case.id not in found]


def _refused(message: str, ids: Sequence[str], expected: str | None) -> RefusedError:
    hint = "take their files out of the folder, or leave them out with --skip-bad"
    return RefusedError(message, found=some_of(ids), expected=expected, hint=hint)


def _nothing(result: Corrected, folder: Path, source: Path, files: int) -> UsageError:
    reasons = {"unchanged": result.unchanged, "known already": result.known, "left out": result.left_out}
    found = [f"{len(ids)} {words}" for words, ids in reasons.items() if ids]
    return UsageError(
        "there is no correction to take",
        path=folder,
        found=f"{counted(files, 'label map')} of cases of {source.name}{''.join(f', {each}' for each in found)}",
        expected="<case id>.nii.gz, <case id>/segmentation.nii.gz or <case id>.dcm, changed",
        hint="--confirmed takes those that somebody found right as they are" if result.unchanged else None,
    )


def _case(
    origin: Origin,
    annotation: Annotation,
    images: list[str],
    label: str,
    patient: str | None,
    result: Corrected,
    selection: str | None,
) -> Case:
    """Return the case as it is from now on."""
    before, known = origin.case, result.manifest.foreground
    is_drawn = origin.begun is not None and origin.begun.of == "prediction"
    selection = selection if origin.case is None or origin.begun is None or is_drawn else origin.case.selection
    id = origin.id if before is None else before.id
    if before is None and any(case.id == id for case in result.manifest.cases()):
        id = f"{id}-{(origin.image_sha256 or (annotation.sha256,))[0][:8]}"  # another image has it
    folds = {case.group: case.fold for case in result.manifest.training}
    looked_for = [known[value] for value in sorted(origin.labels)] if set(origin.labels) < set(known) else None
    changes = {
        "label": label,
        "fold": folds.get(patient or id),
        "history": [*((before.history if before else None) or []), annotation],
        "selection": selection,
        "sha256": {path: sha256_of(result.root / path) for path in [*images, label]},
        "annotated_labels": (looked_for or None) if is_drawn else before and before.annotated_labels,
        "label_turned": None,
    }
    new = {"id": id, "image": images[0] if len(images) == 1 else images, "patient_id": patient}
    return Case.model_validate({**new, **(before.model_dump() if before else {}), **changes})


def _with(manifest: Manifest, cases: Sequence[Case], path: Path, note: Callable[[str], object]) -> Manifest:
    """Return a manifest with corrected cases, each in the place of what it was."""
    new = {case.id: case for case in cases}
    ids = {case.id for case in manifest.training}
    moved = [case.id for case in manifest.test if case.id in new]
    measured = [case.id for case in manifest.training if case.fold is not None and not case.only_trains]
    measured = [id for id in measured if id in new and new[id].only_trains]
    if moved:
        note(f"{counted(len(moved), 'case')} without a label moved from test to training: {some_of(moved)}")
    if measured:
        note(f"{counted(len(measured), 'case')} of folds will only be trained on from now on: {some_of(measured)}")
    if manifest.knows_patients and any(case.patient_id is None for case in cases):
        note(f"{NOT_SAID} (--patient-rule)")
    training = [new.get(case.id, case) for case in manifest.training]
    training += [case for case in cases if case.id not in ids]
    test = [case for case in manifest.test if case.id not in new]
    document = manifest.model_copy(update={"training": training, "test": test}).model_dump(mode="json")
    after = parse_manifest(document, path)
    if after.patients_of_some is not None and not manifest.knows_patients:
        note(after.patients_of_some)
    return after
