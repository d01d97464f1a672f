"""Test set and cross-validation folds that never tear a patient apart.

The draw orders patients by the SHA-256 of seed and patient id, so that it depends neither on the order of the
cases in the file nor on a library's random generator.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from segpipe.common.console import of_patients, some_of
from segpipe.data.manifest import PATIENTS_UNKNOWN, Case, Manifest
from segpipe.errors import DataError, RefusedError, UsageError


def draw_split(
    manifest: Manifest, test: str | int | float | None, folds: int, seed: int = 0, *, redraw: bool = False
) -> Manifest:
    """Return a copy of the manifest with a test set and folds, whole patients each.

    Patients with a case that can only be trained on are not drawn for test; those with no other have no fold.

    Args:
        manifest: labelled cases in ``training`` (and in ``test``, with ``redraw``).
        test: number or fraction of the labelled cases, at least, or their text; None or ``keep`` keeps the test set.
        folds: number of folds, 0 or at least 2.
        seed: another seed, another draw.
        redraw: give up the split that the manifest has.

    Raises:
        RefusedError: the manifest is split already, or a first stage was trained on the cases to test with.
        UsageError: a number of folds that makes no sense, or fewer patients than are needed.
        DataError: a kept test set shares patients with the training cases.
    """
    test = parse_test_size(test) if isinstance(test, str) else test
    if folds < 0 or folds == 1:
        raise UsageError("the number of folds makes no sense", found=folds, expected="0, or 2 and more")
    if test and manifest.first_stage is not None:
        raise RefusedError(
            "the first stage was trained on every case that could be drawn for a test",
            found=f"{len(manifest.training)} cases with its masks",
            expected="folds alone: what is held out was drawn before the first stage was trained",
            hint="--test keep --redraw draws folds anew",
        )
    _refuse_second_draw(manifest, test, redraw)
    copy = manifest.model_copy(deep=True)
    held_out = [case for case in copy.test if test is None or case.label is None]
    pool = [*copy.training, *(case for case in copy.test if test is not None and case.label is not None)]
    for case in copy.cases():
        case.fold = None
    groups = _in_drawn_order(pool, seed)
    free = [cases for cases in groups if not any(case.only_trains for case in cases)]
    drawn = _draw_test(free, _test_cases(test, sum(not case.only_trains for case in pool)))
    remaining = [cases for cases in groups if cases not in drawn]
    measured = [cases for cases in remaining if not all(case.only_trains for case in cases)]
    if len(measured) < folds or not remaining:
        raise UsageError(
            f"there are too few {'patients' if manifest.knows_patients else 'cases'} for this split",
            found=f"{of_patients(len(groups), manifest.knows_patients)}; {len(drawn)} drawn for test"
            + (f", {len(remaining) - len(measured)} only to train on" if len(remaining) > len(measured) else ""),
            expected=f"at least {max(folds, 1)} left for training",
            hint="ask for fewer folds or test cases",
        )
    _assign_folds(measured, folds)
    copy.test = _sorted([*held_out, *(case for cases in drawn for case in cases)])
    copy.training = _sorted(case for cases in remaining for case in cases)
    copy.numTraining, copy.numTest = len(copy.training), len(copy.test)
    copy.split_rule = _in_words(copy, test, folds, seed)
    require_apart(copy)
    return copy


def chosen_folds(manifest: Manifest, folds: str | Sequence[int]) -> tuple[int, ...]:
    """Return the folds of a cross-validation.

    Args:
        manifest: with folds.
        folds: ``all`` that it has, or some of them: numbers, or their text such as ``0,2``.

    Raises:
        UsageError: the manifest has fewer than two folds, or not these; or they cannot be read.
    """
    there = manifest.folds()
    if len(there) < 2:
        raise UsageError(
            "cross-validation needs a manifest with at least two folds",
            found=f"folds {there}" if there else "no folds",
            hint="make them with `segpipe split`",
        )
    if folds == "all":
        return tuple(there)
    try:
        chosen = tuple(sorted({int(word) for word in (folds.split(",") if isinstance(folds, str) else folds)}))
    except ValueError as error:
        raise UsageError("the folds cannot be read", found=folds, expected="all, or numbers like 0,2") from error
    unknown = [fold for fold in chosen if fold not in there]
    if unknown or not chosen:
        raise UsageError("the manifest has no such fold", found=f"folds {unknown}", expected=f"of {there}, or all")
    return chosen


def patients_note(manifest: Manifest) -> str | None:
    """Return why figures of its folds may be too good: a patient that is measured may be one that was trained on."""
    if not manifest.knows_patients:
        return PATIENTS_UNKNOWN
    folds: dict[str, set[int | None]] = defaultdict(set)
    for case in manifest.training:
        folds[case.group].add(case.fold)
    torn = sum(len(where) > 1 for where in folds.values())
    if not torn:
        return manifest.patients_of_some
    words = f"{torn} of {len(folds)} patients have cases in several folds: figures may be too good"
    return "; ".join(filter(None, [manifest.patients_of_some, words]))


def parse_test_size(text: str) -> int | float | None:
    """Read ``0.25``: a fraction of the labelled cases; ``45``: a number of them; ``keep``: None.

    Raises:
        UsageError: neither.
    """
    if text == "keep":
        return None
    try:
        size: int | float = int(text) if text.isdecimal() else float(text)
    except ValueError:
        size = -1
    if (isinstance(size, float) and not 0 < size < 1) or size < 0:
        raise UsageError(
            "the size of the test set cannot be read",
            found=text,
            expected="a fraction like 0.25, a number of cases like 45, or keep",
        )
    return size


def find_leaks(manifest: Manifest, *, labelled_only: bool = False) -> list[str]:
    """Return patients (or, where none are known, cases) that stand in two splits: training and test, or two folds.

    Args:
        manifest: split or not; cases without a fold count as one part.
        labelled_only: pass over test cases without a label, which nothing can be measured on.
    """
    parts: dict[str, set[str]] = defaultdict(set)
    for case in manifest.training:
        parts[case.group].add(f"fold {case.fold}")
    for case in manifest.test:
        if case.label is not None or not labelled_only:
            parts[case.group].add("test")
    return sorted(group for group, where in parts.items() if len(where) > 1)


def require_apart(manifest: Manifest) -> None:
    """Refuse a test set that can be measured on, of whose patients some are trained on.

    Raises:
        DataError: naming their test cases; a patient's id may be a name.
    """
    trained = {case.group for case in manifest.training}
    both = [case.id for case in manifest.test if case.label is not None and case.group in trained]
    if both:
        raise DataError(
            "patients of the test set are in training too",
            found=some_of(both),
            expected="all cases of a patient in one part",
            hint="draw a new test set: `segpipe split MANIFEST --test 0.25 --redraw`; a folder is imported first",
        )


def _refuse_second_draw(manifest: Manifest, test: int | float | None, redraw: bool) -> None:
    labelled = sum(case.label is not None for case in manifest.test)
    if redraw or not (manifest.folds() or (labelled and test is not None)):
        return
    raise RefusedError(
        "the manifest is split already",
        found=f"{labelled} labelled test cases, {len(manifest.folds())} folds",
        hint="--redraw gives this split up (results on the old test set no longer count); "
        "--test keep leaves the test set and draws folds",
    )


def _in_drawn_order(cases: Iterable[Case], seed: int) -> list[list[Case]]:
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.group].append(case)
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).hexdigest())
    return [groups[group] for group in order]


def _test_cases(test: int | float | None, n_cases: int) -> int:
    return math.ceil(test * n_cases) if isinstance(test, float) else test or 0


def _draw_test(groups: Sequence[list[Case]], size: int) -> list[list[Case]]:
    """Return the first groups that make up this number of cases, at least."""
    drawn: list[list[Case]] = []
    while sum(map(len, drawn)) < size and len(drawn) < len(groups):
        drawn.append(groups[len(drawn)])
    return drawn


def _assign_folds(groups: Sequence[list[Case]], folds: int) -> None:
    """Put the largest patients first, each into the fold that is smallest then: sizes differ by a patient at most."""
    sizes = [0] * folds
    for cases in sorted(groups, key=len, reverse=True) if folds else []:
        fold = sizes.index(min(sizes))
        sizes[fold] += len(cases)
        for case in cases:
            case.fold = fold


def _in_words(manifest: Manifest, test: int | float | None, folds: int, seed: int) -> str:
    cases = [case for case in manifest.cases() if case.label is not None]
    alone = sum(not case.patient_id for case in cases)
    whole = "each case its own patient" if alone == len(cases) else "whole patients"
    whole += f" (of {alone} of {len(cases)} cases it is not known, each its own)" if 0 < alone < len(cases) else ""
    size = "test set kept" if test is None else f"test set of {test} or more of the labelled cases"
    order = "patients in the order of sha256(seed:patient)"
    return f"segpipe split: {size}, {folds} folds, {whole}, seed {seed} ({order})"


def _sorted(cases: Iterable[Case]) -> list[Case]:
    return sorted(cases, key=lambda case: case.id)
