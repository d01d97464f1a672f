"""A tree of DICOM files checked as it is: the scan's judgement of every series, then its voxels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.check.across import find_copies
from pipeline.check.case import CaseFacts, in_words, judge_image, pass_over
from pipeline.check.findings import Finding
from pipeline.dicom import Series, load_series, scan
from pipeline.errors import DataError, SegpipeError, UsageError
from pipeline.processes import over_cases, workers_to_read

AIR_HU = -500  # every CT of a person has darker voxels around or within
LOWEST_HU = -1100  # below, values are padding: air is -1000, and 12 bits end at -1024
PADDING_SHARE = 0.001


@dataclass(frozen=True)
class CheckedTree:
    """What is wrong in a tree, over how many series, and how many files of each class are no images."""

    series: int
    findings: list[Finding]
    passed_over: dict[str, int]


def check_dicom(
    root: Path,
    workers: int | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> CheckedTree:
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
            "there is neither a manifest nor a DICOM series here", path=root,
            found=f"{len(found.passed_over)} other files", expected="a manifest, or a folder of DICOM files",
            hint="make a manifest with `segpipe import`",
        )  # fmt: skip
    done = 0

    def count(series: Series) -> None:
        nonlocal done
        done += 1
        progress(done, len(found.series))

    workers = workers or workers_to_read(path for series in found.series for path in series.files)
    facts = over_cases(examine_series, found.series, workers, _died, count)
    findings = [finding for case in facts for finding in case.findings] + list(find_copies(facts))
    position = {case.case_id: index for index, case in enumerate(facts)}
    findings.sort(key=lambda finding: (position[finding.case_id], finding.severity))
    return CheckedTree(len(facts), findings, dict(Counter(passed.file_class for passed in found.passed_over)))


def examine_series(series: Series) -> CaseFacts:
    """Everything that can be said about one series. Never raises for what its files hold."""
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
            facts.add(
                "undeclared_padding",
                found,
                "PixelPaddingValue in the header where voxels are padding",
                "image",
            )


def _died(series: Series) -> CaseFacts:
    facts = CaseFacts(series.case_id)
    facts.add("unreadable_file", "the process that read the series died", "files that fit into memory")
    return facts
