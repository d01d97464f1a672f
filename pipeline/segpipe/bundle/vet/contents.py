"""What each file of a bundle is, told from its name and from its first bytes: a document, weights, data, or code."""

from __future__ import annotations

import importlib.machinery
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from segpipe.bundle.vet.arrays import vet_array_file, vet_arrays
from segpipe.bundle.vet.bundle_files import DOCUMENTS, LOGGING, Finding
from segpipe.bundle.vet.weights import vet_onnx, vet_safetensors, vet_torch_file

MOST_PACKED = 64  # looking into each may take a second
_TORCH = (".pt", ".pth", ".ckpt", ".bin")
_PACKED = (*_TORCH, ".npz")
_CHECKED = {
    **dict.fromkeys(_TORCH, vet_torch_file),
    ".npy": vet_array_file,
    ".npz": vet_arrays,
    ".safetensors": vet_safetensors,
    ".onnx": vet_onnx,
}
_DATA = ".md .txt .rst .csv .tsv .cff .png .jpg .jpeg .gif .nii .gz .nrrd .mha .dcm .sig .pem .pub"
_PLAIN_NAMES = "license licence notice readme changelog authors sha256sums .gitignore .gitattributes"
_NEVER = {
    "compiled Python, which nobody can read": ".pyc .pyo",
    "a program library": ".so .pyd .dll .dylib",
    "a pickle, which is code": ".pkl .pickle .joblib .dill",
    "packed Python": ".egg .whl .pyz",
    "an archive in the archive": ".zip .tar .7z",
}
_DISGUISED = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "a zip archive",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x93NUMPY": "an array",
    b"\x7fELF": "a program",
    b"MZ\x90\x00": "a program",
    b"#!": "a program",
}


def vet_contents(root: Path) -> Iterator[Finding]:
    """Yield weights that are more than tensors, arrays of objects, code, programs, and files of no known kind."""
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    modes = {file: path.stat().st_mode for file, path in files.items()}
    programs = [file for file, mode in modes.items() if mode & 0o111]
    if len(programs) < len(files):  # else a file system that knows no permissions
        for file in programs:
            yield Finding(
                file, "", stat.filemode(modes[file]), "it is said to be a program: chmod a-x takes that away", file
            )
    packed = [file for file, path in files.items() if path.suffix.lower() in _PACKED]
    if len(packed) > MOST_PACKED:
        yield Finding("", "", f"{len(packed)} files", f"more than {MOST_PACKED} files of weights or packed arrays")
        return
    for file, path in files.items():
        yield from _vet_file(path, file)


def _vet_file(path: Path, file: str) -> Iterator[Finding]:
    suffix = path.suffix.lower()
    if suffix in _CHECKED:
        yield from _CHECKED[suffix](path, file)
    elif why := next((why for why, suffixes in _NEVER.items() if suffix in suffixes.split()), None):
        if path.parent.name == "__pycache__":
            why += "; Python makes it where a bundle's own code is run: delete the folder, and nothing is lost"
        yield Finding(file, "", path.name, why)
    elif suffix == ".py":
        if shadowed := _shadowed(file):
            yield Finding(file, "", path.name, f"it would be imported in the place of the installed {shadowed}")
        else:
            yield Finding(file, "", path.name, "code of the bundle's own, which its targets or imports would run", file)
    elif suffix == ".ts":
        yield Finding(file, "", path.name, "TorchScript, which is code and not plain tensors", file)
    elif suffix not in (*_DATA.split(), *DOCUMENTS, *LOGGING) and path.name.lower() not in _PLAIN_NAMES.split():
        yield Finding(file, "", path.name, "a file of no known kind", file)
    else:
        with path.open("rb") as stream:
            head = stream.read(8)
        if kind := next((kind for start, kind in _DISGUISED.items() if head.startswith(start)), None):
            yield Finding(file, "", path.name, f"it is {kind} under the name of something else", file)


def _shadowed(file: str) -> str | None:
    """Return the installed or standard module that a file would come before, as the bundle's root is searched early."""
    parts = file.removesuffix(".py").removesuffix(".PY").split("/")
    if parts[0] == "scripts" or (len(parts) > 1 and parts[0] in ("configs", "docs", "models")):
        return None
    if parts[0] in sys.stdlib_module_names or parts[0] in ("sitecustomize", "usercustomize"):
        return parts[0]
    elsewhere = [entry for entry in sys.path if entry and Path(entry).name in ("site-packages", "dist-packages")]
    found = importlib.machinery.PathFinder.find_spec(parts[0], elsewhere)
    return parts[0] if found or parts[0] == "segpipe" else None
