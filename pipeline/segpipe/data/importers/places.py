"""Where an import writes: the manifest, which replaces none unasked, and the files that it makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segpipe.errors import UsageError


@dataclass(frozen=True)
class Place:
    """Where the results go: the manifest, the NIfTI files, and the folder that the manifest's paths start from."""

    manifest: Path
    folder: Path
    root: Path


def place_of(source: Path, output: Path | None, converted: str | Path | None) -> Place:
    """Put NIfTI files into ``converted``, else beside the manifest, else beside the source with the manifest in it."""
    if converted:
        folder = Path(converted)
    elif output is not None:
        folder = output.parent / f"{output.stem}_nifti"
    else:
        folder = source.resolve().with_name(f"{source.resolve().name}_nifti")
    manifest = output or folder / "manifest.json"
    folder, parent = folder.resolve(), manifest.resolve().parent
    return Place(manifest, folder, parent if folder.is_relative_to(parent) else folder)


def require_new(path: Path, overwrite: bool) -> Path:
    """Return where a manifest is to be written.

    Raises:
        UsageError: there is one, which is not to be replaced.
    """
    if path.exists() and not overwrite:
        raise UsageError(
            "there is a manifest already",
            path=path,
            hint="choose another file with -o, or replace it and its split with --overwrite",
        )
    return path


def require_beside(path: Path, root: Path) -> None:
    """Require that a manifest whose data are those of another one is written into their folder.

    Raises:
        UsageError: its paths would start from another folder.
    """
    if path.resolve().parent != root:
        raise UsageError("the manifest would lie elsewhere than its data", path=path, expected=f"a file in {root}")
