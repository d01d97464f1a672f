"""From what the user names to a list of cases, each with a unique id and its files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.common.nifti import find_nifti
from segpipe.common.result_folder import RESERVED
from segpipe.data import CASE_ID, data_root, load_manifest
from segpipe.errors import UsageError

if TYPE_CHECKING:
    from segpipe.dicom import Series


NAME = re.compile(r"(?P<id>(?P<stem>.+)_(?P<index>\d{4})|.*?)(?P<ending>\.nii(\.gz)?)", re.DOTALL | re.IGNORECASE)
ENDINGS = (".nii", ".nii.gz")


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


def find_cases(
    inputs: Sequence[Path],
    channels: int,
    *,
    out: Path | None = None,
    pseudonymise: bool = False,
    split: str | None = None,
    fold: int | None = None,
    data: Path | None = None,
) -> list[InputCase]:
    """Return the NIfTI cases of files and folders (recursive), or of one manifest; none where there are none.

    Args:
        inputs: NIfTI files and folders, or one manifest (``.json``).
        channels: of the bundle; with more than one, ``X_0000.nii.gz``, ``X_0001.nii.gz`` are one case ``X``, and a
            file without such an ending is a case with all its channels in it.
        out: results found below it are passed over.
        pseudonymise: name cases by the hash of their path relative to the input folder (with several inputs:
            to the folder that holds them all).
        split: of the manifest (see `Manifest.select`); None takes all cases.
        fold: of the manifest.
        data: folder of the manifest's files.

    Raises:
        UsageError: no such input, a name that cannot be an id, or one id for two cases.
    """
    manifests = [path for path in inputs if is_manifest(path)]
    if manifests:
        if len(inputs) > 1:
            raise UsageError("a manifest stands alone", found=f"{len(inputs)} inputs", hint="give one manifest")
        cases = _of_manifest(manifests[0], split, fold, data)
    elif split is not None or fold is not None or data is not None:
        raise UsageError("--split, --fold and --data belong to a manifest", hint="give a manifest as the input")
    else:
        cases = _of_files(_files(inputs, out), channels)
    if pseudonymise and cases:
        base = _base(inputs) if not manifests else data_root(manifests[0], data)
        cases = [InputCase(_pseudonym(case.paths[0], base), case.paths) for case in cases]
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


def _of_manifest(path: Path, split: str | None, fold: int | None, data: Path | None) -> list[InputCase]:
    manifest = load_manifest(path)
    root = data_root(path, data).absolute()
    return [
        InputCase(case.id, tuple(root / image for image in case.images))
        for case in manifest.select(split or "all", fold)
    ]


def _base(inputs: Sequence[Path]) -> Path:
    folders = [path.absolute() if path.is_dir() else path.absolute().parent for path in inputs]
    return Path(os.path.commonpath(folders))


def _pseudonym(path: Path, base: Path) -> str:
    relative = path.relative_to(base).as_posix()
    return "case-" + hashlib.sha256(os.fsencode(relative)).hexdigest()[:12]


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
