"""What a corrected label map may be of: the case of a result folder or of a manifest, with its image."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segpipe.common.files import read_json, sha256_of, write_whole
from segpipe.common.image_names import ending_of, is_image, is_nifti
from segpipe.common.nifti import Header, header_of_array, read_header, require_3d
from segpipe.common.result_folder import MAPPING, RESULT, SEGMENTATION, STATE, read_lines
from segpipe.data.annotation import StartBundle, StartMap
from segpipe.data.importers.as_nifti import as_nifti
from segpipe.data.manifest import Case, Manifest
from segpipe.dicom import Series, admitted, check_repairs, load_series, scan, write_volume
from segpipe.errors import DataError, UsageError

FOLDER = "corrected"


@dataclass(frozen=True)
class Origin:
    """What a correction may be of: an image, and the label map that somebody began with; None where from scratch."""

    id: str
    images: tuple[Path, ...]
    start: Path | None
    begun: StartMap | None
    labels: Mapping[int, str]
    image_sha256: tuple[str, ...] = ()
    case: Case | None = None  # of the manifest, that it is


def of_manifest(manifest: Manifest, root: Path) -> list[Origin]:
    """Return what the corrections of a manifest's own label maps may be of, and what is drawn of cases without one."""
    origins = []
    for case in manifest.cases():
        start, begun = None, None
        if case.label is not None:
            start = root / case.label
            begun = StartMap(of="label", sha256=(case.sha256 or {}).get(case.label), bundle=None)
        images = tuple(root / image for image in case.images)
        origins.append(Origin(case.id, images, start, begun, manifest.foreground, case=case))
    return origins


def of_results(folder: Path, manifest: Manifest | None, root: Path) -> list[Origin]:
    """Return what the corrections of a result folder may be of, sorted by id.

    Raises:
        UsageError: it is no result folder.
    """
    if not (folder / STATE).is_file():
        raise UsageError(
            "what was corrected?",
            path=folder,
            expected="the result folder of `segpipe predict` that the corrections began with, or a manifest",
        )
    lines = (line for line in read_lines(folder / MAPPING) if isinstance(line, dict) and "refused" not in line)
    sources = {line["id"]: tuple(Path(path) for path in line.get("paths", ())) for line in lines if "id" in line}
    origins = []
    for path in sorted(folder.glob(f"*/{RESULT}")):
        result, id = read_json(path, "result"), path.parent.name
        images, hashes = sources.get(id, ()), tuple(result.get("source_sha256") or ())
        case = None if manifest is None else _case_of(id, images, hashes, manifest, root)
        if case is not None and not images:
            images = tuple(root / image for image in case.images)
        bundle = {name: result.get("bundle", {}).get(name) for name in ("name", "version", "sha256")}
        begun = StartMap(
            of="prediction",
            sha256=(result.get("sha256") or {}).get(SEGMENTATION),
            bundle=StartBundle.model_validate(bundle) if all(bundle.values()) else None,
        )
        masks = bool(result.get("regions"))  # of regions, which are numbered otherwise than labels
        labels = {value: name for name, value in ({} if masks else result.get("labels") or {}).items()}
        origins.append(Origin(id, images, path.parent / SEGMENTATION, begun, labels, hashes, case))
    return origins


def _case_of(id: str, images: Sequence[Path], hashes: Sequence[str], manifest: Manifest, root: Path) -> Case | None:
    """Return the case of a manifest that a result is of: of the same file, of the same bytes, or of the same series."""
    named = next((case for case in manifest.cases() if case.id == id), None)
    if not images or not is_image(images[0]):  # the id of a series is made of its UID
        return named
    first = images[0].resolve()
    for case in manifest.cases():
        path = (root / case.images[0]).resolve()
        if path == first or (hashes and (case.sha256 or {}).get(case.images[0]) == hashes[0]):
            return case
        same_size = path.is_file() and first.is_file() and path.stat().st_size == first.stat().st_size
        if same_size and sha256_of(path) == sha256_of(first):
            return case
    return None


def image_of(origin: Origin) -> tuple[Header, Series | None]:
    """Return the grid of the image, and the series where it is one.

    Raises:
        DataError: it cannot be read, has changed, or is of a kind whose corrections cannot be taken.
    """
    if not origin.images or not all(path.is_file() for path in origin.images):
        raise DataError(
            "the image is not where it was",
            found="no path" if not origin.images else "no such file",
            expected="the files that mapping.jsonl of the result folder names",
        )
    if not is_image(origin.images[0]):
        series = _series_of(origin)
        shape, affine = series.shape or (), series.affine_ras
        return header_of_array(shape, np.dtype(np.int16), affine, Path(origin.id)), series
    if origin.image_sha256 and tuple(map(sha256_of, origin.images)) != origin.image_sha256:
        raise DataError("the image has changed since it was segmented", hint="predict it again")
    header = read_header(origin.images[0])
    grid = replace(header, shape=header.shape[:3])
    require_3d(grid)
    return grid, None


def _series_of(origin: Origin) -> Series:
    found = admitted(scan(list(origin.images)).series)
    if len(found) == 1 and found[0].is_capture:
        found = admitted(found, (), [found[0].case_id])
    if len(found) == 1 and found[0].state == "refused":
        found = admitted(found, check_repairs("tilt,spacing"))
    if len(found) != 1 or found[0].modality == "PT" or found[0].state == "refused":
        words = ", ".join(f"{series.modality} {series.reason or ''}".strip() for series in found)
        raise DataError(
            "corrections of such DICOM images cannot be taken",
            found=words or "no series",
            expected="one series of CT or MR",
            hint="convert the images with `segpipe convert`, and predict these",
        )
    return found[0]


def placed_images(origin: Origin, series: Series | None, root: Path) -> list[str]:
    """Return the images by paths below the root; those that lie elsewhere, or are no NIfTI, are written there."""
    folder = root / FOLDER / "images"
    if series is not None:
        path = folder / f"{origin.id}.nii.gz"
        if not path.exists():
            write_volume(load_series(series), path)
        return [path.relative_to(root).as_posix()]
    images = []
    for index, image in enumerate(origin.images):
        suffix = f"_{index:04}" if len(origin.images) > 1 else ""
        if not is_nifti(image):
            as_nifti(str(image.resolve()), root, folder / f"{origin.id}{suffix}.nii.gz")
            images.append(f"{FOLDER}/images/{origin.id}{suffix}.nii.gz")
        elif image.resolve().is_relative_to(root):
            images.append(image.resolve().relative_to(root).as_posix())
        else:
            target = folder / f"{origin.id}{suffix}{ending_of(image)}"
            with image.open("rb") as reading, write_whole(target) as writing:
                shutil.copyfileobj(reading, writing)
            images.append(target.relative_to(root).as_posix())
    return images
