"""The dataset manifest: which cases there are, what they mean, who they belong to.

A superset of the Decathlon ``dataset.json``: `monai.data.load_decathlon_datalist` reads it. Paths are
relative to the data folder, which is the manifest's own folder unless a command is given ``--data``.

    training   labelled cases for training and cross-validation; ``fold`` is 0..n-1 once split
    test       held-out cases; labelled, or images alone

Version 2 knows labels as people have them (voxels without a decision, regions that overlap, cases in which not every
label was looked for), units of channels, channels that were registered, and where a label map came from. A manifest
that uses none of it is written as version 1, which is read on.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from segpipe.common.files import json_text, read_json, sha256_of, write_json
from segpipe.data.annotation import Annotation
from segpipe.data.covariates import Covariates
from segpipe.errors import DataError, UsageError

CASE_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
Section = Literal["training", "test"]
Unit = Literal["SUVbw", "BQML", "CNTS", "GML", "HU"]
VERSION_2 = ("ignore_label", "regions", "units", "first_stage")
VERSION_2_OF_CASE = ("annotated_labels", "registered", "history", "selection", "covariates")
NOT_HASHED = "no hashes of images: a model will know what it was trained on by the ids of this very manifest alone"
PATIENTS_UNKNOWN = "patients unknown: figures may be too good"


class Case(BaseModel):
    """One image (of one or several channels) with, where known, its label, patient and hashes.

    ``image`` is one path, or one path per channel; ``sha256`` maps a path to the hash it had when seen.
    """

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="Unique name of the case; used for every output.")
    image: str | list[str] = Field(description="Path of the image, or one path per channel.")
    label: str | None = Field(None, description="Path of the label map on the image's grid.")
    patient_id: str | None = Field(None, description="Who it is of; cases of one patient stay together.")
    fold: int | None = Field(None, ge=0, description="Cross-validation fold in which it is validated.")
    notes: list[str] | None = Field(
        None, description="What has to be known of its voxels, e.g. that they were resampled."
    )
    sha256: dict[str, str] | None = Field(None, description="Path to SHA-256, where the data was seen.")
    label_turned: str | None = Field(
        None, description="From which axes to which the label map was turned to lie on the image's grid: LAS to RAS."
    )
    annotated_labels: list[int | str] | None = Field(
        None,
        min_length=1,
        description="Values or names of the labels that were looked for in this case, where not all were: what bears "
        "none of them may be any of the others.",
    )
    registered: bool | str | None = Field(
        None, description="Channels are taken as registered although no file says so: true, or by what in words."
    )
    history: list[Annotation] | None = Field(
        None, min_length=1, description="Label maps that the case had or has, the oldest first, where that is known."
    )
    selection: Literal["random", "chosen"] | None = Field(
        None, description="How it came to be annotated: drawn at random, or chosen, e.g. by a model's doubt."
    )
    covariates: Covariates | None = Field(
        None, description="Who and how was scanned, where that is known; a bundle has counts of patients alone."
    )

    @field_validator("id")
    @classmethod
    def _safe_id(cls, value: str) -> str:
        if not CASE_ID.match(value):
            raise ValueError(f"case id {value!r}: letters, digits, '.', '_' and '-', starting with a letter or digit")
        return value

    @field_validator("image", "label")
    @classmethod
    def _relative(cls, value: str | list[str] | None) -> str | list[str] | None:
        for path in [value] if isinstance(value, str) else value or []:
            parts = PurePosixPath(path)
            if parts.is_absolute() or ".." in parts.parts or "\\" in path or not path:
                raise ValueError(f"path {path!r}: must be relative to the data folder and stay inside it")
        return value

    @property
    def images(self) -> list[str]:
        """Return one path per channel file."""
        return [self.image] if isinstance(self.image, str) else list(self.image)

    @property
    def paths(self) -> list[str]:
        """Every file of the case."""
        return self.images + ([self.label] if self.label else [])

    @property
    def is_hashed(self) -> bool:
        """Whether its images are known again by their hashes, whatever they are called elsewhere."""
        return set(self.images) <= set(self.sha256 or {})

    @property
    def only_trains(self) -> bool:
        """Whether nothing may be measured on it: it was chosen, or its label map began as a prediction."""
        drawn = any(each.start is not None and each.start.of == "prediction" for each in self.history or ())
        return drawn or self.selection == "chosen"

    @property
    def group(self) -> str:
        """What must not be torn apart by a split: the patient, or the case itself where none is known."""
        return self.patient_id or self.id


class FirstStage(BaseModel):
    """Whose label maps are the last channels: a mask for each of its labels."""

    model_config = ConfigDict(extra="forbid")

    labels: list[str] = Field(min_length=1, description="Names of its labels, in the order of the channels.")
    weights_sha256: list[str] = Field(min_length=1, description="Of the model of each of its folds.")


class Manifest(BaseModel):
    """A dataset: cases, image channels, labels by name, modality, licence and source."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1, 2] = 1
    name: str
    description: str = ""
    reference: str = Field("", description="Paper or institution to cite.")
    source: str = Field("", description="Where the data comes from, in words or as an address.")
    licence: str = Field("", description="Licence of the data, e.g. CC-BY-SA 4.0.")
    tensorImageSize: Literal["3D"] = "3D"  # noqa: N815 - the Decathlon's name
    modality: dict[str, str] = Field(description='Channel index to modality, e.g. {"0": "MRI"}.')
    labels: dict[str, str] = Field(description='Label value to name, e.g. {"0": "background", "1": "liver"}.')
    numTraining: int = 0  # noqa: N815
    numTest: int = 0  # noqa: N815
    label_values: dict[str, int] | None = Field(
        None, description='Values of the data set\'s label maps that became other labels: {"255": 1}.'
    )
    ignore_label: int | None = Field(
        None, description="Value in the label maps of voxels on which nobody decided: neither trained on nor measured."
    )
    regions: dict[str, list[int]] | None = Field(
        None,
        description="What a network is to find where regions overlap, in order: name to the label values that it "
        'joins, e.g. {"tumour": [1, 2], "core": [2]}.',
    )
    units: dict[str, Unit] | None = Field(
        None, description='Channel index to the unit of its values, where one is known: {"1": "SUVbw"}.'
    )
    first_stage: FirstStage | None = Field(
        None,
        description="Whose label maps the last channels are: a cross-validation, each case by the fold without it.",
    )
    patient_rule: str | None = Field(None, description="How patient ids were derived, where they were.")
    split_rule: str | None = Field(None, description="How the folds and the test set were drawn.")
    pseudonymised: Literal[True] | None = Field(
        None, description="Ids hide names: what is passed on names no file or folder of the source."
    )
    training: list[Case] = Field(default_factory=list)
    test: list[Case] = Field(default_factory=list)

    @field_validator("modality", "labels")
    @classmethod
    def _integer_keys(cls, value: dict[str, str]) -> dict[str, str]:
        if not value:
            raise ValueError("at least one is needed")
        for key in value:
            if not key.isdecimal() or str(int(key)) != key:
                raise ValueError(f"key {key!r}: must be a whole number in quotes")
        if sorted(map(int, value)) != list(range(len(value))):
            raise ValueError(f"keys {sorted(map(int, value))}: must be 0, 1, 2, ... without gaps")
        return dict(sorted(value.items(), key=lambda item: int(item[0])))

    @field_validator("labels")
    @classmethod
    def _background_first(cls, value: dict[str, str]) -> dict[str, str]:
        if value.get("0") != "background":
            raise ValueError('label "0" must be "background"')
        name, count = Counter(value.values()).most_common(1)[0]
        if count > 1:
            raise ValueError(f"label name {name!r} stands {count} times")
        if len(value) < 2:
            raise ValueError("at least one label besides background is needed")
        if len(value) > 256:
            raise ValueError("at most 255 labels: label maps are written as 8 bit")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        id, count = Counter([case.id for case in self.cases()] or [""]).most_common(1)[0]
        if count > 1:
            raise ValueError(f"case id {id!r} stands {count} times")
        for case in self.cases():
            if len(case.images) not in (1, self.n_channels):
                raise ValueError(
                    f"case {case.id!r} has {len(case.images)} image files, expected 1 or {self.n_channels}"
                )
        for case in self.training:
            if case.label is None:
                raise ValueError(f"training case {case.id!r} has no label")
        for case in self.test:
            if case.only_trains and case.label is not None:
                raise ValueError(
                    f"test case {case.id!r} was chosen or began as a prediction: it can only be trained on"
                )
        self._judge_version_2()
        self.schema_version = self._version()
        self.numTraining, self.numTest = len(self.training), len(self.test)
        return self

    def _judge_version_2(self) -> None:
        ignored, n_labels = self.ignore_label, len(self.labels)
        if ignored is not None and not n_labels <= ignored <= 255:
            raise ValueError(f"ignore_label {ignored}: must be a value of no label, {n_labels} to 255")
        for name, values in (self.regions or {}).items():
            _judge_region(name, values, self.foreground)
        if self.regions is not None:
            left_out = set(self.foreground) - set().union(*self.regions.values())
            if left_out:
                raise ValueError(f"regions: labels {sorted(left_out)} are of none; each has to be of one at least")
            sets = [frozenset(values) for values in self.regions.values()]
            if len(sets) != len(set(sets)):
                raise ValueError("regions: two of them join the same labels")
        for key in self.units or {}:
            if key not in self.modality:
                raise ValueError(f"units: there is no channel {key!r}, but {', '.join(self.modality)}")
        if self.first_stage is not None and len(self.first_stage.labels) >= self.n_channels:
            raise ValueError(f"first_stage: {len(self.first_stage.labels)} masks in {self.n_channels} channels")
        for case in self.cases():
            self.annotated(case)

    def _version(self) -> Literal[1, 2]:
        """Return the lowest version that knows every field in use."""
        used = any(getattr(self, field) is not None for field in VERSION_2)
        used = used or any(getattr(case, field) is not None for case in self.cases() for field in VERSION_2_OF_CASE)
        return 2 if used else 1

    @property
    def n_channels(self) -> int:
        """Number of image channels."""
        return len(self.modality)

    @property
    def channels(self) -> list[str]:
        """Modality of each channel, in order."""
        return list(self.modality.values())

    @property
    def foreground(self) -> dict[int, str]:
        """Label value to name, without background."""
        return {int(value): name for value, name in self.labels.items() if value != "0"}

    @property
    def targets(self) -> dict[int, str]:
        """Number to name of what is to be found: of the regions where there are any, else of the labels."""
        return self.foreground if self.regions is None else dict(enumerate(self.regions, 1))

    @property
    def annotated_sets(self) -> list[list[int]]:
        """The sets of labels that were looked for in training cases in which not all were, each once, sorted."""
        sets = {annotated for case in self.training if (annotated := self.annotated(case)) is not None}
        return sorted(sorted(annotated) for annotated in sets)

    @property
    def knows_patients(self) -> bool:
        """Whether it is known of some cases who they are of; else a patient may be trained on and measured."""
        return self.patient_rule is not None or any(case.patient_id for case in self.cases())

    @property
    def patients_of_some(self) -> str | None:
        """Say of how many labelled cases the patient is not known, where that of others is; None where there are none.

        Each of these stands for itself, so two of one patient may be torn apart.
        """
        labelled = [case for case in self.cases() if case.label is not None]
        unknown = sum(not case.patient_id for case in labelled)
        few = 0 < unknown < len(labelled)
        return f"patients of {unknown} of {len(labelled)} cases unknown: figures may be too good" if few else None

    def annotated(self, case: Case) -> frozenset[int] | None:
        """Return the values of the labels that were looked for in a case; None where all were.

        Raises:
            ValueError: one that it names is no label.
        """
        if case.annotated_labels is None:
            return None
        by_name = {name: value for value, name in self.foreground.items()}
        found = set()
        for label in case.annotated_labels:
            value = by_name.get(label) if isinstance(label, str) else label
            if value not in self.foreground:
                raise ValueError(f"case {case.id!r}: annotated label {label!r} is none of {list(by_name)}")
            found.add(value)
        return None if found == set(self.foreground) else frozenset(found)

    def cases(self) -> list[Case]:
        """Return all cases: training, then test."""
        return [*self.training, *self.test]

    def folds(self) -> list[int]:
        """Return the folds that have cases to measure, sorted; empty before a split."""
        return sorted({case.fold for case in self.training if case.fold is not None and not case.only_trains})

    def fold_sizes(self) -> list[int]:
        """Return the number of cases that each fold measures, in the order of the folds."""
        return [len(self.select("validation", fold)) for fold in self.folds()]

    def select(self, split: str, fold: int | None = None) -> list[Case]:
        """Return cases by role.

        A case that `Case.only_trains` is neither validated nor out of a fold; its fold is that of its patient.

        Args:
            split: ``training`` (without the fold), ``validation`` (the fold), ``test``, ``all``, or ``out_of_fold``
                (the training cases that have a fold, whose models left them out).
            fold: the validation fold; None takes every training case.

        Raises:
            UsageError: no such split or fold.
        """
        if split == "all":
            return self.cases()
        if split == "test":
            return list(self.test)
        if split == "out_of_fold":
            return [case for case in self.training if case.fold is not None and not case.only_trains]
        if split not in ("training", "validation"):
            raise UsageError(f"no split {split!r}", expected="training, validation, out_of_fold, test or all")
        if fold is None:
            if split == "training":
                return list(self.training)
            raise UsageError("validation needs a fold", hint="name it with --fold")
        if fold not in self.folds():
            raise UsageError(
                f"the manifest has no fold {fold}",
                found=f"folds {self.folds()}" if self.folds() else "no folds",
                hint="make them with `segpipe split`",
            )
        if split == "training":
            return [case for case in self.training if case.fold != fold]
        return [case for case in self.training if case.fold == fold and not case.only_trains]

    def dump(self) -> dict[str, Any]:
        """Return plain values in file order, without fields that are not set, in the lowest version that has them."""
        return {**self.model_dump(mode="json", exclude_none=True), "schema_version": self._version()}


def _judge_region(name: str, values: list[int], foreground: Mapping[int, str]) -> None:
    """Refuse a region that has no name or joins no labels, the background, or what is no label."""
    if not name.strip() or name == "background":
        raise ValueError(f"regions: {name!r} is no name of a region")
    unknown = [value for value in values if value not in foreground]
    if not values or unknown or len(set(values)) != len(values):
        raise ValueError(f"regions: {name!r} joins {values}, expected different values of {sorted(foreground)}")


def load_manifest(path: str | Path) -> Manifest:
    """Read and validate a manifest.

    Raises:
        UsageError: no such file.
        DataError: not JSON, or not a manifest; the message names the field.
    """
    path = Path(path)
    document = read_json(path, "manifest")
    if not isinstance(document, dict):
        raise DataError("the manifest is not a JSON object", path=path, found=type(document).__name__)
    if "training" in document and "schema_version" not in document:
        raise DataError(
            "this is not a segpipe manifest but looks like a Decathlon dataset.json",
            path=path,
            hint="make a manifest of it with `segpipe import`",
        )
    return parse_manifest(document, path)


def parse_manifest(document: Mapping[str, Any], path: str | Path) -> Manifest:
    """Validate plain values as a manifest; ``path`` is named where they are not one.

    Raises:
        DataError: not a manifest; the message names the field.
    """
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the manifest"
        raise DataError(
            f"the manifest is not valid: {where}: {first['msg'].removeprefix('Value error, ')}",
            path=path,
            found=f"{error.error_count()} fault(s)",
            hint="see data_manifests/manifest.schema.json for what is expected",
        ) from error


def save_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest, whole or not at all."""
    write_json(path, manifest.dump())


def open_manifest(manifest: str | Path | Manifest, data: str | Path | None = None) -> tuple[Manifest, Path]:
    """Return a manifest, read where it is a path, and the folder that its paths start from.

    Raises:
        UsageError: no such file or folder, or a manifest in memory without ``data``.
        DataError: not a manifest.
    """
    if not isinstance(manifest, Manifest):
        return load_manifest(manifest), data_root(manifest, data)
    if data is None:
        raise UsageError(
            "a manifest in memory does not say where its files are", hint="name the folder that its paths start from"
        )
    return manifest, data_root(data, data)


def manifest_sha256(manifest: str | Path | Manifest) -> str:
    """Return the SHA-256 of a manifest's file, or of the file that `save_manifest` would write."""
    if isinstance(manifest, Manifest):
        return hashlib.sha256(json_text(manifest.dump()).encode()).hexdigest()
    return sha256_of(manifest)


def data_root(manifest_path: str | Path, data: str | Path | None = None) -> Path:
    """Return the folder that the manifest's paths start from.

    Raises:
        UsageError: it is not a folder.
    """
    root = Path(data) if data is not None else Path(manifest_path).resolve().parent
    if not root.is_dir():
        raise UsageError("no such data folder", path=root, hint="name it with --data")
    return root


def shipped_manifest(name: str) -> Path | None:
    """Return the manifest that comes with this package for a public data set, where there is one."""
    here = Path(__file__).resolve().parents[1]
    places = [folder / "data_manifests" / f"{name}.json" for folder in (here, here.parents[1])]
    return next((path for path in places if path.is_file()), None)
