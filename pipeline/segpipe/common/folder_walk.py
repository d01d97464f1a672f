"""Every entry of a folder tree, once: none vanishes for being a link to nothing, a pipe, or in a closed folder.

Links to folders are followed after everything else, and no folder is entered twice, so a loop of links ends, and a file
keeps the name that it has without links.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from segpipe.common.image_names import PAIR, ending_of, is_image
from segpipe.common.nifti_bytes import header_of_pair, voxels_of_pair
from segpipe.common.rasters import is_raster, read_raster
from segpipe.errors import SegpipeError

Folder: TypeAlias = tuple[int, int]  # device and inode
Key: TypeAlias = tuple[Folder, str]
NOT_A_FILE = "not a regular file"


@dataclass(frozen=True, order=True)
class Entry:
    """What a tree has at a place.

    Attributes:
        path: as it was come to.
        key: of the file, by whatever path: its folder's device and inode, and its name there.
        fault: why it cannot be opened as a file; empty where it can.
        is_link: whether it is a link to a file.
        is_folder: whether it is a folder that cannot be listed.
    """

    path: Path
    key: Key
    fault: str = ""
    is_link: bool = False
    is_folder: bool = False


@dataclass(frozen=True)
class ImageFolder:
    """The entries of a tree by what their names say, each sorted.

    Attributes:
        images: named like an image, also those that cannot be opened: who reads them says so.
        hidden: named like an image, and hidden by a dot (``._scan.nii.gz``) in their name or in a folder's.
        closed: folders that cannot be listed.
        others: all else.
    """

    images: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    closed: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def walk_folders(tops: Sequence[Path]) -> list[Entry]:
    """Return every entry below the folders that is no folder, and every folder that cannot be listed."""
    entries: list[Entry] = []
    entered: set[Folder] = set()
    waiting = list(tops)
    while waiting:
        links: list[Path] = []
        for top in waiting:
            _walk(top, entered, entries, links)
        waiting = links
    return entries


def key_of(path: Path) -> Key:
    """Return the key of a file whose path has no links in it."""
    return _folder(path.parent), path.name


def find_images(top: Path, outside: Path | None = None) -> ImageFolder:
    """Sort the entries below a folder.

    Args:
        top: the folder.
        outside: a folder whose entries are passed over, wherever links lead to it.
    """
    found = ImageFolder()
    results = None if outside is None else os.path.realpath(outside)
    real = lru_cache(maxsize=None)(os.path.realpath)
    for entry in sorted(walk_folders([top])):
        path = entry.path
        if results is not None and _is_below(real(path.parent), results):
            continue
        if entry.is_folder:
            found.closed.append(path)
        elif path.suffix.lower() == ".img" and header_of_pair(path).exists():
            continue  # a part of that image
        elif (ending_of(path) == PAIR and not voxels_of_pair(path).exists()) or not is_image(path):
            found.others.append(path)
        elif any(part.startswith(".") for part in path.relative_to(top).parts):
            found.hidden.append(path)
        else:
            found.images.append(path)
    return found


def files_of_image(path: Path) -> tuple[Path, ...]:
    """Return the files that an image lies in: its own, and that of its voxels where a header names another."""
    if ending_of(path) == PAIR:
        return path, voxels_of_pair(path)
    if is_raster(path):
        with suppress(SegpipeError):  # who reads the voxels says what is wrong
            return tuple(dict.fromkeys((path, read_raster(path).data)))
    return (path,)


def _is_below(folder: str, top: str) -> bool:
    return folder == top or folder.startswith(top.rstrip(os.sep) + os.sep)


def _walk(top: Path, entered: set[Folder], entries: list[Entry], links: list[Path]) -> None:
    """Walk without recursion, which would end at a depth of a thousand folders."""
    waiting = [str(top)]
    while waiting:
        name = waiting.pop()
        try:
            here = _folder(name)
            if here in entered:
                continue
            entered.add(here)
            with os.scandir(name) as found:
                listed = list(found)
        except OSError as error:
            fault = f"the folder cannot be listed ({error.strerror})"
            entries.append(Entry(Path(name), ((0, 0), name), fault, is_folder=True))
            continue
        for entry in listed:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif _is_folder(entry):
                links.append(Path(entry.path))
            else:
                entries.append(_judged(entry, here))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _judged(entry: os.DirEntry[str], here: Folder) -> Entry:
    path, key, fault, linked = Path(entry.path), (here, entry.name), "", False
    try:
        linked = entry.is_symlink()
        if not entry.is_file():
            entry.stat()  # says why a link leads nowhere
            fault = NOT_A_FILE
        elif linked:
            key = key_of(path.resolve())
    except OSError as error:  # or a file that went away while the tree was walked
        words = {errno.ENOENT: "a link to nothing", errno.ELOOP: "a link in a circle"}
        fault = words.get(error.errno or 0, error.strerror or "it cannot be looked at")
    return Entry(path, key, fault, linked)


def _folder(path: str | Path) -> Folder:
    status = Path(path).stat()
    return status.st_dev, status.st_ino
