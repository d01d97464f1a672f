"""The fingerprint of a dataset: what its training cases look like, in numbers.

Only the manifest's ``training`` section is read, never ``test``: nothing that is planned from a
fingerprint can have seen a held-out case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from pydantic import ValidationError

from pipeline.errors import DataError, UsageError
from pipeline.files import read_json, write_json
from pipeline.fingerprint.case import Job, Samples, intensity_of, measure_case
from pipeline.fingerprint.model import (
    SAMPLES_PER_CASE,
    CaseFingerprint,
    Channel,
    Fingerprint,
    Intensity,
    LabelSize,
    Summary,
)
from pipeline.manifest import Manifest
from pipeline.processes import over_cases, workers_to_read

__all__ = [
    "FINGERPRINT",
    "SAMPLES_PER_CASE",
    "CaseFingerprint",
    "Channel",
    "Fingerprint",
    "Intensity",
    "LabelSize",
    "Summary",
    "beside",
    "measure_case",
    "read_fingerprint",
    "save_fingerprint",
    "take_fingerprint",
]

FINGERPRINT = "fingerprint.json"  # in a run, and after the name of a task fragment


def take_fingerprint(
    manifest: Manifest,
    root: str | Path,
    workers: int | None = None,
    on_case: Callable[[str], None] = lambda _id: None,
) -> Fingerprint:
    """Read every training case once, several at a time.

    Args:
        manifest: the dataset.
        root: the folder that its paths start from.
        workers: processes; None takes what the files are worth.
        on_case: called with each case's id when it is done.

    Raises:
        UsageError: there are no training cases, or a file is missing.
        DataError: a file cannot be used; the error names the case.
    """
    if not manifest.training:
        raise UsageError("the manifest has no training cases", hint="add cases with `segpipe import`")
    jobs = [(manifest.labels, manifest.n_channels, str(root), case) for case in manifest.training]
    files = [Path(root) / path for case in manifest.training for path in case.paths]
    measured = over_cases(
        measure_case, jobs, workers or workers_to_read(files), _died, lambda job: on_case(job[-1].id)
    )
    cases, samples = [case for case, _ in measured], [sample for _, sample in measured]
    return Fingerprint(
        name=manifest.name,
        modality=manifest.channels,
        summary=_summarise(cases, samples, list(manifest.foreground.values())),
        cases=cases,
    )


def save_fingerprint(fingerprint: Fingerprint, path: str | Path) -> None:
    """Write ``fingerprint.json``, whole or not at all."""
    write_json(path, fingerprint.model_dump(mode="json"))


def beside(task: str | Path) -> Path:
    """Where the fingerprint of a planned task fragment lies."""
    return Path(task).with_name(f"{Path(task).stem}.{FINGERPRINT}")


def read_fingerprint(path: str | Path) -> Fingerprint | None:
    """A saved fingerprint, None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    if not Path(path).is_file():
        return None
    try:
        return Fingerprint.model_validate(read_json(path, "fingerprint"))
    except ValidationError as error:
        raise DataError(
            "the fingerprint cannot be read", path=path, found=str(error).splitlines()[0]
        ) from error


def _died(job: Job) -> NoReturn:
    raise DataError(
        "the process that read the case died", case_id=job[-1].id, hint="perhaps there is too little memory"
    )


def _summarise(cases: list[CaseFingerprint], samples: list[Samples], labels: list[str]) -> Summary:
    pooled = [np.concatenate(channel).astype(np.float64) for channel in zip(*samples, strict=True)]
    orientations = sorted(case.orientation for case in cases)
    return Summary(
        cases=len(cases),
        median_shape_ras=_median([case.shape_ras for case in cases]),
        median_spacing_ras_mm=_median([case.spacing_ras_mm for case in cases]),
        orientations={code: orientations.count(code) for code in dict.fromkeys(orientations)},
        foreground=[intensity_of(values) if values.size else None for values in pooled],
        median_volume_ml={
            name: float(np.median([case.labels[name].volume_ml for case in cases])) for name in labels
        },
    )


def _median(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in np.median(rows, axis=0))
    return x, y, z
