"""From what the user names to the cases of a batch: image files, a manifest's cases, and DICOM series.

Each has a unique id and its files. A series that a rule leaves out is listed with the rule's name; what makes no volume
is a case that is refused.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.bundle import units_of
from segpipe.common.image_names import EXPECTED, is_image
from segpipe.data import load_manifest, pseudonym
from segpipe.errors import DataError, UsageError
from segpipe.prediction.file_cases import OF_FOLDERS, InputCase, Refusal, find_cases, is_manifest, look_into
from segpipe.prediction.options import Options
from segpipe.prediction.series_filter import SeriesFilter, make_filter

if TYPE_CHECKING:
    from segpipe.dicom import Series


Progress = Callable[[int, int], object]  # files read, of all files
GONE = Refusal("gone", "it was there when the batch began, and is not any more, or its files go by another id now")
_MARK = "\x02"  # around a path in words; no file name of a scan has it


@dataclass(frozen=True)
class NotSelected:
    """A series that a rule left out."""

    id: str
    rule: str

    @property
    def advice(self) -> str:
        """How to have it taken all the same; empty where that is plain."""
        kind, _, kinds = self.rule.partition(": ")
        if kind == "channels":
            return "the bundle takes several: --channel NAME=MODALITY:PATTERN says which series is which"
        return f"--derived {kinds.replace(' ', '')} takes it" if kind == "derived" else ""


@dataclass(frozen=True)
class SelectedCases:
    """What a DICOM tree has for a bundle.

    Attributes:
        cases: series to segment, and those that are refused.
        not_selected: what the rules left out.
        passed_over: number of files that are no image, by SOP class or other kind.
    """

    cases: list[InputCase] = field(default_factory=list)
    not_selected: list[NotSelected] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)


def select_cases(
    inputs: Sequence[Path],
    metadata: Mapping[str, Any],
    channels: int,
    options: Options,
    out: Path,
    progress: Progress | None = None,
) -> SelectedCases:
    """Find the cases of a batch.

    Args:
        inputs: files and folders, or one manifest.
        metadata: of the bundle, which may state a modality.
        channels: of the bundle.
        options: of the batch.
        out: results below it are passed over.
        progress: called with the number of DICOM files read and of all files.

    Raises:
        UsageError: no such input, or a file of another kind.
        DataError: nothing to segment was found.
    """
    others = [path for path in inputs if path.exists() and not (path.is_dir() or is_image(path) or is_manifest(path))]
    named = [path for path in inputs if path not in others]
    found = look_into([path for path in named if not is_manifest(path)], out)
    mixed = [path for path in named if any(path.absolute() in other.parents for other in found.others)]
    selected = SelectedCases()
    if (mixed or others) and options.only != "nifti":
        series_filter = make_filter(metadata, channels, options)
        selected = select_series([*mixed, *others], series_filter, out, progress, options.repair, found.closed)
    elif not any(map(is_manifest, named)) and (names := (*options.series, *options.secondary_capture)):
        raise UsageError(
            "no such series", found=names[0], expected="DICOM among the inputs", hint="check the path, and --only"
        )
    taken = {*(case.id for case in selected.cases), *(series.id for series in selected.not_selected)}
    cases = find_cases(named, channels, options, out, taken, found)
    for path in filter(is_manifest, named):
        _require_units(load_manifest(path).units or {}, metadata, path)
    unseen = {
        "hidden image": len(found.hidden),
        "image (--only dicom)": len(found.images) if options.only == "dicom" else 0,
        "other file (--only nifti)": len(found.others) + len(others) if options.only == "nifti" else 0,
    }
    selected.passed_over.update({words: count for words, count in unseen.items() if count})
    if not cases and not selected.cases:
        raise DataError(
            "nothing to segment",
            path=", ".join(map(str, inputs)),
            found=_in_numbers(selected),
            expected=f"files with {EXPECTED}, or DICOM series",
            hint="; ".join(["check the path and the rules", *_advice(selected)]),
        )
    if cases and not (selected.cases or selected.not_selected):
        _refuse_options_for_series(options)
    cases = sorted([*cases, *selected.cases], key=lambda case: case.id)
    return replace(selected, cases=cases)


def cases_as_listed(found: Sequence[InputCase], listed: Sequence[str]) -> list[InputCase]:
    """Return the cases that were listed before, in that order; one that is not found any more is refused as gone.

    >>> from segpipe.prediction.cases import cases_as_listed
    >>> from segpipe.prediction.file_cases import InputCase
    >>> cases = cases_as_listed([InputCase("here", ()), InputCase("since_then", ())], ["gone", "here"])
    >>> [(case.id, case.refusal and case.refusal.reason) for case in cases]
    [('gone', 'gone'), ('here', None)]
    """
    known = {case.id: case for case in found}
    return [known.get(id) or InputCase(id, (), refusal=GONE) for id in listed]


def _refuse_options_for_series(options: Options) -> None:
    """Refuse what chooses or changes series where there is none: files would be taken as if nothing had been asked.

    Raises:
        UsageError: naming the options.
    """
    given = [f"--{name.replace('_', '-')}" for name in OF_FOLDERS if name != "only" and getattr(options, name)]
    if given:
        raise UsageError(
            "options for DICOM series are given, and there is no series",
            found=", ".join(given),
            expected="none of them for NIfTI and other files",
            hint="leave them out, or name the folder of the series",
        )


def _require_units(units: Mapping[str, str], metadata: Mapping[str, Any], path: Path) -> None:
    """Refuse a data set whose values are in another unit than the bundle was trained on.

    Raises:
        DataError: with both units.
    """
    for channel, expected in units_of(metadata).items():
        if units.get(channel, expected) != expected:
            raise DataError(
                "the data set is in another unit than the bundle was trained on",
                path=path,
                found=f"channel {channel} in {units[channel]}",
                expected=expected,
                hint=f"import it again with --pet-unit {expected}",
            )


def select_series(
    roots: Sequence[Path],
    series_filter: SeriesFilter,
    out: Path | None = None,
    progress: Progress | None = None,
    repairs: Sequence[str] = (),
    closed: Collection[Path] = (),
) -> SelectedCases:
    """Scan for series and judge them by the filter.

    A folder with unreadable DICOM of which nothing is taken or refused is a refused case as well, so that nobody waits
    for it.

    Args:
        roots: folders and files.
        series_filter: which to take.
        out: results below it are not looked at.
        progress: called with the number of files read and of all files.
        repairs: what refused series are resampled for.
        closed: folders that cannot be listed, which are cases already.

    Raises:
        UsageError: a root does not exist, or is a file of another kind.
    """
    from segpipe.dicom import admitted, in_unit, join_channels, open_registrations, scan

    scanned = scan(roots, progress=progress, name=lambda path: f"{_MARK}{path}{_MARK}")
    inside = out.absolute() if out is not None else None

    def is_input(path: Path) -> bool:
        return inside is None or inside not in path.absolute().parents

    found = [series for series in scanned.series if is_input(series.files[0])]
    candidates = admitted(found, repairs, series_filter.captures)
    known = {name for series in candidates for name in (series.series_uid, series.case_id)}
    for name in series_filter.names:
        if name not in known:
            raise UsageError("no such series", found=name, hint="`segpipe scan` lists those that are there")
    left_out = {series.case_id: series_filter.rule_against(series, candidates) for series in candidates}
    taken = [series for series in candidates if left_out[series.case_id] is None]
    if not series_filter.rules:
        taken = [in_unit(series, series_filter.units.get("0")) for series in taken]
    else:
        unit_of = {rule.name: series_filter.units.get(str(index)) for index, rule in enumerate(series_filter.rules)}
        registrations = open_registrations(file for file in scanned.passed_over if is_input(file.path))
        joined = join_channels(taken, series_filter.rules, unit_of, registrations)
        left_out |= {series.case_id: "not-a-channel" for series in joined.others}
        taken = joined.cases
    cases = [_case_of(series) for series in taken]
    others = [file for file in scanned.passed_over if is_input(file.path) and not is_image(file.path)]
    others = [file for file in others if file.path.absolute() not in closed]
    unknown = next((file.path for file in others if file.path in roots and file.file_class == "not_dicom"), None)
    if unknown is not None:
        raise UsageError("neither an image nor DICOM", path=unknown, expected=f"{EXPECTED}, or a DICOM file")
    unreadable = [file.path for file in others if file.file_class == "unreadable"]
    return SelectedCases(
        cases + _lost_folders(unreadable, [path for case in cases for path in case.paths], scanned.root),
        [NotSelected(id, rule) for id, rule in left_out.items() if rule is not None],
        dict(Counter(file.kind for file in others)),
    )


def _case_of(series: Series) -> InputCase:
    uids = {name: uid for name in ("study_uid", "series_uid") if (uid := getattr(series, name))}
    if series.state == "loaded":
        notes = tuple(_in_words(note, series.all_files) for note in series.notes)
        return InputCase(series.case_id, series.all_files, replace(series, notes=notes), uids=uids)
    detail = series.detail.replace(series.series_uid, series.case_id) if series.series_uid else series.detail
    refusal = Refusal(series.reason or "refused", _in_words(detail, series.files))
    return InputCase(series.case_id, series.files, refusal=refusal, uids=uids)


def _in_words(detail: str, files: Sequence[Path]) -> str:
    """Return a detail whose files are numbered as `mapping.jsonl` lists them: their names may be a person's."""
    numbers = {str(path): index for index, path in enumerate(files, 1)}

    def number(match: re.Match[str]) -> str:
        return f"file {numbers[match[1]]} of {len(files)}" if match[1] in numbers else "a file"

    return re.sub(f"{_MARK}(.*?){_MARK}", number, detail, flags=re.DOTALL)


def _lost_folders(unreadable: Sequence[Path], heard: Sequence[Path], root: Path) -> list[InputCase]:
    """Return a refused case for each folder with unreadable files and no file of a case."""
    good = {path.parent for path in heard}
    folders: dict[Path, list[Path]] = {}
    for path in unreadable:
        if path.parent not in good:
            folders.setdefault(path.parent, []).append(path)
    return [
        InputCase(
            pseudonym("dcm", "folder", os.path.relpath(folder, root)),
            tuple(files),
            refusal=Refusal(
                "unreadable", f"{len(files)} file(s) of a folder cannot be read as DICOM, and no other is of a case"
            ),
        )
        for folder, files in folders.items()
    ]


def _advice(selected: SelectedCases) -> list[str]:
    return list(dict.fromkeys(left_out.advice for left_out in selected.not_selected if left_out.advice))


def _in_numbers(selected: SelectedCases) -> str:
    rules = Counter(left_out.rule for left_out in selected.not_selected)
    words = [f"{count} series left out by {rule}" for rule, count in rules.items()]
    words += [f"{count} {kind}" for kind, count in selected.passed_over.items()]
    return "; ".join(["no NIfTI file", *words])
