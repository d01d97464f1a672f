"""Independent programs that judge or read what we write; a test that needs one that is missing is skipped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.tag import Tag

from segpipe.dicom.model import Series

KINDS = {"Segmentation", "RTStructureSet", "Comprehensive3DSR"}
NOT_ROOT = "a network namespace can only be made by root"


def program(name: str) -> str:
    """Where a program lies; without it the test is skipped (`make validators` installs them)."""
    beside = Path(sys.executable).parent  # of dcmqi, which pip installs, where nobody activated the environment
    found = shutil.which(name) or shutil.which(name, path=beside)
    if found is None:
        pytest.skip(f"{name} is not installed: make validators")
    return found


def call(*words: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program(str(words[0])), *map(str, words[1:])],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


def own_errors(path: Path, source: Path) -> list[str]:
    """Errors of dciodvfy that are not of an attribute which the source has at the same place with the same bytes."""
    lines = call("dciodvfy", "-new", path).stderr.splitlines()
    ours, theirs = (dcmread(each, stop_before_pixels=True) for each in (path, source))
    assert KINDS & set(lines), lines  # it names what it judged
    found = []
    for line in lines:
        if line.startswith("Error"):
            at_top = re.match(r"Error - </\w+\((\w{4},\w{4})\)(\[\d+\])?>", line)
            if at_top is None or not _same(at_top[1], ours, theirs):
                found.append(line)
    return found


def _same(tag: str, ours: Any, theirs: Any) -> bool:
    key = Tag(*(int(part, 16) for part in tag.split(",")))
    return key in ours and key in theirs and ours.get_item(key).value == theirs.get_item(key).value


def on_grid(path: Path, series: Series) -> NDArray[Any]:
    """A NIfTI that a program wrote, brought onto a series' grid by the affines; each voxel must fall on a voxel."""
    image = nibabel.load(path)
    values = np.asarray(image.dataobj).squeeze()  # type: ignore[attr-defined]
    indices = np.argwhere(values)
    places = np.c_[indices, np.ones(len(indices))] @ (np.linalg.inv(series.affine_ras) @ image.affine)[:3].T  # type: ignore[attr-defined]
    assert np.allclose(places, np.rint(places), atol=1e-3)
    labels = np.zeros(series.shape, int)
    labels[tuple(np.rint(places).astype(int).T)] = values[tuple(indices.T)]
    return labels


def read_by_dcmqi(path: Path, series: Series, folder: Path) -> NDArray[Any]:
    """Segment numbers of a SEG."""
    folder.mkdir()
    done = call(
        "segimage2itkimage",
        "--inputDICOM",
        path,
        "--outputDirectory",
        folder,
        "--outputType",
        "nii",
        "--prefix",
        "p",
        "--mergeSegments",
    )
    assert done.returncode == 0, done.stderr
    return sum((on_grid(each, series) for each in sorted(folder.glob("*.nii.gz"))), np.zeros(series.shape, int))


def read_by_plastimatch(path: Path, images: Path, series: Series, folder: Path) -> dict[str, NDArray[Any]]:
    """Masks of an RTSTRUCT by name."""
    done = call(
        "plastimatch",
        "convert",
        "--input",
        path,
        "--referenced-ct",
        images,
        "--output-prefix",
        folder,
        "--prefix-format",
        "nii.gz",
    )
    assert done.returncode == 0, done.stderr
    return {each.name.removesuffix(".nii.gz"): on_grid(each, series) != 0 for each in folder.glob("*.nii.gz")}


@contextmanager
def network_namespace() -> Iterator[list[str]]:
    """Words that run a command where there is no network but loopback."""
    ip, name = program("ip"), f"segpipe{os.getpid()}"
    if os.geteuid() != 0 or subprocess.run([ip, "netns", "add", name], capture_output=True, check=False).returncode:
        pytest.skip(NOT_ROOT)
    try:
        subprocess.run([ip, "-n", name, "link", "set", "lo", "up"], check=True)
        yield [ip, "netns", "exec", name]
    finally:
        subprocess.run([ip, "netns", "del", name], check=False)
