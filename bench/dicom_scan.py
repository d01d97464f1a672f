"""DICOM headers scanned per second, beside plain `pydicom.dcmread(stop_before_pixels=True)` on the same files."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from segpipe.common.processes import usable_cores
from segpipe.dicom.scanning import scan

SERIES, SLICES, ROWS = 8, 300, 64
MORE_ELEMENTS = 100  # a scanner's header has some 120
RUNS = 3
LIMIT = 3.0  # times the plain reading, in one process


def write_tree(folder: Path) -> int:
    """Generated CT series; returns the number of files."""
    for _ in range(SERIES):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = (generate_uid() for _ in "123")
        image.Modality, image.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.ImageOrientationPatient, image.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.8, 0.8]
        image.Rows = image.Columns = ROWS
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.PixelData = np.zeros((ROWS, ROWS), "<i2").tobytes()
        block = image.private_block(0x0099, "BENCH", create=True)
        for element in range(MORE_ELEMENTS):
            block.add_new(element, "LO", "some text")
        for number in range(SLICES):
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            image.InstanceNumber = number + 1
            image.ImagePositionPatient = [0, 0, number]
            path = folder / str(image.SeriesInstanceUID) / f"{number}.dcm"
            path.parent.mkdir(exist_ok=True)
            image.save_as(path, enforce_file_format=True)
    return SERIES * SLICES


def best_seconds(work: object, *arguments: object) -> float:
    """Shortest wall-clock time of some runs."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work(*arguments)  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return min(times)


def plain(folder: Path) -> None:
    for path in sorted(folder.rglob("*.dcm")):
        pydicom.dcmread(path, stop_before_pixels=True)


def main() -> int:
    """Print the rates and their ratio; 1 where the limit is passed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_tree(folder)
        reading = best_seconds(plain, folder)
        one = best_seconds(scan, folder, 1)
        several = best_seconds(scan, folder, usable_cores())
    print(f"pydicom headers alone   {files / reading:7.0f} files/s")
    print(f"scan, 1 process         {files / one:7.0f} files/s  ratio {one / reading:.2f} (limit {LIMIT})")
    print(f"scan, {usable_cores()} process(es)     {files / several:7.0f} files/s  ratio {several / reading:.2f}")
    return int(one > LIMIT * reading)


if __name__ == "__main__":
    sys.exit(main())
