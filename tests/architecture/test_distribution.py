"""The wheel and the sdist, built and installed into a new environment, are whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from segpipe import __version__

ROOT = Path(__file__).resolve().parents[2]
NO_REGISTRY = "pip reaches no registry of packages"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CODE = """
import json, sys
from importlib.metadata import entry_points, metadata
from importlib.resources import files
import segpipe
package = files("segpipe")
print(json.dumps({
    "file": segpipe.__file__,
    "requires": metadata("segpipe")["Requires-Python"],
    "heavy": sorted({"torch", "monai", "numpy"} & set(sys.modules)),
    "there": [name for name in sys.argv[1:] if package.joinpath(name).is_file()],
}))
"""


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=clean(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that has segpipe's requirements, the builder, and not segpipe."""
    folder = tmp_path_factory.mktemp("new") / "environment"
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "hatchling"]
    if subprocess.run(pip, env=clean(), capture_output=True, check=False).returncode:
        pytest.skip(NO_REGISTRY)
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "requirements.pth").write_text(  # a folder of site-packages whose own .pth files are not read
        f"import sys; sys.path.append({sysconfig.get_paths()['purelib']!r})\n"
    )
    return python


@pytest.fixture(scope="module")
def built(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from the unpacked sdist alone."""
    out = tmp_path_factory.mktemp("dist")
    run(python, "-m", "hatchling", "build", "-t", "sdist", "-d", out, cwd=ROOT)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(out / "unpacked", filter="data")
    (source,) = (out / "unpacked").iterdir()
    run(python, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=source)
    return out


def test_both_hold_every_file_of_the_package(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"segpipe-{__version__}-py3-none-any.whl"
    assert (built / f"segpipe-{__version__}.tar.gz").is_file()
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "pipeline" / "segpipe"
    wanted = {f"segpipe/{path.relative_to(package)}" for path in package.rglob("*") if path.is_file()}
    for folder in ("configs", "data_manifests"):
        wanted |= {f"segpipe/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert {name for name in wanted - names if "__pycache__" not in name} == set()
    assert {name for name in names if not name.startswith(("segpipe/", f"segpipe-{__version__}.dist-info/"))} == set()


def test_the_wheel_works_in_a_new_environment(python: Path, built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    command = python.parent / "segpipe"
    assert run(command, "--version", cwd=tmp_path) == f"segpipe {__version__}\n"
    files = [
        "py.typed",
        "bundle/__init__.pyi",
        "dicom/anatomy.csv",
        "configs/train.yaml",
        "configs/network/unet.yaml",
        "data_manifests/msd_task04_hippocampus.json",
        "schemas/bundle_metadata.schema.json",
    ]
    found = json.loads(run(python, "-c", CODE, *files, cwd=tmp_path))
    assert found["there"] == files
    assert found["heavy"] == []
    assert found["requires"] == ">=3.11"
    assert Path(found["file"]).is_relative_to(python.parents[1])
    assert "tversky" in run(command, "info", "losses", cwd=tmp_path)
