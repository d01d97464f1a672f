"""What SEG, RTSTRUCT and SR have in common: who made them, how they are named, how they are stored."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from segpipe import __version__
from segpipe.common.files import write_whole
from segpipe.common.result_folder import RELEASE
from segpipe.dicom.codes import LabelInfo, Term
from segpipe.dicom.model import Series
from segpipe.dicom.privacy import kind_of, no_header_text
from segpipe.errors import DataError, SegpipeError

SEG, LABELMAP, RTSTRUCT, SR = "seg.dcm", "labelmap.dcm", "rtstruct.dcm", "sr.dcm"
SERIES_NUMBERS = {SEG: 9001, LABELMAP: 9004, RTSTRUCT: 9002, SR: 9003, RELEASE: 9005}
WORDING = 2  # raised where the same result is written with other words, so that these have another UID
NOT_VERIFIED = "AI, not verified"  # what the description of every series begins with
MANUFACTURER = "segpipe"
NOT_FOR_DIAGNOSIS = "Automatic; not a medical device, not for diagnosis"
LONG_STRING = 64  # characters that a value of VR LO may have


@dataclass(frozen=True)
class AlgorithmInfo:
    """What made a label map.

    Attributes:
        name: of the bundle.
        version: of the bundle.
        bundle_sha256: names its content.
        averaged_with: SHA-256 of further bundles whose scores were averaged with its own.
        mirror: axes along which windows were mirrored as well.
    """

    name: str
    version: str
    bundle_sha256: str
    averaged_with: tuple[str, ...] = field(default=(), repr=False)
    mirror: tuple[str, ...] = field(default=(), repr=False)

    @property
    def parameters(self) -> dict[str, str]:
        """What tells its label maps from those of another algorithm."""
        return {
            "bundle_sha256": self.bundle_sha256,
            **({"averaged_with_sha256": ",".join(self.averaged_with)} if self.averaged_with else {}),
            **({"mirrored": ",".join(self.mirror)} if self.mirror else {}),
        }

    @property
    def identity(self) -> tuple[object, ...]:
        """What UIDs take of it; of one bundle alone as ever, so that its results keep theirs."""
        return (self, self.parameters) if self.averaged_with or self.mirror else (self,)

    @property
    def software_versions(self) -> tuple[str, ...]:
        """Of the bundle, of those averaged with it, and of this package."""
        others = (f"averaged with bundle {sha256[:16]}" for sha256 in self.averaged_with)
        return f"{self.name} {self.version}"[:LONG_STRING], *others, f"segpipe {__version__}"

    def named(self, before: str = "") -> str:
        """Return its name and version, and whether there was more than this bundle, in the length of a VR LO."""
        more = f", {len(self.averaged_with) + 1} bundles" if self.averaged_with else ""
        more += f", mirrored {','.join(self.mirror)}" if self.mirror else ""
        return f"{before}{self.name} {self.version}"[: LONG_STRING - len(more)] + more


def uid_of(*parts: object) -> str:
    """Return a UID that is the same for the same content (PS3.5 annex B.2: ``2.25.`` and 128 bits).

    Writing one result twice gives one instance, so that sending it twice leaves no double in an archive; but for the
    time of writing the bytes are the same.
    """
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def content_uid(
    kind: str,
    series: Series,
    labels: NDArray[np.integer],
    infos: Sequence[LabelInfo],
    algorithm: AlgorithmInfo,
    *more: object,
) -> str:
    """Return the SOPInstanceUID of a result: by source, voxels, meaning of the labels, algorithm, and the rest."""
    voxels = hashlib.sha256(np.ascontiguousarray(labels.transpose(2, 1, 0)).tobytes()).hexdigest()
    slices = [(frame.sop_instance_uid, frame.number) for frame in series.frames]
    meaning = [asdict(info) for info in infos]
    written_by = *algorithm.identity, __version__, WORDING
    return uid_of(kind, series.series_uid, slices, labels.shape, voxels, meaning, *written_by, *more)


def series_uid(kind: str, series: Series, algorithm: AlgorithmInfo) -> str:
    """Return the SeriesInstanceUID of the results of one kind, of one source and one algorithm."""
    return uid_of("series", kind, series.series_uid, series.case_id, *algorithm.identity, WORDING)


def instance_attributes(kind: str, uid: str, series: Series, algorithm: AlgorithmInfo, what: str) -> dict[str, Any]:
    """Return what highdicom's classes take as attributes of series, instance and equipment; ``what`` it is."""
    return {
        "series_instance_uid": series_uid(kind, series, algorithm),
        "series_number": SERIES_NUMBERS[kind],
        "series_description": algorithm.named(f"{NOT_VERIFIED}: {what} by "),
        "sop_instance_uid": uid,
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": algorithm.name[:LONG_STRING],
        "software_versions": algorithm.software_versions,
        "device_serial_number": algorithm.bundle_sha256[:LONG_STRING] or "0",
    }


def check_labels(series: Series, labels: NDArray[np.integer], infos: Sequence[LabelInfo], regions: int = 0) -> None:
    """Refuse a label map that does not lie on the series' own grid, or has labels without a meaning.

    Of ``regions`` that overlap each bit is a label.

    Raises:
        SegpipeError: it is so, which is a mistake of the caller.
    """
    if labels.shape != series.shape or labels.shape[2] != len(series.frames):
        raise SegpipeError(
            "the label map does not lie on the grid of the series",
            found=labels.shape,
            expected=series.shape,
            case_id=series.case_id,
        )
    values = [info.value for info in infos]
    if labels.dtype not in (np.uint8, np.uint16) or len(set(values)) != len(values) or not values:
        raise SegpipeError("labels are uint8 or uint16, each described once", case_id=series.case_id)
    counts = sum(np.bincount(plane.ravel(), minlength=65536) for plane in np.moveaxis(labels, 2, 0))
    found = set(np.flatnonzero(counts).tolist())
    if regions:
        found = {bit + 1 for bit in range(16) if any(value >> bit & 1 for value in found)}
    odd = found - {0, *values}
    if odd:
        raise SegpipeError(
            "the label map has labels that nothing is said of", found=sorted(odd)[:5], case_id=series.case_id
        )


def use_utf8(dataset: Any, texts: Sequence[str]) -> None:
    """Turn all text of a source's header to UTF-8, and say so in it, where a label's name is not ASCII."""
    if not all(text.isascii() for text in texts):
        dataset.decode()
        dataset.SpecificCharacterSet = "ISO_IR 192"


def code_item(term: Term) -> Any:
    """Return an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = term.value, term.scheme, term.meaning
    return item


def as_code(term: Term) -> Any:
    """Return a term as highdicom takes it."""
    return Code(term.value, term.scheme, term.meaning)


def encoded(dataset: Any) -> bytes:
    """Return a dataset as a DICOM file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write_derived(path: str | Path, series: Series, make: Callable[[], bytes]) -> None:
    """Write what ``make`` gives, whole or not at all.

    Where a library fails, its words, which may quote the header, are left out of the error.

    Raises:
        DataError: a library could not derive from the series.
        UsageError: the file cannot be written.
    """
    failure = ""
    try:
        with no_header_text():
            content = make()
    except (SegpipeError, OSError, MemoryError):
        raise
    except Exception as error:
        if os.environ.get("SEGPIPE_DEBUG"):
            raise
        failure = kind_of(error)
    if failure:  # not within the handler: an error that hangs on this one is reported as its cause
        raise DataError(
            "a DICOM result cannot be derived from the header of this series",
            found=failure,
            case_id=series.case_id,
            hint="the NIfTI label map is not affected; SEGPIPE_DEBUG=1 shows what failed",
        )
    with write_whole(path) as stream:
        stream.write(content)
