"""What cases that corrections bring are called, and who they are of: named as the manifest's own cases are.

A patient who has two names is two patients, of whom one may be trained on and the other measured. So the manifest's own
rule names new patients; where its names are pseudonyms, rule and key have to give its own cases the patients they have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from segpipe.common.image_names import image_stem, is_image
from segpipe.common.result_folder import MAPPING, read_lines
from segpipe.data.importers.correction_origins import Origin
from segpipe.data.importers.pseudonym_key import KEY, keyed_pseudonym, study_key
from segpipe.data.importers.source_dataset import CHANNEL_SUFFIX
from segpipe.data.importers.to_manifest import PatientOf, patient_rule
from segpipe.data.manifest import Case, Manifest
from segpipe.dicom import Series, patient_pseudonym
from segpipe.errors import DataError, SegpipeError, UsageError

NOT_SAID = "it is not known who some new cases are of: they may be of a patient that is measured"
OF_THEIR_OWN = "`--patient-rule none` takes them as cases of patients that the manifest does not have"


@dataclass(frozen=True)
class NewCases:
    """Names for cases that are new to a manifest.

    Attributes:
        manifest: that they go into; None: a new one.
        root: the folder that its paths start from.
        rule: how patients follow from file names (`patient_rule`); None: the manifest's own rule.
        key: file of the key of pseudonyms; None: that of the folder of the images, else the user's own.
    """

    manifest: Manifest | None
    root: Path
    rule: str | None
    key: str | Path | None

    @property
    def hides(self) -> bool:
        """Whether the manifest's ids are pseudonyms."""
        return self.manifest is not None and bool(self.manifest.pseudonymised)

    def require_usable(self, origins: Sequence[Origin]) -> None:
        """Refuse a rule that is none, and a key where nothing is named under it.

        Raises:
            UsageError: no such rule, or neither DICOM series nor a manifest of pseudonyms.
        """
        patient_rule(self.rule or "none")
        if self.key is not None and not self.hides and all(_is_file(origin) for origin in origins):
            raise UsageError(
                "--key names the patients of DICOM series, and new cases of a manifest with pseudonyms",
                found="image files" + (", and a manifest without pseudonyms" if self.manifest else ""),
                hint="leave --key out",
            )

    def id(self, origin: Origin) -> str:
        """Return what the case of an origin is called: a pseudonym where the manifest's ids are."""
        if origin.case is not None:
            return origin.case.id
        if not self.hides or not _is_file(origin):
            return origin.id
        image = origin.images[0].resolve()
        below = image.relative_to(self.root).as_posix() if image.is_relative_to(self.root) else image.name
        return keyed_pseudonym("case", below, self._key)

    def patient(self, origin: Origin, series: Series | None) -> str | None:
        """Return who a new case is of, or None.

        Raises:
            UsageError: the manifest's patients have pseudonyms, and these would not be named alike.
            DataError: the rule does not fit the name of the file.
        """
        strict = self.hides and self.rule != "none" and self.manifest is not None and self.manifest.knows_patients
        if series is not None:
            if strict and not self._series_agree:
                raise self._other_names(
                    "the key does not name the manifest's own series as they are named"
                    if self._series_agree is not None
                    else "whether the key is the manifest's cannot be told: no series that it was made of is there",
                    "--key, and the series where they were,",
                )
            return patient_pseudonym(series.files[0], self._key)
        if strict and self._rule is None:
            raise self._other_names("it is not known who new cases are of", "--patient-rule and --key")
        if strict and not self._files_agree:
            raise self._other_names(
                "rule and key do not name the patients of the manifest's own cases as they are named",
                "--patient-rule and --key",
            )
        try:
            patient = self._patient_of(_name(origin))
        except DataError as error:
            error.expected = f"{error.expected}, or another --patient-rule; {OF_THEIR_OWN}"
            raise
        return patient and (keyed_pseudonym("patient", patient, self._key) if self.hides else patient)

    def _other_names(self, message: str, options: str) -> UsageError:
        return UsageError(
            message,
            expected=f"{options} as at its import: a patient of two names may be trained on and measured",
            hint=OF_THEIR_OWN,
        )

    @cached_property
    def _rule(self) -> str | None:
        """The rule that is given, else the manifest's; of pseudonyms that has no pattern."""
        own = None if self.manifest is None else self.manifest.patient_rule
        return self.rule if self.rule is not None else None if own == "regex" else own

    @cached_property
    def _patient_of(self) -> PatientOf:
        return patient_rule(self._rule or "none")

    @cached_property
    def _key(self) -> bytes:
        folders = [] if self.manifest is None else list(_folders(self.manifest.cases(), self.root))
        return study_key(self.key, next((folder for folder in folders if (folder / KEY).is_file()), None))[0]

    @cached_property
    def _files_agree(self) -> bool:
        """Whether rule and key give some case of the manifest the patient that it has."""
        for case in self.manifest.cases() if self.manifest else ():
            for name in _names_below(case.images[0]):
                try:
                    patient = self._patient_of(name)
                except DataError:
                    continue
                if patient is not None and keyed_pseudonym("patient", patient, self._key) == case.patient_id:
                    return True
        return False

    @cached_property
    def _series_agree(self) -> bool | None:
        """Whether the key gives some series of the manifest the patient that it has; None where none is there."""
        manifest = self.manifest
        known = {case.patient_id for case in manifest.cases()} if manifest else set()
        seen = None
        for folder in _folders(manifest.cases(), self.root) if manifest else ():
            for line in read_lines(folder / MAPPING):
                paths = line.get("paths") if isinstance(line, dict) else None
                try:
                    if isinstance(paths, list) and paths and Path(str(paths[0])).is_file():
                        seen = patient_pseudonym(Path(str(paths[0])), self._key) in known
                except SegpipeError:
                    continue
                if seen:
                    return True
        return seen


def _is_file(origin: Origin) -> bool:
    return bool(origin.images) and is_image(origin.images[0])


def _name(origin: Origin) -> str:
    """Return what a scan's files are called, whatever id it got."""
    stem = image_stem(origin.images[0])
    match = CHANNEL_SUFFIX.match(stem)
    return match["case"] if match and (len(origin.images) > 1 or origin.id == match["case"]) else stem


def _names_below(image: str) -> list[str]:
    """Return what a case may have been called at its import: file, folders and file, each without its channel."""
    folders, stem = PurePosixPath(image).parts[:-1], image_stem(image)
    match = CHANNEL_SUFFIX.match(stem)
    names = [stem, match["case"]] if match else [stem]
    return ["_".join([*folders[start:], name]) for name in names for start in range(len(folders), -1, -1)]


def _folders(cases: Sequence[Case], root: Path) -> Iterator[Path]:
    """Yield the folders that converted series lie in (``images/ID.nii.gz``), each once."""
    yield from dict.fromkeys((root / case.images[0]).parent.parent for case in cases)
