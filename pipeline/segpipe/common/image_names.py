"""Which file names are those of images, and what is left of a name without its ending."""

from __future__ import annotations

from pathlib import Path

NIFTI = (".nii.gz", ".nii")
PACKED = tuple(f".nii.{word}" for word in ("bz2", "xz", "zst", "lz4", "zip", "7z", "z"))  # named to be refused
PAIR = ".hdr"  # beside its .img
RASTERS = (".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh")
ENDINGS = (*NIFTI, PAIR, *RASTERS)
EXPECTED = "a name that ends in .nii, .nii.gz, .hdr, .nrrd, .nhdr, .mha, .mhd, .mgz or .mgh"


def is_image(path: str | Path) -> bool:
    """Return whether a file is an image by its name, in letters of any case."""
    return ending_of(path) is not None


def ending_of(path: str | Path) -> str | None:
    """Return the ending that makes a name that of an image, in small letters; None where it is none."""
    name = Path(path).name.lower()
    return next((ending for ending in (*ENDINGS, *PACKED) if name.endswith(ending)), None)


def image_stem(path: str | Path) -> str:
    """Return a file name without the ending of an image, or else without its last one."""
    name, ending = Path(path).name, ending_of(path)
    return name[: -len(ending)] if ending else Path(path).stem


def is_nifti(path: str | Path) -> bool:
    """Return whether a file is NIfTI in one file by its name, which training and every bundle can read."""
    return ending_of(path) in NIFTI
