"""Select the cases of a batch: NIfTI files, a manifest's cases, and the DICOM series that a filter takes.

What a rule of the filter leaves out is listed with the rule's name; what makes no volume is a case that is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.errors import DataError, UsageError
from segpipe.prediction.cases import InputCase, Refusal, find_cases, is_manifest, is_nifti, require_unique
from segpipe.prediction.options import Options

if TYPE_CHECKING:
    from segpipe.dicom import Scan, Series


MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT"}
Progress = Callable[[int, int], object]  # files read, of all files
_MARK = "\x02"  # around a path in words; no file name of a scan has it


@dataclass(frozen=True)
class SeriesFilter:
    """Which series to take.

    Attributes:
        modality: any of these; empty takes all.
        description: SeriesDescription has a match of it.
        min_slices, max_slices: of the volume.
        channels: of the bundle; a series is one channel.
    """

    modality: tuple[str, ...] = ()
    description: re.Pattern[str] | None = None
    min_slices: int | None = None
    max_slices: int | None = None
    channels: int = 1

    def rule_against(self, series: Series) -> str | None:
        """Return the rule that leaves a series out, None where it is taken."""
        slices = series.shape[2] if series.shape else len(series.frames) or len(series.files)
        if self.modality and series.modality.upper() not in self.modality:
            return "modality"
        if self.description is not None and not self.description.search(series.description):
            return "series-description"
        if self.min_slices is not None and slices < self.min_slices:
            return "min-slices"
        if self.max_slices is not None and slices > self.max_slices:
            return "max-slices"
        return "channels" if self.channels != 1 else None


@dataclass(frozen=True)
class NotSelected:
    """A series that a rule left out."""

    id: str
    rule: str


@dataclass(frozen=True)
class SelectedCases:
    """What a DICOM tree has for a bundle.

    Attributes:
        cases: series to segment, and those that are refused.
        not_selected: what the rules left out.
        passed_over: number of files that are no image, by class.
    """

    cases: list[InputCase] = field(default_factory=list)
    not_selected: list[NotSelected] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)


def make_filter(metadata: Mapping[str, Any], channels: int, options: Options) -> SeriesFilter:
    """Return the filter of the options; without a modality it is the one that a bundle's metadata states, if any.

    Raises:
        UsageError: the description is no regular expression.
    """
    pattern = options.series_description
    try:
        description = None if pattern is None else re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise UsageError(
            "not a regular expression",
            found=pattern,
            expected=f"a pattern ({error})",
            hint="escape special letters with a backslash",
        ) from error
    modality = tuple(name.upper() for name in options.modality) or _stated_modality(metadata)
    return SeriesFilter(modality, description, options.min_slices, options.max_slices, channels)


def _stated_modality(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    stated: Any = metadata
    for key in ("network_data_format", "inputs", "image", "modality"):
        stated = stated.get(key) if isinstance(stated, Mapping) else None
    known = MODALITIES.get(stated.strip().upper()) if isinstance(stated, str) else None
    return (known,) if known else ()


def select_series(
    roots: Sequence[Path], series_filter: SeriesFilter, out: Path | None = None, progress: Progress | None = None
) -> SelectedCases:
    """Scan for series and judge them by the filter.

    A folder in which nothing but unreadable DICOM was found is a refused case as well, so that nobody waits for it.

    Args:
        roots: folders and files.
        series_filter: which to take.
        out: results below it are not looked at.
        progress: called with the number of files read and of all files.

    Raises:
        UsageError: a root does not exist, or is a file of another kind.
    """
    from segpipe.dicom import scan

    scanned = scan(roots, progress=progress, name=lambda path: f"{_MARK}{path}{_MARK}")
    inside = out.absolute() if out is not None else None

    def is_input(path: Path) -> bool:
        return inside is None or inside not in path.absolute().parents

    candidates = [series for series in _with_own_ids(scanned) if is_input(series.files[0])]
    left_out = {series.case_id: series_filter.rule_against(series) for series in candidates}
    cases = [_case_of(series) for series in candidates if left_out[series.case_id] is None]
    others = [file for file in scanned.passed_over if is_input(file.path) and not is_nifti(file.path)]
    unknown = next((file.path for file in others if file.path in roots and file.file_class == "not_dicom"), None)
    if unknown is not None:
        raise UsageError(
            "neither NIfTI nor DICOM", path=unknown, expected="a name that ends in .nii or .nii.gz, or a DICOM file"
        )
    unreadable = [file.path for file in others if file.file_class == "unreadable"]
    return SelectedCases(
        cases + _lost_folders(unreadable, candidates, scanned.root),
        [NotSelected(id, rule) for id, rule in left_out.items() if rule is not None],
        dict(Counter(file.file_class for file in others)),
    )


def _case_of(series: Series) -> InputCase:
    if series.state == "loaded":
        notes = tuple(_in_words(note, series.files) for note in series.notes)
        return InputCase(series.case_id, series.files, replace(series, notes=notes))
    return InputCase(
        series.case_id,
        series.files,
        refusal=Refusal(series.reason or "refused", _in_words(series.detail, series.files)),
    )


def _in_words(detail: str, files: Sequence[Path]) -> str:
    """Return a detail whose files are numbered as `mapping.jsonl` lists them: their names may be a person's."""
    numbers = {str(path): index for index, path in enumerate(files, 1)}

    def number(match: re.Match[str]) -> str:
        return f"file {numbers[match[1]]} of {len(files)}" if match[1] in numbers else "a file"

    return re.sub(f"{_MARK}(.*?){_MARK}", number, detail, flags=re.DOTALL)


def _with_own_ids(scanned: Scan) -> list[Series]:
    """Return the series, each with an id of its own also where broken headers give two the same."""
    taken: set[str] = set()
    unique = []
    for series in scanned.series:
        if series.case_id in taken:
            words = [series.case_id, *(os.path.relpath(path, scanned.root) for path in series.files)]
            series = replace(series, case_id=_pseudonym(*words))
        taken.add(series.case_id)
        unique.append(series)
    return unique


def _lost_folders(unreadable: Sequence[Path], readable: Sequence[Series], root: Path) -> list[InputCase]:
    """Return a refused case for each folder with unreadable files and no series."""
    good = {path.parent for series in readable for path in series.files}
    folders: dict[Path, list[Path]] = {}
    for path in unreadable:
        if path.parent not in good:
            folders.setdefault(path.parent, []).append(path)
    return [
        InputCase(
            _pseudonym("folder", os.path.relpath(folder, root)),
            tuple(files),
            refusal=Refusal("unreadable", f"none of {len(files)} file(s) of a folder can be read as DICOM"),
        )
        for folder, files in folders.items()
    ]


def _pseudonym(*words: str) -> str:
    return "dcm-" + hashlib.sha256(b"\0".join(os.fsencode(word) for word in words)).hexdigest()[:12]


def select_cases(
    inputs: Sequence[Path],
    series_filter: SeriesFilter,
    *,
    out: Path,
    pseudonymise: bool = False,
    split: str | None = None,
    fold: int | None = None,
    data: Path | None = None,
    progress: Progress | None = None,
) -> SelectedCases:
    """Find the cases; options as in `find_cases` and `select_series`.

    Raises:
        UsageError: no such input, a name that cannot be an id, or one id for two cases.
        DataError: nothing to segment was found.
    """
    plain = [path for path in inputs if path.is_dir() or is_nifti(path) or is_manifest(path) or not path.exists()]
    cases = find_cases(
        plain, series_filter.channels, out=out, pseudonymise=pseudonymise, split=split, fold=fold, data=data
    )
    mixed = [path for path in inputs if not is_manifest(path) and _may_hold_dicom(path, out)]
    selected = select_series(mixed, series_filter, out, progress) if mixed else SelectedCases()
    if not cases and not selected.cases:
        raise DataError(
            "nothing to segment",
            path=", ".join(map(str, inputs)),
            found=_in_numbers(selected),
            expected="files that end in .nii or .nii.gz, or DICOM series",
            hint="check the path and the rules",
        )
    cases = sorted([*cases, *selected.cases], key=lambda case: case.id)
    require_unique(cases)
    return replace(selected, cases=cases)


def _may_hold_dicom(path: Path, out: Path) -> bool:
    """Return whether there is a file that is not NIfTI by name."""
    if not path.is_dir():
        return not is_nifti(path)
    inside = os.path.realpath(out)
    for folder, folders, files in os.walk(path, followlinks=False):
        folders[:] = [name for name in folders if os.path.realpath(Path(folder, name)) != inside]
        if any(not is_nifti(Path(name)) for name in files):
            return True
        if any(Path(folder, name).is_symlink() for name in folders):
            return True
    return False


def _in_numbers(selected: SelectedCases) -> str:
    rules = Counter(left_out.rule for left_out in selected.not_selected)
    words = [f"{count} series left out by {rule}" for rule, count in rules.items()]
    words += [f"{count} other files ({kind})" for kind, count in selected.passed_over.items()]
    return "; ".join(["no NIfTI file", *words])
