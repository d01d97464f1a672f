"""Check a data set: each case by itself, then what shows when cases are compared: copies, torn patients, outliers.

Of a folder of DICOM files the scan judges every series, and the voxels of those that are volumes are read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.processes import Progress, over_cases, workers_to_read
from segpipe.data.check.case_check import CaseFacts, Finding, examine, in_words, judge_image, pass_over
from segpipe.data.label_presence import labels_not_trained, not_trained_words
from segpipe.data.manifest import Case, Manifest, open_manifest
from segpipe.data.splits import find_leaks
from segpipe.dicom import Series, load_series, scan
from segpipe.errors import DataError, SegpipeError, UsageError

SPACING_FACTOR = 3.0
AXES = ("left-right", "front-back", "head-foot")
AIR_HU = -500  # every CT of a person has darker voxels around or within
LOWEST_HU = -1100  # below, values are padding: air is -1000, and 12 bits end at -1024
PADDING_SHARE = 0.001


@dataclass(frozen=True)
class CheckReport:
    """What is wrong with a data set.

    Attributes:
        name: of the data set; ``dicom`` for a folder of DICOM files.
        cases: number of cases, or of series.
        findings: in the order of the cases, errors before warnings within a case.
        passed_over: of a DICOM folder, how many files of each class are no images.
        to_look_at: cases whose image and label map a person should see together.
        labels: name to the number of labelled cases in which it was looked for, and in which it is; of DICOM None.
    """

    name: str
    cases: int
    findings: list[Finding]
    passed_over: dict[str, int] | None = None
    to_look_at: tuple[str, ...] = ()
    labels: dict[str, dict[str, int]] | None = None

    @property
    def errors(self) -> int:
        """Number of findings that are errors; the rest are warnings."""
        return sum(finding.severity == "error" for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """Return what ``segpipe check --json`` prints, as plain values."""
        return {
            "name": self.name,
            "cases": self.cases,
            "errors": self.errors,
            "warnings": len(self.findings) - self.errors,
            "kinds": dict(Counter(finding.kind for finding in self.findings)),
            "findings": [finding.as_dict() for finding in self.findings],
            **({} if self.passed_over is None else {"passed_over": self.passed_over}),
            **({} if self.labels is None else {"labels": self.labels}),
        }


def check_dataset(
    source: str | Path | Manifest,
    *,
    data: str | Path | None = None,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> CheckReport:
    """Read every file of a data set and report what is wrong with it, as ``segpipe check`` does.

    Args:
        source: a manifest, the folder that holds it, or a folder of DICOM files.
        data: folder that the manifest's paths start from, where it is not the manifest's own.
        workers: processes that read; None takes what the files are worth.
        progress: called with what is done and what there is.

    Raises:
        UsageError: nothing there, or ``data`` with a DICOM folder.
        DataError: the manifest cannot be used or has no cases, or there is no series among DICOM files.
    """
    if not isinstance(source, Manifest):
        source = Path(source)
        if source.is_dir() and not (source / "manifest.json").is_file():
            if data is not None:
                raise UsageError("--data belongs to a manifest", hint="name the folder of DICOM files alone")
            return check_dicom(source, workers, progress)
        source = source / "manifest.json" if source.is_dir() else source
    manifest, root = open_manifest(source, data)
    facts = read_cases(manifest, root, workers, progress)
    findings = findings_of(manifest, facts)
    turned = tuple(finding.case_id for finding in findings if finding.kind == "label_turned")
    counts = count_labels(manifest, facts)
    return CheckReport(manifest.name, len(manifest.cases()), findings, to_look_at=turned, labels=counts)


def check_manifest(
    manifest: Manifest, root: Path, workers: int | None = None, progress: Progress = lambda done, total: None
) -> list[Finding]:
    """Return everything that is wrong; arguments and errors as of `read_cases`."""
    return findings_of(manifest, read_cases(manifest, root, workers, progress))


def findings_of(manifest: Manifest, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Return everything that is wrong, in the order of the manifest's cases, errors before warnings within a case."""
    findings = [finding for case in facts for finding in case.findings] + compare(manifest, facts)
    position = {case.id: index for index, case in enumerate(manifest.cases())}
    return sorted(findings, key=lambda finding: (position[finding.case_id], finding.severity))


def count_labels(manifest: Manifest, facts: Sequence[CaseFacts]) -> dict[str, dict[str, int]]:
    """Return, for each label, in how many cases with a readable label map it was looked for, and in how many it is."""
    found = {case.case_id: case.labels for case in facts}
    counts = {name: {"looked_for": 0, "present": 0} for name in manifest.foreground.values()}
    for case in manifest.cases():
        values, annotated = found[case.id], manifest.annotated(case)
        for value, name in manifest.foreground.items() if values is not None else ():
            counts[name]["looked_for"] += annotated is None or value in annotated
            counts[name]["present"] += value in (values or ())
    return counts


def read_cases(
    manifest: Manifest, root: Path, workers: int | None = None, progress: Progress = lambda done, total: None
) -> list[CaseFacts]:
    """Read every case, and return what was seen of each.

    Args:
        manifest: what should be there.
        root: data folder.
        workers: processes that read; None takes what the files are worth.
        progress: called with the number of cases read and of all.

    Raises:
        DataError: the manifest has no cases.
        UsageError: not one of the files is below ``root``.
    """
    cases = manifest.cases()
    if not cases:
        raise DataError("the manifest has no cases", expected="at least one")
    files = [root / path for case in cases for path in case.paths]
    if not any(file.is_file() for file in files):
        raise UsageError(
            "none of the manifest's files is in the data folder",
            path=root,
            expected=cases[0].paths[0],
            hint="name the folder that the manifest's paths start from with --data",
        )
    read = partial(examine, root=root, manifest=manifest.model_copy(update={"training": [], "test": []}))
    return over_cases(read, cases, workers or workers_to_read(files), _died, progress=progress)


def _died(case: Case) -> CaseFacts:
    facts = CaseFacts(case.id)
    facts.add("unreadable_file", "the process that read the case died", "files that fit into memory")
    return facts


def compare(manifest: Manifest, facts: Sequence[CaseFacts]) -> list[Finding]:
    """Return all findings that concern more than one case."""
    single = [*_spacings(facts), *_orientations(facts), *_turned(manifest), *_not_trained(manifest, facts)]
    return [*find_copies(facts), *_leaks(manifest), *single]


def _turned(manifest: Manifest) -> Iterator[Finding]:
    """Find label maps that were turned to lie on their image where others were not, or from left to right."""
    labelled = [case for case in manifest.cases() if case.label]
    turned = [case for case in labelled if case.label_turned]
    for case in turned:
        before, _, after = str(case.label_turned).partition(" to ")
        swapped = ("L" in before) != ("L" in after)
        if swapped or len(turned) < len(labelled):
            found = (
                f"the label map was stored as {before}, its image as {after}"
                + ", with left and right the other way round" * swapped
            )
            expected = (
                f"stored alike, as in {len(labelled) - len(turned)} of {len(labelled)} cases: look at the picture"
            )
            yield Finding(case.id, "label_turned", found, expected, "label")


def _not_trained(manifest: Manifest, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    present = {case.case_id: case.labels for case in facts}
    values = {name: value for value, name in manifest.foreground.items()}
    for fold, name in labels_not_trained(manifest, present):
        has_it = [case.id for case in manifest.training if values[name] in (present[case.id] or ())]
        words = not_trained_words(manifest, fold, name)
        yield Finding([*has_it, manifest.training[0].id][0], "label_not_trained", words, f"a case with {name}", "label")


def find_copies(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Find the same voxels under several ids."""
    owners: dict[tuple[str, str], list[str]] = defaultdict(list)
    for case in facts:
        for part, digest in case.digests.items():
            owners[part.split(" ")[0], digest].append(case.case_id)
    for (kind, _digest), owned in owners.items():
        ids = list(dict.fromkeys(owned))
        if len(ids) > 1:
            found = f"the same voxels as {', '.join(ids[1:6])}" + (", ..." if len(ids) > 6 else "")
            yield Finding(ids[0], f"identical_{kind}", found, "voxels of its own", kind)


def _leaks(manifest: Manifest) -> Iterator[Finding]:
    serious = set(find_leaks(manifest, labelled_only=True))
    for patient in find_leaks(manifest):
        where = [f"{case.id} ({_part(case.fold)})" for case in manifest.training if case.group == patient]
        where += [f"{case.id} (test)" for case in manifest.test if case.group == patient]
        kind = "patient_in_two_splits" if patient in serious else "patient_with_unlabelled_test"
        found = f"one patient: {', '.join(where)}"
        yield Finding(where[0].split(" ")[0], kind, found, "all cases of a patient in one part")


def _part(fold: int | None) -> str:
    return "training" if fold is None else f"fold {fold}"


def _spacings(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    known = [(case.case_id, case.spacing_mm) for case in facts if case.spacing_mm is not None]
    if not known:
        return
    middle = [median(spacing[axis] for _, spacing in known) for axis in range(3)]
    for case_id, spacing in known:
        for axis, name in enumerate(AXES):
            ratio = spacing[axis] / middle[axis]
            if ratio > SPACING_FACTOR or ratio < 1 / SPACING_FACTOR:
                expected = f"near the median of {middle[axis]:.3g} mm"
                yield Finding(case_id, "outlying_spacing", f"{spacing[axis]:.3g} mm {name}", expected, "image")


def _orientations(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    codes = Counter(case.orientation for case in facts if case.orientation)
    if len(codes) < 2:
        return
    usual, count = codes.most_common(1)[0]
    for case in facts:
        if case.orientation and case.orientation != usual:
            expected = f"{usual}, as in {count} of {codes.total()} cases"
            yield Finding(case.case_id, "outlying_orientation", case.orientation, expected, "image")


def check_dicom(root: Path, workers: int | None = None, progress: Progress = lambda done, total: None) -> CheckReport:
    """Judge every series below a folder and read the voxels of those that are volumes.

    Args:
        root: the folder.
        workers: processes that read; None takes what the files are worth.
        progress: called with what is done and what there is: files whose header is read, then series.

    Raises:
        UsageError: no such folder, or no DICOM in it.
        DataError: DICOM files, and no series among them.
    """
    found = scan(root, workers, progress, name=lambda path: "a file")
    if not found.series:
        dicom = [passed for passed in found.passed_over if passed.file_class != "not_dicom"]
        raise (DataError if dicom else UsageError)(
            "there is neither a manifest nor a DICOM series here",
            path=root,
            found=found.others,
            expected="a manifest, or a folder of DICOM files",
            hint="make a manifest with `segpipe import`",
        )
    workers = workers or workers_to_read(path for series in found.series for path in series.files)
    facts = over_cases(examine_series, found.series, workers, _series_died, progress=progress)
    findings = [finding for case in facts for finding in case.findings] + list(find_copies(facts))
    position = {case.case_id: index for index, case in enumerate(facts)}
    findings.sort(key=lambda finding: (position[finding.case_id], finding.severity))
    return CheckReport("dicom", len(facts), findings, dict(Counter(passed.file_class for passed in found.passed_over)))


def examine_series(series: Series) -> CaseFacts:
    """Return all that can be said about one series. Never raises for what its files hold."""
    facts = CaseFacts(series.case_id)
    if series.state == "refused":
        kind = "single_slice" if series.reason == "single_slice" else "refused_series"  # a scout is no fault
        facts.add(kind, f"{series.reason}: {series.detail}", "slices that make a volume", "image")
        return facts
    for note in series.notes:
        facts.add("series_note", note, None, "image")
    try:
        values = load_series(series).array
    except SegpipeError as error:
        facts.add("unreadable_file", in_words(error), error.expected, "image")
        return facts
    except Exception as error:  # noqa: BLE001 - e.g. too little memory; whatever one series does, the others are read
        facts.add("unreadable_file", type(error).__name__, "a complete series", "image")
        return facts
    voxels = pass_over(values, collect=False)
    judge_image(facts, voxels, "image")
    if series.modality == "CT" and voxels.lowest < voxels.highest:
        _judge_hounsfield(facts, values, voxels.lowest)
    return facts


def _judge_hounsfield(facts: CaseFacts, values: NDArray[np.generic], lowest: float) -> None:
    if lowest > AIR_HU:
        expected = f"HU, with air below {AIR_HU}"
        facts.add("no_air", f"no value below {lowest:g}", expected, "image")
    elif lowest < LOWEST_HU:
        share = np.count_nonzero(values == lowest) / values.size
        if share >= PADDING_SHARE:
            found = f"{100 * share:.2g} % of the voxels are {lowest:g}"
            facts.add("undeclared_padding", found, "PixelPaddingValue in the header where voxels are padding", "image")


def _series_died(series: Series) -> CaseFacts:
    facts = CaseFacts(series.case_id)
    facts.add("unreadable_file", "the process that read the series died", "files that fit into memory")
    return facts
