"""What only shows when cases are compared: copies, torn patients, outliers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from pipeline.check.case import CaseFacts
from pipeline.check.findings import Finding
from pipeline.manifest import Manifest
from pipeline.splits import find_leaks

SPACING_FACTOR = 3.0
AXES = ("left-right", "front-back", "head-foot")


def compare(manifest: Manifest, facts: Sequence[CaseFacts]) -> list[Finding]:
    """All findings that concern more than one case."""
    return [*find_copies(facts), *_leaks(manifest), *_spacings(facts), *_orientations(facts)]


def find_copies(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """The same voxels under several ids."""
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
                yield Finding(
                    case_id, "outlying_spacing", f"{spacing[axis]:.3g} mm {name}", expected, "image"
                )


def _orientations(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    codes = Counter(case.orientation for case in facts if case.orientation)
    if len(codes) < 2:
        return
    usual, count = codes.most_common(1)[0]
    for case in facts:
        if case.orientation and case.orientation != usual:
            expected = f"{usual}, as in {count} of {codes.total()} cases"
            yield Finding(case.case_id, "outlying_orientation", case.orientation, expected, "image")
