"""Read every file of a data set and say what is wrong with it, before hours of training do."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from pipeline.check.across import compare
from pipeline.check.case import CaseFacts, examine
from pipeline.check.findings import KINDS, Finding
from pipeline.errors import DataError, UsageError
from pipeline.manifest import Case, Manifest

__all__ = ["KINDS", "Finding", "check_manifest"]


def check_manifest(
    manifest: Manifest, root: Path, workers: int = 1, advance: Callable[[], None] = lambda: None
) -> list[Finding]:
    """Everything that is wrong, in the order of the manifest's cases, errors before warnings within a case.

    Args:
        manifest: what should be there.
        root: data folder.
        workers: processes that read; 1 reads in this one.
        advance: called once for every case that was read.

    Raises:
        DataError: the manifest has no cases.
        UsageError: not one of the files is below ``root``.
    """
    cases = manifest.cases()
    if not cases:
        raise DataError("the manifest has no cases", expected="at least one")
    if not any((root / path).is_file() for case in cases for path in case.paths):
        raise UsageError(
            "none of the manifest's files is in the data folder", path=root, expected=cases[0].paths[0],
            hint="name the folder that the manifest's paths start from with --data",
        )  # fmt: skip
    read = partial(
        examine, root=root, labels=frozenset(map(int, manifest.labels)), n_channels=manifest.n_channels
    )
    facts = _read_all(cases, read, min(workers, len(cases)), advance)
    findings = [finding for case in facts for finding in case.findings] + compare(manifest, facts)
    position = {case.id: index for index, case in enumerate(cases)}
    return sorted(findings, key=lambda finding: (position[finding.case_id], finding.severity))


def _read_all(
    cases: Sequence[Case], read: Callable[[Case], CaseFacts], workers: int, advance: Callable[[], None]
) -> list[CaseFacts]:
    facts: dict[str, CaseFacts] = {}
    if workers > 1:
        for case_id, result in _in_pool(cases, read, workers, advance):
            facts[case_id] = result
        for case in cases:  # a dying process takes the whole pool along: read the rest each alone
            if case.id not in facts:
                facts[case.id] = dict(_in_pool([case], read, 1, advance)).get(case.id) or _died(case)
        return [facts[case.id] for case in cases]
    for case in cases:
        facts[case.id] = read(case)
        advance()
    return list(facts.values())


def _in_pool(
    cases: Sequence[Case], read: Callable[[Case], CaseFacts], workers: int, advance: Callable[[], None]
) -> list[tuple[str, CaseFacts]]:
    done = []
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = {pool.submit(read, case): case.id for case in cases}
        for future in as_completed(futures):
            try:
                done.append((futures[future], future.result()))
                advance()
            except BrokenProcessPool:
                continue
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return done


def _died(case: Case) -> CaseFacts:
    facts = CaseFacts(case.id)
    facts.add("unreadable_file", "the process that read the case died", "files that fit into memory")
    return facts
