"""The same image in other transfer syntaxes, written by GDCM, dcmtk or pydicom: never by the code that is tested."""

from __future__ import annotations

import subprocess
from copy import deepcopy
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

GDCM_OPTIONS = {
    "jpeg_lossless": "JPEGLosslessProcess14_1",
    "jpeg_ls": "JPEGLSLossless",
    "jpeg_2000": "JPEG2000Lossless",
    "rle": "RLELossless",
}
NATIVE = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big_endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
LOSSLESS = (*NATIVE, "pydicom_rle", *GDCM_OPTIONS)


def encode(image: Dataset, syntax: str, path: Path) -> Path:
    """Write an image (explicit little endian, not compressed) to ``path`` in a transfer syntax."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = deepcopy(image)
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = NATIVE.get(syntax, ExplicitVRLittleEndian)
    if syntax == "big_endian":  # OW is swapped word by word, PS3.5 7.3
        width = max(2, image.BitsAllocated // 8)
        image.PixelData = np.frombuffer(image.PixelData, f"<u{width}").astype(f">u{width}").tobytes()
        image["PixelData"].VR = "OW"
    image.save_as(path, enforce_file_format=True)
    if syntax in GDCM_OPTIONS:
        _by_gdcm(path, GDCM_OPTIONS[syntax])
    elif syntax == "pydicom_rle":
        again = dcmread(path)
        again.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        again.save_as(path)
    return path


def _by_gdcm(path: Path, syntax: str) -> None:
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def by_dcmtk(path: Path, tool: str, *options: str) -> None:
    """Compress a file by a tool of dcmtk, in place."""
    subprocess.run([tool, *options, str(path), str(path)], check=True, capture_output=True)
