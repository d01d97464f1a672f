"""A MONAI image reader of DICOM folders, judged as everywhere here: what would be a wrong volume is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils.enums import MetaKeys, SpaceKeys

from segpipe.common.nifti import corners_apart_mm, geometry_limit_mm
from segpipe.dicom.model import Volume
from segpipe.dicom.repair import check_repairs
from segpipe.dicom.volume import read_dicom
from segpipe.errors import DataError, UsageError

FileName = str | Path


class DicomReader(ImageReader):
    """Reads a folder (or a file) that holds one DICOM series, for ``LoadImaged(keys, reader=...)`` and bundles.

    Array and affine are those of `segpipe convert` as MONAI's NibabelReader gives them: (C, R, S), RAS. The metadata
    has geometry alone, no text of the header.

    Errors are raised by `get_data`: where `read` fails, `LoadImage` goes on to its other readers, which make wrong
    volumes of what is refused here.

    Args:
        series_uid: SeriesInstanceUID or case id of the series to read where there are several.
        repair: ``tilt``, ``spacing`` or both: resample what is refused for that.
        options: none; a wrong word is refused.

    Raises:
        UsageError: an unknown option or repair.
    """

    def __init__(
        self, series_uid: str | None = None, repair: str | Sequence[str] | None = None, **options: Any
    ) -> None:
        super().__init__()
        if options:  # LoadImage would build the reader again without any of them
            raise UsageError(
                "DicomReader has no such option", found=", ".join(sorted(options)), expected="series_uid, repair"
            )
        self.series_uid = series_uid
        self.repairs = check_repairs(repair)

    def verify_suffix(self, filename: Sequence[FileName] | FileName) -> bool:
        """Return whether these are folders or DICOM files."""
        names = [filename] if isinstance(filename, str | Path) else list(filename)
        return all(Path(name).is_dir() or _looks_like_dicom(Path(name)) for name in names)

    def read(self, data: Sequence[FileName] | FileName, **kwargs: Any) -> list[Volume | Exception]:
        """Read one volume, or what was wrong, for each of the folders.

        Raises:
            UsageError: a file that is not DICOM, so that `LoadImage` goes on to the reader that is for it.
        """
        paths = [Path(name) for name in ([data] if isinstance(data, str | Path) else data)]
        for path in paths:
            if path.is_file() and not _looks_like_dicom(path):
                raise UsageError("not DICOM", path=path, expected="a folder of DICOM files, or one of them")
        return [self._read(path) for path in paths]

    def get_data(self, img: list[Volume | Exception]) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        """Return array and metadata; several volumes on one grid become channels, in their order.

        Returns:
            (C, R, S), or (channels, C, R, S); and the affine, its space, the shape and where the channels are.

        Raises:
            DataError: there is no series or several, it is refused, or the volumes are not on one grid.
        """
        volumes: list[Volume] = []
        for volume in img:
            if isinstance(volume, Exception):
                raise volume
            volumes.append(volume)
        first = volumes[0]
        for volume in volumes[1:]:
            _require_same_grid(volume, first)
        several = len(volumes) > 1
        array = np.stack([volume.array for volume in volumes]) if several else first.array
        return array, {
            MetaKeys.AFFINE: first.affine_ras.copy(),
            MetaKeys.ORIGINAL_AFFINE: first.affine_ras.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(first.array.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: 0 if several else float("nan"),
        }

    def _read(self, path: Path) -> Volume | Exception:
        try:
            return read_dicom(path, series=self.series_uid, repair=self.repairs)
        except Exception as error:  # noqa: BLE001 - LoadImage would take any for a reason to try other readers
            return error


def _looks_like_dicom(path: Path) -> bool:
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _require_same_grid(volume: Volume, first: Volume) -> None:
    shape, affine = first.array.shape, first.affine_ras
    if volume.array.shape != shape or not (
        corners_apart_mm(volume.affine_ras, affine, shape) <= geometry_limit_mm(affine)
    ):
        raise DataError(
            "series that are to be channels lie on different grids",
            case_id=volume.series.case_id,
            found=f"shape {volume.array.shape}",
            expected=f"the grid of {first.series.case_id}, shape {first.array.shape}",
        )
