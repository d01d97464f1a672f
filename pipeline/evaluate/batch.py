"""All cases, in one process or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.errors import SegpipeError, UsageError
from pipeline.evaluate.cases import CaseResult, Job, evaluate_case, unmeasured
from pipeline.manifest import Case, Manifest
from pipeline.nifti import find_nifti, read_header
from pipeline.processes import MOST_WORKERS, over_cases, usable_cores
from pipeline.results import PROBABILITIES, STATE, find_probabilities, find_segmentation

VOXELS_WORTH_A_WORKER = 50_000_000  # below this, starting a process takes longer than the work it would share


def make_jobs(
    manifest: Manifest,
    cases: Sequence[Case],
    data: Path,
    predictions: Path,
    tolerance_mm: float = 1.0,
    rules: bool = False,
) -> list[Job]:
    """A job for every case that has a label; where its prediction lies, or that there is none.

    Raises:
        UsageError: no case has a label, the data folder holds none of them, or there is no prediction at all.
    """
    labelled = [(case, case.label) for case in cases if case.label is not None]
    if not labelled:
        raise UsageError(
            "no labelled case to evaluate",
            found=f"{len(cases)} cases in this split",
            hint="choose another --split",
        )
    if not any((data / label).is_file() for _, label in labelled):
        raise UsageError("none of the labels is there", path=data, hint="name the data folder with --data")
    if not predictions.is_dir():
        raise UsageError("no such folder of predictions", path=predictions, hint="check the path")
    if not find_nifti(predictions) and not (predictions / STATE).is_file():
        raise UsageError(
            "the folder of predictions is empty",
            path=predictions,
            expected="what `segpipe predict` wrote, or <case id>.nii.gz files",
        )
    return [
        Job(
            case.id, case.group, data / label, find_segmentation(predictions, case.id), manifest.foreground,
            tolerance_mm, rules, find_probabilities(predictions, case.id),
        )
        for case, label in labelled
    ]  # fmt: skip


def other_files(predictions: Path, jobs: Sequence[Job]) -> list[str]:
    """Label maps in the folder of predictions that are of none of the jobs: where cases are missing, perhaps they."""
    used = {job.prediction for job in jobs}
    found = [path for path in find_nifti(predictions) if path not in used and path.name != PROBABILITIES]
    return [path.relative_to(predictions).as_posix() for path in found]


def choose_workers(jobs: Sequence[Job]) -> int:
    """As many processes as the work is worth, at most the machine's cores and four."""
    voxels = 0
    for job in jobs:
        try:
            x, y, z = read_header(job.truth).shape[:3]
            voxels += x * y * z
        except (SegpipeError, ValueError):
            continue  # it fails in its turn, with its reason
    return max(1, min(MOST_WORKERS, usable_cores(), len(jobs), voxels // VOXELS_WORTH_A_WORKER))


def evaluate_cases(
    jobs: Sequence[Job], workers: int = 1, on_done: Callable[[], object] = lambda: None
) -> list[CaseResult]:
    """Measure all cases, in the order of the jobs. A worker that dies fails its case, not the batch."""
    return over_cases(evaluate_case, jobs, workers, _died, lambda job: on_done())


def _died(job: Job) -> CaseResult:
    return unmeasured(job, "the process that measured it died, perhaps for lack of memory")
