"""CPU seconds of a CT of 300 slices from a folder to a NIfTI file without compression, beside dcm2niix in the same run.

Slices are those of ``SEGPIPE_DATA`` where it is set, else generated.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread

from segpipe.dicom.conversion import write_volume
from segpipe.dicom.volume import load

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "dicom"))
from encode import encode
from make import Grid, series

SLICES, AIM, RUNS = 300, 1.5, 3
SYNTAXES = ("explicit", "rle", "jpeg_lossless", "jpeg_ls", "jpeg_2000")


def slices() -> list[Dataset]:
    """A few different slices of 512 x 512."""
    data = os.environ.get("SEGPIPE_DATA")
    if data:
        return [dcmread(path) for path in sorted((Path(data) / "dicom" / "01_ct_axial").iterdir())]
    images = series(Grid(rows=512, columns=512, slices=4, spacing=(0.8, 0.8)), RescaleIntercept="-1024")
    y, x = np.indices((512, 512)) - 256
    body = np.where((x / 200) ** 2 + (y / 140) ** 2 < 1, 1050, 0)
    for number, image in enumerate(images):
        noise = np.random.default_rng(number).normal(0, 15, body.shape)
        image.PixelData = (body + np.abs(noise)).astype("<i2").tobytes()
    return images


def make(folder: Path, syntax: str) -> None:
    """A series of 300 slices in a transfer syntax; each different slice is encoded once."""
    encoded = [dcmread(encode(image, syntax, folder / "one.dcm")) for image in slices()]
    (folder / "one.dcm").unlink()
    start = [float(part) for part in encoded[0].ImagePositionPatient]
    for number in range(SLICES):
        image = encoded[number % len(encoded)]
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{number + 1}"
        image.SeriesInstanceUID, image.InstanceNumber = encoded[0].SeriesInstanceUID, number + 1
        image.ImagePositionPatient = [start[0], start[1], 2.0 * number]
        if "SliceLocation" in image:
            image.SliceLocation = 2.0 * number
        image.save_as(folder / f"{number:03}.dcm")


def cpu_seconds() -> float:
    """CPU time of this process and of those it has waited for: a busy machine adds little to it."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def best(work: Callable[[], object]) -> float:
    """Fewest CPU seconds of some runs."""
    times = []
    for _ in range(RUNS):
        start = cpu_seconds()
        work()
        times.append(cpu_seconds() - start)
    return min(times)


def main() -> int:
    """Print both times and their ratio; 1 where a syntax gives other voxels than the first one."""
    tool = Path(sys.executable).with_name("dcm2niix")
    first: bytes | None = None
    differ = False
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as out:
        target = Path(out) / "ours.nii"
        for syntax in SYNTAXES:
            where = Path(folder) / syntax
            make(where, syntax)
            command = [str(tool), "-z", "n", "-b", "n", "-w", "1", "-f", "x", "-o", out, str(where)]
            theirs = best(lambda command=command: subprocess.run(command, check=True, capture_output=True))
            ours = best(lambda where=where: write_volume(load(where)[0], target))
            met = "met" if ours <= AIM * theirs else "missed"
            print(
                f"{syntax:14} segpipe {ours:6.2f} s  dcm2niix {theirs:6.2f} s  "
                f"ratio {ours / theirs:.2f} (aim {AIM}: {met})"
            )
            digest = hashlib.sha256(target.read_bytes()).digest()
            first = first or digest
            if digest != first:
                print(f"{syntax}: other voxels than {SYNTAXES[0]}")
                differ = True
            shutil.rmtree(where)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
