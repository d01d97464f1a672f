"""What a caller sees of a batch: how each case ended, and how it goes meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from segpipe.bundle import Bundle
from segpipe.prediction.series_filter import NotSelected

if TYPE_CHECKING:
    from segpipe.prediction.client import WorkerDiedError


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        id: of the case.
        status: ``done``, ``skipped`` (finished before), ``failed``, or ``refused`` (a DICOM series that is no volume).
        seconds: that it took.
        reason: of what failed, in a sentence; of what is refused, in a word.
        detail: of what is refused, in a sentence or two.
        result: ``result.json``.
    """

    id: str
    status: str
    seconds: float | None = None
    reason: str | None = None
    detail: str | None = None
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchResult:
    """What became of a batch.

    Attributes:
        bundle: that it was predicted with.
        outcomes: of each case.
        not_selected: series that a rule left out.
        passed_over: number of files that are no image, by class.
    """

    bundle: Bundle
    outcomes: list[Outcome]
    not_selected: list[NotSelected] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Number of cases by status."""
        statuses = [outcome.status for outcome in self.outcomes]
        return {status: statuses.count(status) for status in ("done", "skipped", "failed", "refused")}


class BatchProgress:
    """What is called while a batch runs; override what is to be seen."""

    def reading(self, done: int, total: int) -> None:
        """Take note that the headers of so many files were read."""

    def started(self, total: int) -> None:
        """Take note that so many cases were selected."""

    def finished(self, outcome: Outcome) -> None:
        """Take note that a case has ended; called from a second thread."""

    def crashed(self, case_id: str, death: WorkerDiedError) -> None:
        """Take note that the worker died of a case."""
