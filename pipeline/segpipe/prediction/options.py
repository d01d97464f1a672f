"""Amounts of memory as a user writes them.

What a batch is asked for, and how its cases end.

Several bundles as one model, and mirrored windows: what has to agree, and what results say of it.

What lies beside a label map where it was asked for: probabilities of all classes or of some, and entropy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.common.result_folder import ENTROPY, PROBABILITIES, probability_name
from segpipe.errors import RefusedError, UsageError
from segpipe.inference import ModelOptions
from segpipe.prediction.cases import WorkItem

if TYPE_CHECKING:
    from segpipe.bundle import Bundle


FORMATS = ("nifti", "seg", "labelmap", "rtstruct", "sr")
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
        model: how the model is run.
        timeout_s: seconds for one case; None for no limit.
        retries: how often a case is tried again after the worker died of it.
        overwrite: compute finished cases again, and take over a folder of another bundle.
        max_case_memory: bytes at which the worker is ended; None for no limit.
        probabilities: write the probabilities of all classes beside the labels.
        allow: names that a bundle may use beside the list of admitted ones.
        run_unvetted_code: run a bundle that did not pass the static checks.
        formats: of `FORMATS`; None takes NIfTI, and SEG as well where the source is DICOM.
        probabilities_of: write the probabilities of these labels alone, by name or value.
        entropy: write the entropy of the probabilities.
        ensemble: further bundles whose scores are averaged with those of the first.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    timeout_s: float | None = None
    retries: int = 1
    overwrite: bool = False
    max_case_memory: int | None = None
    probabilities: bool = False
    allow: tuple[str, ...] = ()
    run_unvetted_code: bool = False
    formats: tuple[str, ...] | None = None
    probabilities_of: tuple[str, ...] = ()
    entropy: bool = False
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


def require_agreement(bundle: Bundle, others: Sequence[Bundle]) -> None:
    """Refuse an ensemble whose scores cannot be averaged voxel by voxel and class by class.

    Raises:
        RefusedError: a bundle is not of the closed form, stands twice, or differs in what has to agree.
    """
    for number, one in enumerate([bundle, *others] if others else ()):
        if one.unsupported:
            raise RefusedError(
                "a bundle outside the closed form cannot be part of an ensemble",
                path=one.root,
                found="; ".join(one.unsupported),
                hint="predict with each bundle alone",
            )
        if one.sha256 in [before.sha256 for before in [bundle, *others][:number]]:
            raise RefusedError("the same bundle stands twice in the ensemble", path=one.root)
        for what, found, expected in zip(_AGREE, _agreeing(one), _agreeing(bundle), strict=True):
            if found != expected:
                raise RefusedError(
                    f"the bundles of an ensemble differ in their {what}",
                    path=one.root,
                    found=found,
                    expected=expected,
                    hint="only folds or seeds of the same task can be averaged",
                )


_AGREE = ("labels", "channels", "preprocessing", "activation", "window", "post-processing")


def _agreeing(bundle: Bundle) -> tuple[Any, ...]:
    steps = bundle.preprocessing.to_config() if bundle.preprocessing else None
    return bundle.labels, bundle.channels, steps, bundle.activation, bundle.roi_size, bundle.cleanup


def about_model(options: Options) -> dict[str, Any]:
    """What ``result.json`` says of the model beside its first bundle."""
    return {"ensemble": [each.facts for each in options.ensemble], "mirror": list(options.model.mirror)}


def extra_output_files(bundle: Bundle, options: Options) -> dict[str, Any]:
    """File names as ``result.json`` has them; those of single labels by the label's name.

    Raises:
        UsageError: a label that the bundle does not have, or both kinds of probabilities.
    """
    if options.probabilities and options.probabilities_of:
        raise UsageError(
            "all probabilities are asked for, and some",
            found="--probabilities and --probabilities-of",
            expected="one of the two",
        )
    files: dict[str, Any] = {}
    if options.probabilities:
        files["probabilities"] = PROBABILITIES
    if options.probabilities_of:
        values = [_value_of(word, bundle) for word in options.probabilities_of]
        files["probability"] = {bundle.labels[value]: probability_name(value) for value in values}
    if options.entropy:
        files["entropy"] = ENTROPY
    return files


def extra_output_names(files: dict[str, Any]) -> Iterator[str]:
    """All file names of `extra_output_files`."""
    for entry in files.values():
        yield from entry.values() if isinstance(entry, dict) else [entry]


def extra_output_request(bundle: Bundle, options: Options, into: Path) -> dict[str, Any]:
    """The same as the worker is asked for it, in a folder."""
    files = extra_output_files(bundle, options)
    whole = ("probabilities", "entropy")
    request: dict[str, Any] = {name: str(into / files[name]) for name in whole if name in files}
    values = {name: value for value, name in bundle.labels.items()}
    first = 1 if bundle.activation == "sigmoid" else 0  # the label that is the first channel
    single = [[values[name] - first, str(into / file)] for name, file in files.get("probability", {}).items()]
    return {**request, "single": single} if single else request


def _value_of(word: str, bundle: Bundle) -> int:
    """The label that a name or a value means."""
    known = {value: name for value, name in bundle.labels.items() if value or bundle.activation != "sigmoid"}
    found = [value for value, name in known.items() if word in (name, str(value))]
    if len(found) != 1:
        raise UsageError(
            "the bundle has no such label",
            found=word,
            expected=", ".join(f"{name} ({value})" for value, name in known.items()),
        )
    return found[0]
