"""In a new environment with what the README says, or a bundle names, stock MONAI gives the bundle's golden case."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from docs.pages import blocks
from segpipe.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
NO_REGISTRY = "pip reaches no registry of packages"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def needs(root: Path) -> list[str]:
    """What the metadata says that stock MONAI needs, as pip takes it."""
    metadata = json.loads((root / "configs/metadata.json").read_text())
    main = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    named = {package: metadata[key] for package, key in main.items()}
    return [f"{package}=={version}" for package, version in (named | metadata["required_packages_version"]).items()]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    """The Python of a new environment with what the bundles need."""
    folder = tmp_path_factory.mktemp("new") / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, env=clean())
    found = folder / "bin" / "python"
    wanted = sorted({need for root in (*SHIPPED, bundle.root) for need in needs(root)})
    pip = [str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    small = next(need for need in wanted if need.startswith("fire=="))
    if subprocess.run([*pip, small], env=clean(), capture_output=True, check=False).returncode:
        pytest.skip(NO_REGISTRY)
    run([*pip, *readme()[0][2:]])
    run_readme(found, folder.parent)
    run([*pip, *wanted, "-c", str(ROOT / "constraints.txt")])
    ours = subprocess.run([str(found), "-c", "import segpipe"], env=clean(), cwd=folder, check=False)
    assert ours.returncode == 1
    return found


def readme() -> list[list[str]]:
    """The commands with which the README installs and runs stock MONAI alone."""
    text = next(block.text for block in blocks("sh") if block.page == "README.md" and "monai.bundle run" in block.text)
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]


def run(words: list[str], folder: Path | None = None) -> None:
    done = subprocess.run(words, env=clean(), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def run_readme(python: Path, folder: Path) -> None:
    """Run the README's own line on the golden image, with what its own line installed."""
    words = readme()[1]
    root = ROOT / words[words.index("--bundle_root") + 1]
    (folder / "bundles").symlink_to(root.parent)
    (folder / "scans").symlink_to(root / "golden/images")
    assert words[0] == "python"
    run([str(python), *words[1:]], folder)
    (file,) = (folder / "out").iterdir()
    expected = np.asarray(nib.load(root / "golden/labels.nii.gz").dataobj)
    assert np.array_equal(np.asarray(nib.load(file).dataobj), expected)


def run_golden(python: Path, root: Path, out: Path) -> np.ndarray:
    command = [
        str(python),
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        str(root / "configs/inference.json"),
        "--bundle_root",
        str(root),
        "--dataset_dir",
        str(root / "golden/images"),
        "--output_dir",
        str(out / "seg"),
    ]
    run(command, out)
    (file,) = (out / "seg").iterdir()
    return np.asarray(nib.load(file).dataobj)


@pytest.mark.parametrize("root", [*SHIPPED, None], ids=lambda root: root.name if root else "exported now")
def test_stock_inference_gives_the_recorded_label_map(
    python: Path, bundle: Bundle, root: Path | None, tmp_path: Path
) -> None:
    root = root or bundle.root
    if not (root / "golden").exists():
        assert "golden" not in json.loads((root / "configs/metadata.json").read_text())
        return
    expected = np.asarray(nib.load(root / "golden/labels.nii.gz").dataobj)
    assert len(np.unique(expected)) > 1
    assert np.array_equal(run_golden(python, root, tmp_path), expected)
