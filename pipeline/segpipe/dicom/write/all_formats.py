"""Write a case's label map in every DICOM format that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.dicom.codes import LabelInfo
from segpipe.dicom.model import Series
from segpipe.dicom.write.judgement import Judgement
from segpipe.dicom.write.rtstruct import write_rtstruct
from segpipe.dicom.write.seg import write_seg
from segpipe.dicom.write.sources import obstacles
from segpipe.dicom.write.stored_object import LABELMAP, RTSTRUCT, SEG, SR, AlgorithmInfo
from segpipe.dicom.write.structured_report import write_sr
from segpipe.errors import SegpipeError, UsageError

OVERLAP = "its regions overlap, and this format takes one label a voxel: seg and rtstruct hold them"


def write_dicom(
    folder: Path,
    formats: Sequence[str],
    series: Series,
    labels: NDArray[np.uint8],
    volumes_ml: dict[str, float],
    infos: Sequence[LabelInfo],
    algorithm: AlgorithmInfo,
    regions: int = 0,
    judgement: Judgement | None = None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Write what was asked for, as far as the series can carry it, with nothing of its free text.

    Args:
        folder: to write to.
        formats: of ``seg``, ``labelmap``, ``rtstruct`` and ``sr``; a report refers to a segmentation, so ``sr``
            brings ``seg``.
        series: the source.
        labels: (C, R, S) on its grid; of regions bits, as of `write_seg`.
        volumes_ml: label name to volume.
        infos: what the labels mean.
        algorithm: what made them.
        regions: how many regions may overlap; a SEG, a report of it and an RTSTRUCT hold them, a label map cannot.
        judgement: what is said of its quality; None where nothing was judged.

    Returns:
        File names by format, and for each format that was not written why. A reason holds no header text.

    Raises:
        UsageError: a file cannot be written, or the disk is full.
    """
    reasons = obstacles(series)
    if reasons:
        return {}, dict.fromkeys(formats, "; ".join(reasons))
    seg = folder / SEG
    origin: Any = {"algorithm": algorithm, "deidentified": True, "judgement": judgement}
    writers: dict[str, tuple[str, Callable[[], None]]] = {
        "seg": (SEG, partial(write_seg, series, labels, infos, seg, regions=regions, **origin)),
        "labelmap": (LABELMAP, partial(write_seg, series, labels, infos, folder / LABELMAP, kind="labelmap", **origin)),
        "rtstruct": (
            RTSTRUCT,
            partial(write_rtstruct, series, labels, infos, folder / RTSTRUCT, regions=regions, **origin),
        ),
        "sr": (SR, partial(write_sr, series, seg, volumes_ml, infos, folder / SR, **origin)),
    }
    wanted = {*formats, "seg"} if "sr" in formats else set(formats)
    written: dict[str, str] = {}
    refused: dict[str, str] = {}
    for name, (file, write) in writers.items():
        if name not in wanted:
            continue
        if regions and name == "labelmap":
            refused[name] = OVERLAP
            continue
        if name == "sr" and "seg" in refused:
            refused[name] = "there is no segmentation for it to refer to"
            continue
        try:
            write()
        except UsageError:
            raise
        except SegpipeError as error:
            refused[name] = "; ".join(part for part in (error.message, error.found) if part)
        else:
            written[name] = file
    return written, refused
