"""What a browser may write: one label map a case, into a folder of corrections, and a line that says who drew it.

Nothing else is written, and nothing that was there before is lost but an earlier save of the same case: the label map
that somebody began with stays where it is.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.common.files import require_writable, sha256_of
from segpipe.common.nifti import write_nifti_whole
from segpipe.common.result_folder import CORRECTIONS, STATE, append_line, read_lines
from segpipe.data import checked_annotator
from segpipe.errors import DataError, UsageError
from segpipe.viewer.cases import LayerFile, ViewedCase
from segpipe.viewer.volumes import ShownCase, ShownVolume

CORRECTION = "correction"  # name of the layer
BEGINNINGS = ("prediction", "truth")
MOST_MINUTES = 24 * 60.0


class Editor:
    """Where corrections go, and who makes them.

    Args:
        folder: for ``ID.nii.gz`` of each case and `CORRECTIONS`; made where it is not there.
        annotator: pseudonym of who draws.

    Raises:
        UsageError: no pseudonym, a folder of results, or one that cannot be written to.
    """

    def __init__(self, folder: Path, annotator: str | None) -> None:
        self.folder, self.annotator = folder, checked_annotator(annotator)
        if (folder / STATE).exists():
            raise UsageError(
                "corrections do not go into a result folder",
                path=folder,
                expected="a folder of their own",
                hint="--edit corrected",
            )
        require_writable(folder)
        self._saving = threading.Lock()

    def path(self, case_id: str) -> Path:
        """Return where the correction of a case goes."""
        return self.folder / f"{case_id}.nii.gz"

    def with_correction(self, case: ViewedCase) -> ViewedCase:
        """Return a case with what was saved of it before as one more layer."""
        path, begun = self.path(case.id), _begun(case)
        if not path.is_file():
            return case
        layer = LayerFile(CORRECTION, path, begun.names if begun else case.labels)
        return replace(case, layers=(*case.layers, layer))

    def document(self, case: ViewedCase, shown: ShownCase) -> dict[str, Any]:
        """Return what the page has to know to edit a case: the volume that it begins with, and labels; or why not."""
        if why := _why_not(case, shown):
            return {"why": why}
        volumes, labels = [volume.name for volume in shown.volumes], _labels(case)
        begun = next((volumes.index(name) for name in (CORRECTION, *BEGINNINGS) if name in volumes), None)
        names = ShownVolume(CORRECTION, "labels", np.zeros((1, 1, 1), np.uint8), np.eye(4), names=labels)
        return {"begins": begun, "labels": names.facts()["labels"], "annotator": self.annotator}

    def save(self, case: ViewedCase, shown: ShownCase, content: bytes, minutes: float) -> dict[str, Any]:
        """Save the label map of a case.

        Args:
            case: that was edited.
            shown: its volumes, whose grid it lies on.
            content: a byte a voxel, in the file's order.
            minutes: that somebody spent on it since it was opened, or saved; those of earlier saves are added.

        Returns:
            What the page says: file name, and how many voxels differ from what it began with.

        Raises:
            DataError: another number of voxels, or what is no label.
            UsageError: it cannot be written.
        """
        import nibabel as nib

        if why := _why_not(case, shown):
            raise DataError("the case cannot be edited", case_id=case.id, found=why)
        image, labels = shown.volumes[0], _labels(case)
        if len(content) != image.values.size:
            raise DataError(
                "the label map has another size than the image",
                found=f"{len(content):,} voxels",
                expected=f"{image.values.size:,}",
            )
        values = np.frombuffer(content, np.uint8).reshape(image.values.shape, order="F")
        odd = sorted({int(value) for value in np.unique(values)} - {0, *labels})
        if odd:
            raise DataError("the label map holds values that are no label", found=odd[:10], expected=[0, *labels])
        made = nib.Nifti1Image(values, image.affine)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
        made.header.set_xyzt_units("mm")
        made.set_sform(image.affine, code=1 if shown.oriented else 0)
        made.set_qform(image.affine if not shown.oriented else None, code=0)
        with self._saving:
            spent = self._minutes_before(case.id) + min(max(minutes, 0.0), MOST_MINUTES)
            write_nifti_whole(made, self.path(case.id))
            begun = _begun(case)
            line = {
                "id": case.id,
                "annotator": self.annotator,
                "date": datetime.now(UTC).isoformat("T", "seconds"),
                "sha256": sha256_of(self.path(case.id)),
                "start_sha256": sha256_of(begun.path) if begun else None,
                "minutes": round(spent, 2),
            }
            append_line(self.folder / CORRECTIONS, line)
        before = next((volume for volume in shown.volumes if begun and volume.name == begun.name), None)
        changed = int(np.count_nonzero(values if before is None else values != before.values))
        return {"file": self.path(case.id).name, "changed_voxels": changed}

    def _minutes_before(self, case_id: str) -> float:
        """Return what was spent on the label map that lies there, in all sessions."""
        if not self.path(case_id).is_file():
            return 0.0
        lines = [line for line in read_lines(self.folder / CORRECTIONS) if isinstance(line, dict)]
        minutes = next((line.get("minutes") for line in reversed(lines) if line.get("id") == case_id), None)
        return float(minutes) if isinstance(minutes, int | float) and minutes >= 0 else 0.0


def _why_not(case: ViewedCase, shown: ShownCase) -> str | None:
    """Return why a case cannot be edited; None where it can."""
    names = [volume.name for volume in shown.volumes]
    if any(name.startswith(f"{start}: ") for start in BEGINNINGS for name in names):
        return "regions that overlap cannot be edited here"
    return shown.pictures_only or (None if _labels(case) else "no labels are known")


def _begun(case: ViewedCase) -> LayerFile | None:
    return next((layer for name in BEGINNINGS for layer in case.layers if layer.name == name), None)


def _labels(case: ViewedCase) -> dict[int, str]:
    """Return value to name of the labels that may be drawn."""
    begun = _begun(case)
    return dict(sorted((begun.names if begun is not None and begun.names else case.labels).items()))
