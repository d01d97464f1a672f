"""From what the user names to the cases of a batch: NIfTI files, a manifest's cases, and DICOM series.

Each has a unique id and its files. A series that a rule leaves out is listed with the rule's name; what makes no volume
is a case that is refused.
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

from segpipe.common.nifti import find_nifti
from segpipe.common.result_folder import RESERVED
from segpipe.data import CASE_ID, data_root, load_manifest
from segpipe.errors import DataError, UsageError
from segpipe.prediction.options import Options, SeriesFilter, make_filter

if TYPE_CHECKING:
    from segpipe.dicom import Scan, Series


NAME = re.compile(r"(?P<id>(?P<stem>.+)_(?P<index>\d{4})|.*?)(?P<ending>\.nii(\.gz)?)", re.DOTALL | re.IGNORECASE)
ENDINGS = (".nii", ".nii.gz")
Progress = Callable[[int, int], object]  # files read, of all files
_MARK = "\x02"  # around a path in words; no file name of a scan has it


@dataclass(frozen=True)
class Refusal:
    """Why a case cannot be segmented: one word, and a sentence without paths and header text."""

    reason: str
    detail: str


@dataclass(frozen=True)
class InputCase:
    """One case.

    Attributes:
        id: unique in the batch.
        paths: NIfTI files in the order of the channels, or all files of a DICOM series.
        series: of a DICOM case that can be read.
        refusal: of a DICOM case that cannot.
    """

    id: str
    paths: tuple[Path, ...]
    series: Series | None = None
    refusal: Refusal | None = None

    @property
    def is_dicom(self) -> bool:
        """Return whether it is a DICOM series."""
        return self.series is not None or self.refusal is not None


@dataclass(frozen=True)
class NotSelected:
    """A series that a rule left out."""

    id: str
    rule: str

    @property
    def advice(self) -> str:
        """How to have it taken all the same; empty where that is plain."""
        kind, _, kinds = self.rule.partition(": ")
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
        UsageError: no such input, a name that cannot be an id, or one id for two cases.
        DataError: nothing to segment was found.
    """
    plain = [path for path in inputs if path.is_dir() or is_nifti(path) or is_manifest(path) or not path.exists()]
    cases = find_cases(plain, channels, options, out)
    mixed = [path for path in inputs if not is_manifest(path) and _may_hold_dicom(path, out)]
    selected = SelectedCases()
    if mixed:
        selected = select_series(mixed, make_filter(metadata, channels, options), out, progress, options.repair)
    if not cases and not selected.cases:
        raise DataError(
            "nothing to segment",
            path=", ".join(map(str, inputs)),
            found=_in_numbers(selected),
            expected="files that end in .nii or .nii.gz, or DICOM series",
            hint="; ".join(["check the path and the rules", *_advice(selected)]),
        )
    cases = sorted([*cases, *selected.cases], key=lambda case: case.id)
    require_unique(cases)
    return replace(selected, cases=cases)


def find_cases(inputs: Sequence[Path], channels: int, options: Options, out: Path | None = None) -> list[InputCase]:
    """Return the NIfTI cases of files and folders (recursive), or of one manifest; none where there are none.

    With several channels, ``X_0000.nii.gz``, ``X_0001.nii.gz`` are one case ``X``, and a file without such an ending is
    a case with all its channels in it. A pseudonym is the hash of the path relative to the input folder (with several
    inputs: to the folder that holds them all).

    Raises:
        UsageError: no such input, a name that cannot be an id, or one id for two cases.
    """
    manifests = [path for path in inputs if is_manifest(path)]
    if manifests:
        if len(inputs) > 1:
            raise UsageError("a manifest stands alone", found=f"{len(inputs)} inputs", hint="give one manifest")
        manifest, root = load_manifest(manifests[0]), data_root(manifests[0], options.data).absolute()
        listed = manifest.select(options.split or "all", options.fold)
        cases = [InputCase(case.id, tuple(root / image for image in case.images)) for case in listed]
    elif options.split is not None or options.fold is not None or options.data is not None:
        raise UsageError("--split, --fold and --data belong to a manifest", hint="give a manifest as the input")
    else:
        cases = _of_files(_files(inputs, out), channels)
    if options.pseudonymise and cases:
        folders = [path.absolute() if path.is_dir() else path.absolute().parent for path in inputs]
        base = data_root(manifests[0], options.data) if manifests else Path(os.path.commonpath(folders))
        cases = [
            InputCase(_pseudonym("case", case.paths[0].relative_to(base).as_posix()), case.paths) for case in cases
        ]
    require_unique(cases)
    return sorted(cases, key=lambda case: case.id)


def is_manifest(path: Path) -> bool:
    """Return whether an input names a manifest."""
    return path.suffix.lower() == ".json"


def is_nifti(path: Path) -> bool:
    """Return whether a file is NIfTI by its name."""
    return path.name.lower().endswith(ENDINGS)


def _files(inputs: Sequence[Path], out: Path | None) -> list[Path]:
    paths: dict[Path, None] = {}
    inside = out.absolute() if out is not None else None
    for path in inputs:
        path = path.absolute()
        if path.is_dir():
            below = find_nifti(path)
            paths |= dict.fromkeys(file for file in below if inside is None or inside not in file.parents)
        elif not path.exists():
            raise UsageError("no such file or folder", path=path, hint="check the path")
        elif not is_nifti(path):
            raise UsageError("not a NIfTI file", path=path, expected="a name that ends in .nii or .nii.gz")
        else:
            paths[path] = None
    return list(paths)


def _of_files(files: Sequence[Path], channels: int) -> list[InputCase]:
    names = {path: match for path in files if (match := NAME.fullmatch(path.name))}
    if channels == 1:  # the suffix of a single channel is no part of the name, where all files carry it
        part = "stem" if all(name["index"] == "0000" for name in names.values()) else "id"
        return [InputCase(name[part], (path,)) for path, name in names.items()]
    cases = [InputCase(name["id"], (path,)) for path, name in names.items() if not name["index"]]
    groups: dict[tuple[Path, str], dict[int, Path]] = {}
    for path, name in names.items():
        if name["index"]:
            group = groups.setdefault((path.parent, name["stem"]), {})
            first = group.setdefault(int(name["index"]), path)
            if first is not path:
                raise UsageError(
                    "two files are the same channel of a case", path=f"{first} and {path}", hint="remove one of them"
                )
    for (folder, stem), group in groups.items():  # the name of one that is missing keeps its place: none moves up
        ending = names[next(iter(group.values()))]["ending"]
        paths = [group.get(index, folder / f"{stem}_{index:04}{ending}") for index in range(max(group) + 1)]
        cases.append(InputCase(stem, tuple(paths)))
    return cases


def require_unique(cases: Sequence[InputCase]) -> None:
    """Refuse names that cannot be ids, and one id for two cases.

    Raises:
        UsageError: there is such a name or id.
    """
    first_of: dict[str, InputCase] = {}
    for case in cases:
        if not CASE_ID.match(case.id) or case.id in RESERVED:
            raise UsageError(
                "this file name cannot be a case id",
                path=case.paths[0],
                found=case.id,
                expected="at most 128 letters, digits, '.', '_' and '-', a letter or digit first",
                hint="rename the file, or give --pseudonymise",
            )
        first = first_of.setdefault(case.id, case)
        if first is not case:
            raise UsageError(
                "two inputs would get the same case id",
                path=f"{first.paths[0]} and {case.paths[0]}",
                found=case.id,
                hint="rename one, predict them into two folders, or give --pseudonymise",
            )


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


def select_series(
    roots: Sequence[Path],
    series_filter: SeriesFilter,
    out: Path | None = None,
    progress: Progress | None = None,
    repairs: Sequence[str] = (),
) -> SelectedCases:
    """Scan for series and judge them by the filter.

    A folder in which nothing but unreadable DICOM was found is a refused case as well, so that nobody waits for it.

    Args:
        roots: folders and files.
        series_filter: which to take.
        out: results below it are not looked at.
        progress: called with the number of files read and of all files.
        repairs: what refused series are resampled for.

    Raises:
        UsageError: a root does not exist, or is a file of another kind.
    """
    from segpipe.dicom import repaired, scan

    scanned = scan(roots, progress=progress, name=lambda path: f"{_MARK}{path}{_MARK}")
    inside = out.absolute() if out is not None else None

    def is_input(path: Path) -> bool:
        return inside is None or inside not in path.absolute().parents

    candidates = [repaired(series, repairs) for series in _with_own_ids(scanned) if is_input(series.files[0])]
    known = {name for series in candidates for name in (series.series_uid, series.case_id)}
    for name in series_filter.names:
        if name not in known:
            raise UsageError("no such series", found=name, hint="`segpipe scan` lists those that are there")
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
        dict(Counter(file.kind for file in others)),
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
            series = replace(series, case_id=_pseudonym("dcm", *words))
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
            _pseudonym("dcm", "folder", os.path.relpath(folder, root)),
            tuple(files),
            refusal=Refusal("unreadable", f"none of {len(files)} file(s) of a folder can be read as DICOM"),
        )
        for folder, files in folders.items()
    ]


def _pseudonym(kind: str, *words: str) -> str:
    return f"{kind}-" + hashlib.sha256(b"\0".join(os.fsencode(word) for word in words)).hexdigest()[:12]


def _advice(selected: SelectedCases) -> list[str]:
    return list(dict.fromkeys(left_out.advice for left_out in selected.not_selected if left_out.advice))


def _in_numbers(selected: SelectedCases) -> str:
    rules = Counter(left_out.rule for left_out in selected.not_selected)
    words = [f"{count} series left out by {rule}" for rule, count in rules.items()]
    words += [f"{count} {kind}" for kind, count in selected.passed_over.items()]
    return "; ".join(["no NIfTI file", *words])
