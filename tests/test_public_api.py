"""The public names: they are what their names say after every module was imported, quick to import, and typed."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import segpipe

NAMES = "Bundle Segmentation errors evaluate export open_bundle plan predict read_dicom train"
HEAVY = {"numpy", "torch", "monai", "ignite", "pydantic", "nibabel", "SimpleITK", "scipy", "rich", "typer", "pydicom"}
PROGRAM = """
from pathlib import Path

import nibabel as nib
import numpy as np
import segpipe

bundle: segpipe.Bundle = segpipe.open_bundle("bundles/hippocampus_mri", allow=["glob"], key=None)
segmentation: segpipe.Segmentation = bundle.segment(Path("scan.nii.gz"), device="cpu", threads=1, mirror="x,y")
volumes: dict[str, float] = segmentation.volumes_ml
array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = segmentation.array
saved: Path = segmentation.save("labels.nii.gz", format="nifti")
again = bundle.segment(np.zeros((9, 9, 9)), affine_ras=np.eye(4), max_memory="4G")
volume = segpipe.read_dicom("mr_series")
of_dicom = bundle.segment(volume).save("seg.dcm", format="seg")
batch = segpipe.predict(bundle, ["scans", Path("more")], "results", format="nifti,seg", probabilities="all", timeout=5)
statuses: list[str] = [outcome.status for outcome in batch.outcomes]
try:
    segpipe.predict("b", "scans", Path("results"), min_slices=20, ensemble=[bundle])
except segpipe.errors.SegpipeError as error:
    code: int = error.exit_code
run = segpipe.train("manifest.json", task="task.yaml", out="run")
name: str = segpipe.export(run.root, "exported").name
"""
WRONG = """
import segpipe

bundle = segpipe.open_bundle("b")
bundle.segment("scan.nii.gz", colour=1)
bundle.segment("scan.nii.gz", threads="one")
segpipe.predict("b", "scans", "results", no_such_option=True)
segpipe.no_such_name
"""


def test_names_are_these() -> None:
    assert sorted(segpipe.__all__) == NAMES.split()
    assert set(NAMES.split()) <= set(dir(segpipe))
    assert segpipe.__version__


@pytest.mark.slow
def test_no_module_shadows_a_name_of_any_door_once_all_are_imported() -> None:
    for module in pkgutil.walk_packages(segpipe.__path__, "segpipe."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in NAMES.split():
        public = getattr(segpipe, name)
        if name == "errors":
            assert inspect.ismodule(public)
            continue
        assert callable(public) and public.__name__ == name and inspect.getdoc(public)
        signature = inspect.signature(public)
        documented = inspect.getdoc(public) or ""
        assert "Args:" in documented or "Attributes:" in documented
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, f"{name}: {parameter}"
    doors = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "segpipe"}
    hidden = {
        f"{door}.{name}"
        for door, module in doors.items()
        if hasattr(module, "__path__")
        for name in getattr(module, "__all__", ())
        if inspect.ismodule(getattr(module, name))
    }
    assert hidden == {"segpipe.errors"}


def test_every_public_name_is_in_the_door_of_its_package() -> None:
    text = Path(segpipe.__file__ or "").with_name("__init__.pyi").read_text()
    for name in NAMES.split():
        assert f"import {name} as {name}" in text


def test_importing_it_loads_nothing_heavy_and_is_quick() -> None:
    program = (
        "import time, sys; before = {*sys.modules}; start = time.perf_counter(); import segpipe, json; "
        "seconds = time.perf_counter() - start; "
        "print(json.dumps([seconds, sorted({name.partition('.')[0] for name in {*sys.modules} - before})]))"
    )
    runs = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout))
    assert not HEAVY & set(runs[0][1])
    assert min(seconds for seconds, _ in runs) < 0.3


def mypy(text: str, folder: Path) -> tuple[int, str]:
    (folder / "script.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file", "", "script.py"]
    source = str(Path(segpipe.__file__ or "").parents[1])
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PATH": "", "MYPYPATH": source, "PYTHONPATH": source},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_user_s_script_is_typed_strictly(tmp_path: Path) -> None:
    _, said = mypy(PROGRAM, tmp_path)
    of_script = [line for line in said.splitlines() if line.startswith("script.py")]
    assert of_script == [], said
    _, said = mypy(WRONG, tmp_path)
    lines = {line.split(":")[1] for line in said.splitlines() if line.startswith("script.py") and "error" in line}
    assert lines == {"5", "6", "7", "8"}, said
