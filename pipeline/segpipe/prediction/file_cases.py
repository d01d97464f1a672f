"""From files and folders, or a manifest, to the cases of a batch: each has a unique id and its files.

What cannot be a case is one that is refused, alone: it never ends the batch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.common.folder_walk import ImageFolder, files_of_image, find_images
from segpipe.common.image_names import EXPECTED, ending_of, image_stem, is_image
from segpipe.common.result_folder import MAPPING, RESULT, read_lines
from segpipe.data import data_root, ids_of_files, load_manifest, pseudonym
from segpipe.errors import UsageError
from segpipe.prediction.options import Options

if TYPE_CHECKING:
    from segpipe.dicom import Series


OF_FOLDERS = (  # options that say which images of a folder are taken, and how series are
    "only",
    "modality",
    "series_description",
    "min_slices",
    "max_slices",
    "series",
    "derived",
    "secondary_capture",
    "repair",
    "channel",
)
CHANNEL = re.compile(r"(?P<stem>.+)_(?P<index>\d{4})", re.DOTALL)


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
        paths: image files in the order of the channels, or all files of a DICOM series and its further channels.
        series: of a DICOM case that can be read.
        refusal: of a case that cannot.
        registered: whether its files are said to be registered, so that they may lie on different grids.
        covariates: what a manifest knows of who and how was scanned; of a DICOM series its header says it.
        uids: ``study_uid`` and ``series_uid``, which find a DICOM case in the archive; for ``mapping.jsonl`` alone.
    """

    id: str
    paths: tuple[Path, ...]
    series: Series | None = None
    refusal: Refusal | None = None
    registered: bool = False
    covariates: Mapping[str, str | float] = field(default_factory=dict)
    uids: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """Return all files that are read of it."""
        return self.paths if self.is_dicom else tuple(file for path in self.paths for file in files_of_image(path))

    @property
    def is_dicom(self) -> bool:
        """Return whether it is a DICOM series."""
        return self.series is not None or (self.refusal is not None and not any(map(is_image, self.paths[:1])))


def find_cases(
    inputs: Sequence[Path],
    channels: int,
    options: Options,
    out: Path | None = None,
    taken: Collection[str] = (),
    found: ImageFolder | None = None,
) -> list[InputCase]:
    """Return the cases of image files and folders (recursive), or of one manifest; none where there are none.

    With several channels, ``X_0000.nii.gz``, ``X_0001.nii.gz`` are one case ``X``, and a file without such an ending is
    a case with all its channels in it. Ids are those of `segpipe.data.ids_of_files`; hashes are of the path relative to
    the input folder (with several inputs: to the folder that holds them all), for ``pseudonymise`` of every case. A
    file that has a result keeps the id of it.

    Args:
        inputs: files, folders, or one manifest.
        channels: of the bundle.
        options: of the batch.
        out: results below it are passed over, and it says what ids files had.
        taken: ids that series have.
        found: what `look_into` found in them; None looks now.

    Raises:
        UsageError: no such input, a file of another kind, or options that do not go with it.
    """
    manifests = [path for path in inputs if is_manifest(path)]
    if manifests:
        _require_options_of_manifest(options)
        if len(inputs) > 1:
            raise UsageError("a manifest stands alone", found=f"{len(inputs)} inputs", hint="give one manifest")
        manifest, base = load_manifest(manifests[0]), data_root(manifests[0], options.data).absolute()
        listed = manifest.select(options.split or "all", options.fold)
        cases = [
            InputCase(
                case.id,
                tuple(base / image for image in case.images),
                registered=bool(case.registered),
                covariates={} if case.covariates is None else case.covariates.known,
            )
            for case in listed
        ]
    elif options.split is not None or options.fold is not None or options.data is not None:
        raise UsageError("--split, --fold and --data belong to a manifest", hint="give a manifest as the input")
    elif not inputs:
        return []
    else:
        base = Path(
            os.path.commonpath([path.absolute() if path.is_dir() else path.absolute().parent for path in inputs])
        )
        found = found or look_into(inputs, out)
        files = [] if options.only == "dicom" else found.images
        cases = [*_of_files(files, channels), *(_closed(folder) for folder in found.closed)]
    below = [os.path.relpath(case.paths[0], base) for case in cases]
    if options.pseudonymise:
        ids = [pseudonym("case", path) for path in below]
    else:
        named = [(case.id, path) for case, path in zip(cases, below, strict=True)]
        ids = _as_before(cases, named, taken, {} if manifests or out is None else _known_ids(out))
    if options.registered:
        cases = [replace(case, registered=True) for case in cases]
    return sorted((replace(case, id=id) for case, id in zip(cases, ids, strict=True)), key=lambda case: case.id)


def _require_options_of_manifest(options: Options) -> None:
    """Refuse what a manifest would pass over: which series of a folder are taken, and a fold of no split.

    Raises:
        UsageError: naming the option.
    """
    named = next((name for name in OF_FOLDERS if getattr(options, name)), None)
    if named is not None:
        option = named.replace("_", "-")
        raise UsageError(f"--{option} goes with files and folders", hint="a manifest says which files it means")
    if options.fold is not None and options.split not in ("validation", "training"):
        raise UsageError(
            "--fold chooses among training cases",
            found=f"--split {options.split} --fold {options.fold}" if options.split else f"--fold {options.fold}",
            hint=f"leave --fold out, or name --split validation --fold {options.fold}",
        )


def _as_before(
    cases: Sequence[InputCase], named: Sequence[tuple[str, str]], taken: Collection[str], known: Mapping[str, str]
) -> list[str]:
    """Return an id for each case: the one under which its file has a result, whatever lies beside it now."""
    ids = ids_of_files(named, taken)
    kept = {
        index: before
        for index, case in enumerate(cases)
        if (before := known.get(str(case.paths[0]), ids[index])) != ids[index] and before not in taken
    }
    if not kept:
        return ids
    others = [pair for index, pair in enumerate(named) if index not in kept]
    rest = iter(ids_of_files(others, [*taken, *kept.values()]))
    return [kept[index] if index in kept else next(rest) for index in range(len(cases))]


def _known_ids(out: Path) -> dict[str, str]:
    """Return the ids of finished cases by their first file."""
    sources = {
        entry["id"]: entry["paths"]
        for entry in read_lines(out / MAPPING)
        if isinstance(entry, dict)
        and isinstance(entry.get("id"), str)
        and "refused" not in entry
        and entry.get("paths")
    }
    return {str(paths[0]): id for id, paths in sources.items() if (out / id / RESULT).is_file()}


def is_manifest(path: Path) -> bool:
    """Return whether an input names a manifest."""
    return path.suffix.lower() == ".json"


def look_into(inputs: Sequence[Path], out: Path | None) -> ImageFolder:
    """Return what there is below files and folders, each entry once, with absolute paths.

    Raises:
        UsageError: no such input, or a file that is no image.
    """
    every = ImageFolder()
    for path in inputs:
        path = path.absolute()
        if path.is_dir():
            found = find_images(path, out)
            every.images.extend(found.images)
            every.hidden.extend(found.hidden)
            every.closed.extend(found.closed)
            every.others.extend(found.others)
        elif not path.exists():
            raise UsageError("no such file or folder", path=path, hint="check the path")
        elif not is_image(path):
            raise UsageError("not a file of an image", path=path, expected=EXPECTED)
        else:
            every.images.append(path)
    return ImageFolder(*(list(dict.fromkeys(part)) for part in vars(every).values()))


def _closed(folder: Path) -> InputCase:
    return InputCase("", (folder,), refusal=Refusal("unreadable", "a folder that cannot be listed: what is in it?"))


def _of_files(files: Sequence[Path], channels: int) -> list[InputCase]:
    """Group files to cases by their names; ids are not unique yet."""
    names = {path: image_stem(path) for path in files}
    suffixed = {path: match for path, name in names.items() if (match := CHANNEL.fullmatch(name))}
    if channels == 1:  # the suffix of a single channel is no part of the name, where all files carry it
        bare = len(suffixed) == len(names) and all(match["index"] == "0000" for match in suffixed.values())
        return [InputCase(suffixed[path]["stem"] if bare else name, (path,)) for path, name in names.items()]
    cases = [InputCase(name, (path,)) for path, name in names.items() if path not in suffixed]
    groups: dict[tuple[Path, str], dict[int, list[Path]]] = {}
    for path, match in suffixed.items():
        group = groups.setdefault((path.parent, match["stem"]), {})
        group.setdefault(int(match["index"]), []).append(path)
    for (folder, stem), group in groups.items():  # the name of one that is missing keeps its place: none moves up
        first = group[min(group)][0]
        paths = [
            file
            for index in range(max(group) + 1)
            for file in group.get(index, [folder / f"{stem}_{index:04}{ending_of(first)}"])
        ]
        twice = next((index for index, paths in group.items() if len(paths) > 1), None)
        words = f"{len(group[twice])} files are channel {twice}; keep one" if twice is not None else ""
        cases.append(InputCase(stem, tuple(paths), refusal=Refusal("ambiguous_channels", words) if words else None))
    return cases
