"""What a corrected label map may be of: the case of a result folder or of a manifest, with its image."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segpipe.common.files import sha256_of, write_whole
from segpipe.common.image_names import ending_of, is_image, is_nifti
from segpipe.common.nifti import Header, grid_difference, header_of_array, read_header, require_3d
from segpipe.common.partial import temporary_folder
from segpipe.common.result_folder import CORRECTIONS, RESULT, SEGMENTATION, STATE
from segpipe.common.result_records import read_result, read_sources
from segpipe.common.same_image import Channel, SameImage, channel_of_array
from segpipe.data.annotation import StartBundle, StartMap
from segpipe.data.importers.as_nifti import as_nifti
from segpipe.data.manifest import Case, Manifest
from segpipe.dicom import Series, load_series, series_as_taken, write_volume
from segpipe.errors import DataError, RefusedError, UsageError

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


class ManifestOrigins:
    """What the corrections of a manifest's own label maps may be of, and what is drawn of cases without one.

    Attributes:
        ids: of the cases.
    """

    def __init__(self, manifest: Manifest, root: Path) -> None:
        self._manifest, self._root = manifest, root
        self._cases = {case.id: case for case in manifest.cases()}
        self.ids = list(self._cases)

    def origin(self, id: str) -> Origin:
        """Return what a correction is of."""
        case, start, begun = self._cases[id], None, None
        if case.label is not None:
            start = self._root / case.label
            begun = StartMap(of="label", sha256=(case.sha256 or {}).get(case.label), bundle=None)
        images = tuple(self._root / image for image in case.images)
        return Origin(case.id, images, start, begun, self._manifest.foreground, case=case)


class ResultOrigins:
    """What the corrections of a result folder may be of.

    Attributes:
        ids: of the cases, sorted.

    Raises:
        UsageError: it is no result folder.
        DataError: its ``mapping.jsonl`` is none.
    """

    def __init__(self, folder: Path, manifest: Manifest | None, root: Path) -> None:
        if not (folder / STATE).is_file():
            raise UsageError(
                "what was corrected?",
                path=folder,
                expected="the result folder of `segpipe predict` that the corrections began with, or a manifest",
            )
        self._folder, self._manifest, self._root = folder, manifest, root
        self._sources, self._is_same = read_sources(folder), SameImage()
        self.ids = [path.parent.name for path in sorted(folder.glob(f"*/{RESULT}"))]

    def origin(self, id: str) -> Origin:
        """Return what a correction is of.

        Raises:
            DataError: its ``result.json`` is none, or it cannot be told which case of the manifest it is.
            RefusedError: it is called as a case that is measured, and is not known to be that one.
        """
        folder = self._folder / id
        result = read_result(folder / RESULT)
        images, hashes = self._sources.get(id, ()), tuple(result.source_sha256 or ())
        case = None if self._manifest is None else self._case_of(id, images, hashes, self._manifest)
        if case is not None and not images:
            images = tuple(self._root / image for image in case.images)
        bundle = {} if result.bundle is None else result.bundle.model_dump()
        begun = StartMap(
            of="prediction",
            sha256=(result.sha256 or {}).get(SEGMENTATION),
            bundle=StartBundle.model_validate(bundle) if bundle and all(bundle.values()) else None,
        )
        masks = bool(result.regions)  # of regions, which are numbered otherwise than labels
        labels = {value: name for name, value in ({} if masks else result.labels or {}).items()}
        return Origin(id, images, folder / SEGMENTATION, begun, labels, hashes, case)

    def _case_of(self, id: str, images: Sequence[Path], hashes: Sequence[str], manifest: Manifest) -> Case | None:
        """Return the case that a result is of: of the same file, bytes or voxels, or of the same series."""
        named = next((case for case in manifest.cases() if case.id == id), None)
        if not images:
            return named
        if not is_image(images[0]):  # the id of a series is made of its UID, but where ids are replaced by hashes
            return named or self._case_of_series(images, manifest)
        paths = [image.resolve() for image in images]
        for case in manifest.cases():
            seen = [(case.sha256 or {}).get(image) for image in case.images]
            if self._paths(case) == paths or (hashes and seen == [*hashes]):
                return case
        if not all(path.is_file() for path in paths):
            return None  # which is refused for that
        same = self._case_of_channels(self._channels(paths), manifest)
        if same is not None:
            return same
        if named is not None and _is_measured(named, manifest):
            raise RefusedError(
                "another image is called as a case that is measured",
                found=id,
                expected="the image that the manifest has of this case, or another id",
                hint="take its file out of the folder, or leave it out with --skip-bad",
                case_id=id,
            )
        return None

    def _case_of_series(self, images: Sequence[Path], manifest: Manifest) -> Case | None:
        volume = load_series(_series_of(images))
        return self._case_of_channels([channel_of_array(volume.array, volume.affine_ras)], manifest)

    def _case_of_channels(self, channels: Sequence[Channel], manifest: Manifest) -> Case | None:
        """Return the case that has all of these channels, in this order; None where none has any of them.

        Raises:
            DataError: a case has some of them.
            RefusedError: one that is measured has.
        """
        partly = None
        for case in self._comparable(manifest):
            own = self._channels(self._paths(case))
            if len(own) == len(channels) and all(map(Channel.is_same, channels, own)):
                return case
            if partly is None or not _is_measured(partly, manifest):
                partly = case if _share_one(channels, own) else partly
        if partly is None:
            return None
        if _is_measured(partly, manifest):
            raise RefusedError(
                "the image has a channel of a case that is measured",
                found=f"one of {partly.id}, beside others",
                expected="all channels of that case, or none",
                hint="take its file out of the folder, or leave it out with --skip-bad",
                case_id=partly.id,
            )
        raise DataError(
            "some channels of the image are those of a case, and others are not",
            found=f"some of {partly.id}",
            expected="all channels of a case, or none",
            hint="predict the manifest's own images",
        )

    def _comparable(self, manifest: Manifest) -> Iterator[Case]:
        """Yield the cases whose images are there; those that are measured have to be."""
        for case in manifest.cases():
            if all(path.is_file() for path in self._paths(case)):
                yield case
            elif _is_measured(case, manifest):
                raise DataError(
                    "it cannot be told whether this is a case that is measured",
                    found=f"no image of {case.id} where the manifest says",
                    expected=f"its images below {self._root}",
                    hint="put the manifest into the folder of its data",
                )

    def _paths(self, case: Case) -> list[Path]:
        return [(self._root / image).resolve() for image in case.images]

    def _channels(self, paths: Sequence[Path]) -> list[Channel]:
        return [channel for path in paths for channel in self._is_same.channels(path)]


def _share_one(channels: Sequence[Channel], others: Sequence[Channel]) -> bool:
    """Return whether two scans share a channel; one value everywhere, as for a missing channel, says nothing."""
    return any(one.is_same(other) and not one.is_flat for one in channels for other in others)


def _is_measured(case: Case, manifest: Manifest) -> bool:
    return case.label is not None and (case.fold is not None or any(case.id == each.id for each in manifest.test))


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
        series = _series_of(origin.images)
        shape, affine = series.shape or (), series.affine_ras
        return header_of_array(shape, np.dtype(np.int16), affine, Path(origin.id)), series
    if origin.image_sha256 and tuple(map(sha256_of, origin.images)) != origin.image_sha256:
        raise DataError("the image has changed since it was segmented", hint="predict it again")
    header = read_header(origin.images[0])
    grid = replace(header, shape=header.shape[:3])
    require_3d(grid)
    return grid, None


def require_grid_of_case(origin: Origin, image: Header, root: Path) -> None:
    """Refuse what was drawn on the case's voxels as another file stores them: on another grid than the manifest's.

    Raises:
        DataError: naming the case.
    """
    if origin.case is None:
        return
    header = read_header(root / origin.case.images[0])
    difference = grid_difference(replace(header, shape=header.shape[:3]), image)
    if difference:
        raise DataError(
            f"the image is that of {origin.case.id}, on another grid",
            found=f"the manifest's image against the one that was segmented: {difference}",
            expected="the same size, spacing and place",
            hint="predict the manifest's own image",
        )


def require_same_start(origin: Origin, said: str | None) -> None:
    """Refuse what began as something else than the source has: a prediction is no mended label map of the manifest."""
    if said is None:
        return
    own = {origin.begun.sha256} if origin.begun is not None else set()
    if origin.start is not None and origin.start.is_file():
        own.add(sha256_of(origin.start))
    if said not in own:
        raise DataError(
            "it began as something else than the label map of SOURCE",
            found=f"in {CORRECTIONS}, the hash of another file that it began with",
            expected="what was opened to correct it: the result folder, or the manifest",
            hint="give the result folder as SOURCE",
        )


def _series_of(images: Sequence[Path]) -> Series:
    found = series_as_taken(images)
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
    """Return the images by paths below the root; those that lie elsewhere, or are no NIfTI, are written there.

    Their names have a part of their hash, so that another image of the same id goes beside them.
    """
    if series is not None:
        with temporary_folder() as made:
            write_volume(load_series(series), made / "image.nii.gz")
            return [_placed(origin.id, made / "image.nii.gz", root)]
    images = []
    for index, image in enumerate(origin.images):
        stem = origin.id + (f"_{index:04}" if len(origin.images) > 1 else "")
        if not is_nifti(image):
            with temporary_folder() as made:
                as_nifti(str(image.resolve()), made, made / "image.nii.gz")
                images.append(_placed(stem, made / "image.nii.gz", root))
        elif image.resolve().is_relative_to(root):
            images.append(image.resolve().relative_to(root).as_posix())
        else:
            images.append(_placed(stem, image, root))
    return images


def _placed(stem: str, image: Path, root: Path) -> str:
    """Copy an image to a name with a part of its hash, and return its path below the root.

    Raises:
        DataError: a file of this name has other bytes.
    """
    digest, ending = sha256_of(image), ending_of(image)
    path = root / FOLDER / "images" / f"{stem}-{digest[:8]}{ending}"
    if not path.exists():
        with image.open("rb") as reading, write_whole(path) as writing:
            shutil.copyfileobj(reading, writing)
    elif sha256_of(path) != digest:
        raise DataError(
            "an image that was taken before has changed",
            path=path,
            found="other bytes than it was written with",
            expected="the image as it came",
            hint="move that file away, and import again",
        )
    return path.relative_to(root).as_posix()
