"""What a batch is asked for: each option as a user gives it, and judged.

A new option is a key of `PredictKeywords` and a field of `Options`, or of `Outputs`, which reaches the worker as it is.
An option of the model is added in `segpipe.inference.recipe`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.bundle import Bundle
from segpipe.common.result_folder import ENTROPY, FORMATS, PROBABILITIES, SEGMENTATION, probability_name
from segpipe.common.shards import Shard
from segpipe.errors import RefusedError, UsageError
from segpipe.inference import ModelKeywords, ModelOptions, parse_bytes, split_words
from segpipe.quality import Rules

if TYPE_CHECKING:
    from segpipe.dicom import ChannelRule
    from segpipe.inference import Recipe

ALL = "all"


class PredictKeywords(ModelKeywords, total=False):
    """Options of a batch as a user gives them; those of the model as of `segpipe.inference.ModelKeywords`.

    Attributes:
        format: of ``nifti``, ``seg``, ``labelmap``, ``rtstruct``, ``sr``; None takes ``nifti``, and ``seg`` as well
            where the source is DICOM.
        probabilities: write the probabilities of ``all`` classes, or of these labels alone, by name or value.
        entropy: write the entropy of the probabilities, in nats.
        overlay: write ``overlay.png``, the slice with most labelled voxels.
        only: ``dicom`` or ``nifti``: segment nothing else of a folder that holds both.
        modality: only DICOM series of it; None takes the bundle's.
        series_description: only series whose description matches this pattern.
        min_slices, max_slices: only series of so many slices.
        series: only these, by SeriesInstanceUID or case id.
        derived: take series as well that were computed from others: of ``localizer``, ``subtraction``, ``projection``,
            ``reformatted``, ``map``, ``spectral``, ``computed``, or ``all``. One that ``series`` names is taken anyway.
        secondary_capture: take these Secondary Captures, by SeriesInstanceUID or case id, whatever the other rules say;
            their values may have been windowed.
        channel: of a bundle with several channels, which DICOM series is which: its rules as of
            `segpipe.dicom.parse_channels`, in order; None goes by the names of the bundle's channels.
        registered: files of one case are registered: where their grids differ, they are resampled to the first one's.
        repair: ``tilt``, ``spacing`` or both: resample series to a regular grid that are refused for a tilt, or for
            slices at varying distances (never across a gap).
        pseudonymise: name cases by the hash of their path, not by their file.
        split, fold, data: of a manifest: which cases, and the folder of its files.
        timeout: seconds for one case.
        retries: tries after a case crashed the worker.
        overwrite: compute finished cases again, and take over a folder of another bundle.
        viewer: put the volumes of small cases into ``report.html``, to scroll through; whoever has it has the scans.
        max_case_memory: memory at which a case is ended and fails, in bytes or as ``8G``.
        rules: a YAML or JSON file of the rules by which a case is ``ok``, ``look`` or ``hold``
            (`segpipe.quality.Rules`); what it does not name is as the bundle has it. None takes the bundle's.
        ensemble: further bundles whose scores are averaged with those of the first.
        shard: compute one share of the cases, ``I/N`` with I from 0, such as ``0/3``; other processes or machines
            compute the others, into the same folder.
        workers: processes that share the cases on this machine, and its cores, memory and GPUs.
        allow, run_unvetted_code, require_signature, allow_unisolated: as ``allow``, ``run_unvetted_code``, ``key`` and
            ``allow_unisolated`` of `segpipe.open_bundle`, for bundles that are given by their path.
    """

    format: str | Sequence[str] | None
    probabilities: str | Sequence[str] | None
    entropy: bool
    overlay: bool
    only: str | None
    modality: str | Sequence[str] | None
    series_description: str | None
    min_slices: int | None
    max_slices: int | None
    series: str | Sequence[str] | None
    derived: str | Sequence[str] | None
    secondary_capture: str | Sequence[str] | None
    repair: str | Sequence[str] | None
    channel: str | Sequence[str] | None
    registered: bool
    pseudonymise: bool
    split: str | None
    fold: int | None
    data: str | PathLike[str] | None
    timeout: float | None
    retries: int
    overwrite: bool
    viewer: bool
    max_case_memory: int | str | None
    rules: str | PathLike[str] | None
    ensemble: Sequence[Bundle | str | PathLike[str]]
    shard: str | None
    workers: int
    allow: str | Sequence[str]
    run_unvetted_code: bool
    require_signature: str | PathLike[str] | None
    allow_unisolated: bool


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What is written of a case; attributes as of `PredictKeywords`, an empty ``format`` for its default."""

    format: tuple[str, ...] = ()
    probabilities: tuple[str, ...] = ()
    entropy: bool = False
    overlay: bool = True

    def formats_of(self, *, is_dicom: bool) -> tuple[str, ...]:
        """Return the formats of a case."""
        return self.format or (("nifti", "seg") if is_dicom else ("nifti",))

    def extra_files(self, labels: Mapping[int, str], activation: str | None) -> dict[str, Any]:
        """Return the names of extra outputs as ``result.json`` has them; of single labels by the label's name.

        Raises:
            UsageError: a label that the bundle does not have, or all probabilities and some.
        """
        files: dict[str, Any] = {}
        if self.probabilities == (ALL,):
            files["probabilities"] = PROBABILITIES
        elif self.probabilities:
            values = [_value_of(word, labels, activation) for word in self.probabilities]
            files["probability"] = {labels[value]: probability_name(value) for value in values}
        if self.entropy:
            files["entropy"] = ENTROPY
        return files

    def extra_paths(self, folder: Path, recipe: Recipe) -> dict[str, Any]:
        """Return the same in a folder, as `segpipe.inference.ExtraOutputs` takes them."""
        activation = (recipe.windowing or {}).get("activation")
        files = self.extra_files(recipe.labels, activation)
        paths: dict[str, Any] = {
            name: str(folder / files[name]) for name in ("probabilities", "entropy") if name in files
        }
        values = {name: value for value, name in recipe.labels.items()}
        first = 1 if activation == "sigmoid" else 0  # the label that is the first channel
        single = files.get("probability", {}).items()
        return {**paths, "single": {values[name] - first: str(folder / file) for name, file in single}}

    def are_met(self, result: Mapping[str, Any], folder: Path, bundle: Bundle, *, is_dicom: bool) -> bool:
        """Return whether a finished case has all that is asked for, as far as its source allows."""
        not_written = result.get("not_written", {})
        settled = {*result.get("files", {"nifti": SEGMENTATION}), *not_written}
        extra = _names(self.extra_files(bundle.labels, bundle.activation))
        if self.overlay and "overlay" in not_written:
            return False
        return settled.issuperset(self.formats_of(is_dicom=is_dicom)) and all(
            (folder / name).is_file() for name in extra
        )


def _names(files: Mapping[str, Any]) -> Iterator[str]:
    for entry in files.values():
        yield from entry.values() if isinstance(entry, dict) else [entry]


def _value_of(word: str, labels: Mapping[int, str], activation: str | None) -> int:
    """Return the label that a name or a value means."""
    if word == ALL:
        raise UsageError(
            "all probabilities are asked for, and some", found="--probabilities all,...", expected="one of the two"
        )
    by_value = {value: name for value, name in labels.items() if value or activation != "sigmoid"}
    matches = [value for value, name in by_value.items() if word in (name, str(value))]
    if len(matches) != 1:
        raise UsageError(
            "the bundle has no such label",
            found=word,
            expected=", ".join(f"{name} ({value})" for value, name in by_value.items()),
        )
    return matches[0]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a batch is run; attributes as of `PredictKeywords`, the description
    compiled, memory in bytes, the ensemble opened, the rules read."""

    model: ModelOptions = field(default_factory=ModelOptions)
    outputs: Outputs = field(default_factory=Outputs)
    only: str | None = None
    modality: tuple[str, ...] = ()
    series_description: re.Pattern[str] | None = None
    min_slices: int | None = None
    max_slices: int | None = None
    series: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
    secondary_capture: tuple[str, ...] = ()
    repair: tuple[str, ...] = ()
    channel: tuple[ChannelRule, ...] = ()
    registered: bool = False
    pseudonymise: bool = False
    split: str | None = None
    fold: int | None = None
    data: Path | None = None
    timeout: float | None = None
    retries: int = 1
    overwrite: bool = False
    viewer: bool = False
    max_case_memory: int | None = None
    rules: Rules = field(default_factory=Rules)
    ensemble: tuple[Bundle, ...] = ()
    shard: Shard | None = None
    workers: int = 1

    @classmethod
    def parse(cls, keywords: Mapping[str, Any]) -> Options:
        """Judge the options as a user gives them, all but those that bundles are opened with.

        Raises:
            UsageError: a value that there is not.
        """
        values = dict(keywords)
        values["data"] = None if values.get("data") is None else Path(values["data"])
        values["shard"] = None if values.get("shard") is None else Shard.parse(values["shard"])
        for name, least in (("retries", 0), ("workers", 1), ("min_slices", 1), ("max_slices", 1), ("timeout", 0.001)):
            if values.get(name) is not None and values[name] < least:
                raise UsageError(f"{name} is too small", found=values[name], expected=f"at least {least}")
        if values["shard"] is not None and values.get("workers", 1) > 1:
            raise UsageError("a share of a batch is computed by one process", found="--shard and --workers")
        if values.get("only") not in (None, "dicom", "nifti"):
            raise UsageError("no such kind of input", found=values["only"], expected="dicom or nifti")
        values["series_description"] = _pattern(values.get("series_description"))
        values["format"] = _formats(values.get("format"))
        for name in ("probabilities", "modality", "series", "secondary_capture"):
            values[name] = split_words(values.get(name))
        values["repair"] = _repairs(values.get("repair"))
        values["channel"] = _channels(values.get("channel"))
        values["derived"] = _derived(values.get("derived"))
        values["max_case_memory"] = parse_bytes(values.get("max_case_memory"))
        model = {name: values.pop(name) for name in ModelKeywords.__annotations__ if name in values}
        outputs = {part.name: values.pop(part.name) for part in fields(Outputs) if part.name in values}
        return cls(model=ModelOptions.parse(**model), outputs=Outputs(**outputs), **values)

    def about_model(self) -> dict[str, Any]:
        """Return what results say of the model beside its first bundle."""
        return {"ensemble": [bundle.facts for bundle in self.ensemble], "mirror": list(self.model.mirror)}


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise UsageError(
            "not a regular expression",
            found=text,
            expected=f"a pattern ({error})",
            hint="escape special letters with a backslash",
        ) from error


def _repairs(asked_for: str | Sequence[str] | None) -> tuple[str, ...]:
    from segpipe.dicom import check_repairs

    return check_repairs(split_words(asked_for)) if asked_for else ()


def _channels(asked_for: str | Sequence[str] | None) -> tuple[ChannelRule, ...]:
    from segpipe.dicom import parse_channels

    if not asked_for:
        return ()
    return parse_channels([asked_for] if isinstance(asked_for, str) else list(asked_for))


def _derived(asked_for: str | Sequence[str] | None) -> tuple[str, ...]:
    from segpipe.dicom import KINDS

    names = split_words(asked_for)
    wrong = next((name for name in names if name not in (*KINDS, ALL)), None)
    if wrong is not None:
        raise UsageError("no such kind of derived series", found=wrong, expected=", ".join((*KINDS, ALL)))
    return tuple(KINDS) if ALL in names else tuple(names)


def _formats(asked_for: str | Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(word.lower() for word in split_words(asked_for)))
    wrong = next((name for name in names if name not in FORMATS), None)
    if wrong is not None or (asked_for and not names):
        shown = asked_for if isinstance(asked_for, str) else ", ".join(asked_for or ())
        raise UsageError("no such format", found=wrong or shown, expected=", ".join(FORMATS))
    return names


def require_agreement(bundle: Bundle, others: Sequence[Bundle]) -> None:
    """Refuse an ensemble whose scores cannot be averaged voxel by voxel and class by class.

    Raises:
        RefusedError: a bundle is outside the supported subset, stands twice, or differs in what has to agree.
        UsageError: a bundle was opened on other terms than the first.
    """
    for number, member in enumerate([bundle, *others] if others else ()):
        if member.unsupported:
            raise RefusedError(
                "a bundle outside the closed form cannot be part of an ensemble",
                path=member.root,
                found="; ".join(member.unsupported),
                hint="predict with each bundle alone",
            )
        if member.members:
            raise RefusedError(
                "a bundle that is an ensemble itself cannot be part of another one",
                path=member.root,
                found=f"{len(member.members)} members, whose probabilities are averaged",
                expected="single models, whose scores are",
                hint="predict with it alone, or export the runs together",
            )
        if member.sha256 in [before.sha256 for before in [bundle, *others][:number]]:
            raise RefusedError("the same bundle stands twice in the ensemble", path=member.root)
        if member.policy != bundle.policy:
            raise UsageError("the bundles of an ensemble were opened on different terms", path=member.root)
        for aspect, own, expected in zip(_AGREE, _agreeing(member), _agreeing(bundle), strict=True):
            if own != expected:
                raise RefusedError(
                    f"the bundles of an ensemble differ in their {aspect}",
                    path=member.root,
                    found=own,
                    expected=expected,
                    hint="only folds or seeds of the same task can be averaged",
                )


_AGREE = ("labels", "channels", "preprocessing", "activation", "window", "post-processing")


def _agreeing(bundle: Bundle) -> tuple[Any, ...]:
    steps = bundle.preprocessing.to_config() if bundle.preprocessing else None
    return bundle.labels, bundle.channels, steps, bundle.activation, bundle.roi_size, bundle.cleanup
