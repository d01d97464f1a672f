"""Read every file of a data set and say what is wrong with it, before hours of training do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.check.across import compare
from pipeline.check.case import CaseFacts, examine
from pipeline.check.dicom import CheckedTree, check_dicom
from pipeline.check.findings import KINDS, Finding
from pipeline.errors import DataError, UsageError
from pipeline.manifest import Case, Manifest
from pipeline.processes import over_cases, workers_to_read

__all__ = ["KINDS", "CheckedTree", "Finding", "check_dicom", "check_manifest"]


def check_manifest(
    manifest: Manifest, root: Path, workers: int | None = None, advance: Callable[[], None] = lambda: None
) -> list[Finding]:
    """Everything that is wrong, in the order of the manifest's cases, errors before warnings within a case.

    Args:
        manifest: what should be there.
        root: data folder.
        workers: processes that read; None takes what the files are worth.
        advance: called once for every case that was read.

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
            "none of the manifest's files is in the data folder", path=root, expected=cases[0].paths[0],
            hint="name the folder that the manifest's paths start from with --data",
        )  # fmt: skip
    read = partial(
        examine, root=root, labels=frozenset(map(int, manifest.labels)), n_channels=manifest.n_channels
    )
    facts = over_cases(read, cases, workers or workers_to_read(files), _died, lambda case: advance())
    findings = [finding for case in facts for finding in case.findings] + compare(manifest, facts)
    position = {case.id: index for index, case in enumerate(cases)}
    return sorted(findings, key=lambda finding: (position[finding.case_id], finding.severity))


def _died(case: Case) -> CaseFacts:
    facts = CaseFacts(case.id)
    facts.add("unreadable_file", "the process that read the case died", "files that fit into memory")
    return facts
