"""Generated series with label maps that have no symmetry, to derive results from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import make
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from segpipe.dicom.codes import LabelInfo, label_infos
from segpipe.dicom.model import Series
from segpipe.dicom.scanning import scan
from segpipe.dicom.write.stored_object import AlgorithmInfo

ALGORITHM = AlgorithmInfo("abdomen_ct", "1.2.0", "0123456789abcdef" * 4)
INFOS: list[LabelInfo] = label_infos({0: "background", 1: "liver", 3: "liver_tumor", 7: "kidney_left"})[0]
GRIDS = {
    name: make.Grid(orientation, rows=11, columns=14, slices=6, spacing=(1.3, 0.7), step=2.5)
    for name, orientation in (
        ("axial", make.AXIAL),
        ("coronal", make.CORONAL),
        ("sagittal", make.SAGITTAL),
        ("flipped", make.FLIPPED),
        ("oblique", make.OBLIQUE),
    )
}


def write_series(folder: Path, grid: str = "axial", remove: tuple[str, ...] = (), **attributes: Any) -> Series:
    """A CT whose file names are in no order, as scanned."""
    images = make.series(GRIDS[grid], **attributes)
    for image in images:
        for keyword in remove:
            delattr(image, keyword)
    return in_no_order(images, folder)


def write_enhanced(folder: Path, **options: Any) -> list[Series]:
    """An enhanced CT whose frames lie in the file in no order."""
    image = make.enhanced(GRIDS["oblique"], "CT", **options)
    frames = list(image.PerFrameFunctionalGroupsSequence)
    image.PerFrameFunctionalGroupsSequence = [frames[k] for k in _order(len(frames))]
    make.write([image], folder)
    return list(scan(folder).series)


def in_no_order(images: list[Dataset], folder: Path) -> Series:
    """Write slices under names in no order, and scan them."""
    make.write([images[k] for k in _order(len(images))], folder)
    (series,) = scan(folder).series
    assert series.state == "loaded", series.detail
    return series


def some_labels(series: Series, dtype: type = np.uint8) -> NDArray[Any]:
    """An organ with a hole, a lesion in it, another organ at the border; the first plane is empty."""
    assert series.shape is not None
    columns, rows, slices = series.shape
    i, j, k = np.indices(series.shape)
    labels = np.zeros(series.shape, dtype)
    labels[((i - columns * 0.45) / columns) ** 2 + ((j - rows * 0.6) / rows) ** 2 < 0.1] = 1
    labels[5, 6, :] = 0
    labels[(abs(i - 6) <= 1) & (j == 4 + k % 3)] = 3
    labels[:2, :3, slices // 2 :] = 7
    labels[0, 0, -1] = 0
    labels[:, :, 0] = 0
    return labels


def _order(count: int) -> list[int]:
    return np.random.default_rng(5).permutation(count).tolist()
