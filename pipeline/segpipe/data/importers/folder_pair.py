"""A folder that holds one folder of images and one of label maps, told by the names that people give these."""

from __future__ import annotations

from pathlib import Path

from segpipe.common.console import some_of
from segpipe.common.folder_walk import find_images
from segpipe.errors import UsageError

IMAGES = ("images", "image", "imgs", "img", "scans", "scan", "volumes", "volume", "imagestr")
LABELS = ("labels", "label", "masks", "mask", "segmentations", "segmentation", "segs", "seg", "labelstr")
MADE = "_for_segpipe"  # ends the names of folders that an import writes into the data


def is_folder_pair(source: Path) -> bool:
    """Return whether two folders, and no third one, hold images, and their names tell which has the label maps."""
    return _pair(_with_images(source)) is not None


def folder_pair(source: Path) -> tuple[Path, Path]:
    """Return the folder of images and that of label maps.

    Raises:
        UsageError: it cannot be told which they are.
    """
    folders = _with_images(source)
    pair = _pair(folders)
    if pair is None:
        raise UsageError(
            "which folder holds the images, and which the label maps?",
            path=source,
            found=some_of(folder.name for folder in folders) or "no folder with images",
            expected="images and labels, scans and masks, imagesTr and labelsTr, ..., and no third one",
            hint="name the two folders with --images DIR --labels DIR",
        )
    return pair


def some_folders(source: Path) -> str | None:
    """Return the names of the folders that hold images, in a line; None where there are none."""
    return some_of(folder.name for folder in _with_images(source)) or None


def _with_images(source: Path) -> list[Path]:
    if not source.is_dir():
        return []
    folders = [path for path in sorted(source.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return [folder for folder in folders if not folder.name.endswith(MADE) and find_images(folder).images]


def _pair(folders: list[Path]) -> tuple[Path, Path] | None:
    images = [folder for folder in folders if folder.name.lower() in IMAGES]
    labels = [folder for folder in folders if folder.name.lower() in LABELS]
    return (images[0], labels[0]) if len(folders) == 2 and images and labels else None
