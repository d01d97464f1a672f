"""What each file of a bundle is: a document, weights, data, or code that could be imported or run."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.bundle.finding import Finding
from pipeline.bundle.weights import vet_array, vet_arrays, vet_torch_file

DOCUMENTS = (".json", ".yaml", ".yml")
LOGGING = (".conf", ".ini", ".cfg")
TORCH = (".pt", ".pth", ".ckpt", ".bin")
_DATA = ".md .txt .rst .csv .tsv .cff .png .jpg .jpeg .gif .nii .gz .nrrd .mha .dcm .onnx .safetensors .sig .pem .pub"
_PLAIN_NAMES = "license licence notice readme changelog authors sha256sums .gitignore .gitattributes"
_NEVER = {
    "compiled Python, which nobody can read": ".pyc .pyo",
    "a program library": ".so .pyd .dll .dylib",
    "a pickle, which is code": ".pkl .pickle .joblib .dill",
    "packed Python": ".egg .whl .pyz",
    "an archive in the archive": ".zip .tar .7z",
}


def vet_contents(root: Path) -> Iterator[Finding]:
    """Weights that are more than tensors, arrays of objects, code, and files of no known kind."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            yield from _vet_file(path, path.relative_to(root).as_posix())


def _vet_file(path: Path, file: str) -> Iterator[Finding]:
    suffix = path.suffix.lower()
    if suffix in TORCH:
        yield from vet_torch_file(path, file)
    elif suffix == ".npy":
        with path.open("rb") as stream:
            yield from vet_array(stream, file)
    elif suffix == ".npz":
        yield from vet_arrays(path, file)
    elif why := next((why for why, suffixes in _NEVER.items() if suffix in suffixes.split()), None):
        yield Finding(file, "", path.name, why)
    elif suffix == ".py":
        shadowed = _shadowed(file)
        if shadowed:
            yield Finding(
                file, "", path.name, f"it would be imported in the place of the installed {shadowed}"
            )
        else:
            yield Finding(
                file, "", path.name, "code of the bundle's own, which its targets or imports would run", file
            )
    elif suffix == ".ts":
        yield Finding(file, "", path.name, "TorchScript, which is code and not plain tensors", file)
    elif (
        suffix not in (*_DATA.split(), *DOCUMENTS, *LOGGING) and path.name.lower() not in _PLAIN_NAMES.split()
    ):
        yield Finding(file, "", path.name, "a file of no known kind", file)


def _shadowed(file: str) -> str | None:
    """The installed or standard module that a file of the bundle would come before, as its root is searched early."""
    parts = file.removesuffix(".py").removesuffix(".PY").split("/")
    if parts[0] == "scripts" or (len(parts) > 1 and parts[0] in ("configs", "docs", "models")):
        return None
    if parts[0] in sys.stdlib_module_names or parts[0] in ("sitecustomize", "usercustomize"):
        return parts[0]
    elsewhere = [
        entry for entry in sys.path if entry and Path(entry).name in ("site-packages", "dist-packages")
    ]
    found = importlib.machinery.PathFinder.find_spec(parts[0], elsewhere)
    return parts[0] if found or parts[0] == "pipeline" else None
