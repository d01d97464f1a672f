"""The golden case of a bundle: a small image that may be passed on, and what the bundle makes of it.

golden/images/image.nii.gz   the input, or image_0000.nii.gz, image_0001.nii.gz, ... where channels are files
golden/labels.nii.gz         the label map, or the masks of regions, that configs/inference.json makes of it
golden/scores.npy            float32 (classes, points): activated scores at fixed voxels of the network's grid
golden/golden.json           hashes, tolerance, and the versions and hardware that it was recorded with
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.bundle.vet import Finding, read_document, shown, vet_golden_schema
from segpipe.common.files import sha256_of

GOLDEN, IMAGES = "golden", "golden/images"
DOCUMENT, LABELS, SCORES = "golden/golden.json", "golden/labels.nii.gz", "golden/scores.npy"
LEAST = 100  # voxels of every label
LARGEST = 2**28  # values of an array


@dataclass(frozen=True, eq=False)
class Golden:
    """A golden case that is as its document says.

    Attributes:
        document: ``golden.json``.
        labels: (X, Y, Z) uint8 label map, or (X, Y, Z, regions) uint8 masks of 0 and 1.
        scores: (classes, points) float32.
    """

    document: dict[str, Any]
    labels: NDArray[np.uint8]
    scores: NDArray[np.float32]


def read_golden(root: Path, promised: bool) -> tuple[Golden | None, list[Finding]]:
    """Read the golden case of a bundle, None where it has none, and what in it is not as it should be.

    Args:
        root: folder of the bundle.
        promised: whether the bundle's metadata says that there is one.
    """
    if not (root / DOCUMENT).is_file():
        missing = Finding(DOCUMENT, "", "not there", "the metadata tells of a golden case")
        return None, [missing] if promised else []
    try:
        document = read_document(root / DOCUMENT)
        if findings := [*vet_golden_schema(document, DOCUMENT), *_other_inputs(root, document)]:
            return None, findings
        golden = Golden(document, _labels(root, document), _scores(root, document))
    except Exception as error:  # noqa: BLE001 - bytes that nobody vouches for may break a reader anyhow
        return None, [Finding(GOLDEN, "", shown(str(error)), "the golden case cannot be read")]
    findings = list(_not_as_said(golden))
    return None if findings else golden, findings


def array_sha256(array: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's bytes in C order, little-endian."""
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(plain.tobytes()).hexdigest()


def voxels_of(labels: NDArray[np.uint8], value: int) -> int:
    """Return how many voxels have a label, or lie in a region, which are counted from 1."""
    return int((labels == value).sum() if labels.ndim == 3 else (labels[..., value - 1] == 1).sum())


def _other_inputs(root: Path, document: Any) -> Iterator[Finding]:
    """Yield images that are not those of the document."""
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        return  # the schema speaks of that
    listed = {f"{GOLDEN}/{image['file']}": image["sha256"] for image in document["inputs"]}
    there = {path.relative_to(root).as_posix() for path in (root / IMAGES).glob("*")}
    for name in sorted(there ^ set(listed)):
        yield Finding(name, "", name, f"it is not both in {IMAGES} and in {DOCUMENT}")
    for name in sorted(there & set(listed)):
        if sha256_of(root / name) != listed[name]:
            yield Finding(name, "", listed[name], f"not the input that {DOCUMENT} says")


def _labels(root: Path, document: dict[str, Any]) -> NDArray[np.uint8]:
    import nibabel as nib

    image = nib.load(root / LABELS)  # type: ignore[attr-defined, unused-ignore]
    if list(image.shape) != document["labels"]["shape"] or math.prod(image.shape) > LARGEST:
        raise ValueError(f"{LABELS} has the shape {image.shape}")
    if image.get_data_dtype() != np.uint8:
        raise ValueError(f"{LABELS} holds {image.get_data_dtype()}")
    return np.asarray(image.dataobj).astype(np.uint8)  # type: ignore[attr-defined, unused-ignore]


def _scores(root: Path, document: dict[str, Any]) -> NDArray[np.float32]:
    if (root / SCORES).stat().st_size > 4 * LARGEST:
        raise ValueError(f"{SCORES} is too large")
    scores = np.load(root / SCORES, allow_pickle=False)
    if list(scores.shape) != document["scores"]["shape"] or scores.dtype != np.float32:
        raise ValueError(f"{SCORES} holds {scores.dtype} {scores.shape}")
    return np.asarray(scores)


def _not_as_said(golden: Golden) -> Iterator[Finding]:
    for file, array in ((LABELS, golden.labels), (SCORES, golden.scores)):
        said = golden.document[Path(file).name.split(".")[0]]["sha256_of_array"]
        if array_sha256(array) != said:
            yield Finding(file, "", array_sha256(array), f"the array is not the one that {DOCUMENT} says: {said}")
    if not np.isfinite(golden.scores).all():
        yield Finding(SCORES, "", "", "scores that are no numbers")
    shown_labels = golden.document["labels"]["shown"]
    if golden.labels.ndim == 4 and (
        [*shown_labels] != [str(number + 1) for number in range(golden.labels.shape[3])] or golden.labels.max() > 1
    ):
        yield Finding(LABELS, "", f"{golden.labels.shape}", f"not a mask of 0 and 1 for each region of {DOCUMENT}")
        return
    for value, label in shown_labels.items():
        found = voxels_of(golden.labels, int(value))
        if found < LEAST:
            why = f"a golden case shows at least {LEAST} voxels of every label"
            yield Finding(LABELS, label["name"], f"{found} voxels", why)
