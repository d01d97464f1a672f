"""Every file below some folders, once, in a fixed order."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from segpipe.dicom.model import PassedOver
from segpipe.errors import UsageError


def walk(roots: Sequence[Path]) -> tuple[Path, list[Path], list[PassedOver]]:
    """Find the files of one or several folders (or single files).

    Links to folders are followed after everything else, and no folder is entered twice, so that a loop of links
    ends and a file keeps the name that it has without links.

    Returns:
        The folder that names can be relative to, the regular files, and what cannot be opened as a file.

    Raises:
        UsageError: a root does not exist.
    """
    for root in roots:
        if not root.exists():
            raise UsageError("no such file or folder", path=root, hint="check the path")
    folders = [root if root.is_dir() else root.parent for root in roots]
    files = {root.resolve(): root for root in roots if not root.is_dir()}
    odd: list[PassedOver] = []
    entered: set[str] = set()
    waiting = [root for root in roots if root.is_dir()]
    while waiting:
        links: list[Path] = []
        for folder in waiting:
            _walk_folder(folder, entered, files, links, odd)
        waiting = [link for link in links if link.is_dir() and os.path.realpath(link) not in entered]
        for link in links:
            if not link.is_dir() and files.setdefault(link.resolve(), link) != link:
                odd.append(PassedOver(link, "not_dicom", "a link to a file that is there already"))
    top = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    base = folders[0] if len(roots) == 1 else top
    return base, sorted(files.values()), odd


def _walk_folder(
    top: Path, entered: set[str], files: dict[Path, Path], links: list[Path], odd: list[PassedOver]
) -> None:
    def unlisted(error: OSError) -> None:
        odd.append(PassedOver(Path(error.filename), "unreadable", "the folder cannot be listed"))

    for name, folders, names in os.walk(top, onerror=unlisted):
        here = os.path.realpath(name)
        if here in entered:
            folders.clear()
            continue
        entered.add(here)
        links += [Path(name, folder) for folder in folders if Path(name, folder).is_symlink()]
        for path in (Path(name, file) for file in names):
            kind = _kind(path)
            if kind == "link":
                links.append(path)
            elif kind:
                odd.append(PassedOver(path, "not_dicom", kind))
            else:
                files.setdefault(Path(here, path.name), path)


def _kind(path: Path) -> str:
    """Empty for a regular file, ``link`` for a link to one, else what it is."""
    try:
        mode = path.lstat().st_mode
        linked = stat.S_ISLNK(mode)
        if linked:
            mode = path.stat().st_mode
    except OSError:  # or a file that went away while the tree was walked
        return "a link to nothing"
    if not stat.S_ISREG(mode):
        return "not a regular file"
    return "link" if linked else ""
