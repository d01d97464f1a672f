"""What a batch is asked for, and how its cases end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.predict.worklist import WorkItem

if TYPE_CHECKING:
    from pipeline.bundle import Bundle

FORMATS = ("nifti", "seg", "labelmap", "rtstruct", "sr")
RUNTIMES = ("auto", "torch", "openvino")
NO_DICOM_SOURCE = "the source is NIfTI, and DICOM results can only be derived from a DICOM series"


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
class Options:
    """How a batch is run.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda:N``.
        threads: CPU threads of the worker; None takes the cores that it may use.
        timeout_s: seconds for one case; None for no limit.
        retries: how often a case is tried again after the worker died of it.
        overwrite: compute finished cases again, and take over a folder of another bundle.
        max_memory: bytes that the worker may plan with; None for what the machine has.
        max_case_memory: bytes at which the worker is ended; None for no limit.
        probabilities: write the probabilities of all classes beside the labels.
        allow: names that a bundle may use beside the list of admitted ones.
        run_unvetted_code: run a bundle that did not pass the static checks.
        formats: of `FORMATS`; None takes NIfTI, and SEG as well where the source is DICOM.
        runtime: of `RUNTIMES`.
        probabilities_of: write the probabilities of these labels alone, by name or value.
        entropy: write the entropy of the probabilities.
        mirror: axes of the network's grid (x, y, z) along which windows are mirrored as well.
        ensemble: further bundles whose scores are averaged with those of the first.
    """

    device: str = "auto"
    threads: int | None = None
    timeout_s: float | None = None
    retries: int = 1
    overwrite: bool = False
    max_memory: int | None = None
    max_case_memory: int | None = None
    probabilities: bool = False
    allow: tuple[str, ...] = ()
    run_unvetted_code: bool = False
    formats: tuple[str, ...] | None = None
    runtime: str = "auto"
    probabilities_of: tuple[str, ...] = ()
    entropy: bool = False
    mirror: tuple[str, ...] = ()
    ensemble: tuple[Bundle, ...] = ()

    def formats_of(self, item: WorkItem) -> tuple[str, ...]:
        """What is to be written of a case."""
        return self.formats or (("nifti", "seg") if item.is_dicom else ("nifti",))


def parse_formats(given: Sequence[str]) -> tuple[str, ...] | None:
    """Formats from the options, each once; None where none was given.

    Raises:
        UsageError: no such format.
    """
    names = [word.strip().lower() for text in given for word in text.split(",") if word.strip()]
    odd = next((name for name in names if name not in FORMATS), None)
    if odd is not None or (given and not names):
        raise UsageError("no such format", found=odd or ", ".join(given), expected=", ".join(FORMATS))
    return tuple(dict.fromkeys(names)) or None


def parse_words(given: Sequence[str]) -> tuple[str, ...]:
    """What options with commas, or repeated, name, each once."""
    return tuple(dict.fromkeys(word.strip() for text in given for word in text.split(",") if word.strip()))


def parse_runtime(name: str) -> str:
    """The runtime of the option.

    Raises:
        UsageError: no such runtime.
    """
    if name not in RUNTIMES:
        raise UsageError("no such runtime", found=name, expected=", ".join(RUNTIMES))
    return name
