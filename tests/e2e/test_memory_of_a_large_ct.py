"""What a CT of 512 x 512 x 800 voxels takes in memory until it is planned; all that is read of it, one at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segpipe.common.nifti import write_nifti
from segpipe.common.processes import child_environment

SHAPE = (512, 512, 800)
VOXELS = 512 * 512 * 800


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    rows = np.random.default_rng(0).normal(40, 20, SHAPE[:2]).astype(np.int16)
    image = np.full(SHAPE, -1000, np.int16, order="F")
    image[100:400, 150:350] = rows[100:400, 150:350, None]
    label = np.zeros(SHAPE, np.uint8, order="F")
    label[200:300, 200:300, 300:500] = 1
    for name, values in (("scans", image), ("masks", label)):
        (folder / name).mkdir()
        write_nifti(nib.Nifti1Image(values, np.diag([0.8, 0.8, 1.0, 1.0])), folder / name / "one.nii.gz")
    return folder


# a small process starts the command: until a child is another program, what its parent has counts as its own
STARTED = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024)
"""


def peak_bytes(*words: str | Path) -> int:
    """Run a command; return the most that its process had resident."""
    command = [sys.executable, "-c", STARTED, sys.executable, "-m", "segpipe", *map(str, words)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    code, peak = map(int, done.stdout.split())
    assert code == 0, done.stderr
    return peak


@pytest.mark.slow
def test_a_large_ct_is_imported_checked_and_planned_within_a_gigabyte(large: Path) -> None:
    manifest, images = large / "manifest.json", ["--images", large / "scans", "--labels", large / "masks"]
    libraries = 200_000_000
    imported = peak_bytes("import", *images, "--modality", "CT", "--label-name", "organ", "-o", manifest)
    assert imported < libraries + 2 * VOXELS
    assert peak_bytes("check", manifest) < libraries + 2 * VOXELS, "the image once, as the file has it"
    planned = peak_bytes("plan", manifest, "-o", large / "task.yaml")
    assert planned < libraries + 3 * VOXELS, "the image and a mask of the labels"
