"""The folder in which the pages' blocks run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from docs.pages import ROOT


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the names that the pages use: the shipped bundle, a scan, a DICOM series, data to train on."""
    from dicom.make import Grid, series, write
    from segpipe.cli.demo.demo_data import demo_manifest, write_data
    from tiny_data import write_data as write_tiny_data

    folder = tmp_path_factory.mktemp("pages")
    golden = ROOT / "bundles/hippocampus_mri/golden/images/image.nii.gz"
    (folder / "bundles").mkdir()
    for name in ("hippocampus_mri", "hippocampus_mri_all"):
        (folder / "bundles" / name).symlink_to(ROOT / "bundles" / name)
    (folder / "configs").symlink_to(ROOT / "configs")
    shutil.copy(golden, folder / "scan.nii.gz")
    (folder / "scans").mkdir()
    shutil.copy(golden, folder / "scans/scan.nii.gz")
    write(series(Grid(rows=40, columns=36, slices=20), "MR"), folder / "mr_series")
    shutil.copytree(folder / "mr_series", folder / "incoming")
    write_liver(folder / "liver")
    write_data(folder / "demo_out/data", demo_manifest(), 0, coarseness=2.0)
    manifest = write_tiny_data(folder / "data")
    shutil.copy(manifest.parent / "task.yaml", folder / "task.yaml")
    return folder


def write_liver(folder: Path) -> None:
    """Write scans and masks of one organ as an own data set has them."""
    import nibabel as nib
    import numpy as np

    from segpipe.data.phantom import make_phantom

    for name in ("scans", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(8):
        image, label = (folder / name / f"case_{number}.nii.gz" for name in ("scans", "masks"))
        make_phantom(number, shape=(20, 18, 16), spacing_mm=(3.0, 3.0, 3.5)).write(image, label)
        whole = nib.load(label)
        liver = (np.asarray(whole.dataobj) == 1).astype(np.uint8)
        nib.save(nib.Nifti1Image(liver, whole.affine, dtype=np.uint8), label)


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current folder."""
    shutil.copytree(template, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"
