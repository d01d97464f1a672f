"""A label map on its image's grid: what it says in numbers, and how it is written.

The one place for this: `Bundle.segment` returns it, and the worker of a batch writes its results with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.bundle.mirroring import untrained_note
from segpipe.bundle.out_of_distribution import far_from_training
from segpipe.bundle.vet import TrustPolicy, vet_opened
from segpipe.common.files import cannot_write
from segpipe.common.image_names import is_nifti
from segpipe.common.nifti import write_nifti_whole
from segpipe.common.partial import Partial, temporary_folder
from segpipe.common.result_folder import FORMATS
from segpipe.dicom import AlgorithmInfo, Series, covariates_of, label_infos, load_series, write_dicom, write_volume
from segpipe.errors import DataError, RefusedError, UsageError
from segpipe.inference import (
    CaseInput,
    LabelMap,
    Observation,
    Recipe,
    RegisteredFiles,
    Segmenter,
    Source,
    along_ras,
    bfloat16_note,
    describe,
    read_source,
    write_labels,
)
from segpipe.quality import Assessment, Judged, features_of, has_quality_model, read_quality_model, shipped_rules

if TYPE_CHECKING:
    from segpipe.dicom import Judgement

NO_DICOM_SOURCE = "the source is NIfTI, and DICOM results can only be derived from a DICOM series"
SHOWN = 8  # labels where it is named in a line


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Segmentation:
    """A label map on its image's grid.

    >>> import segpipe
    >>> segmentation = segpipe.open_bundle("bundles/hippocampus_mri").segment("scan.nii.gz")
    >>> segmentation.labels
    {'Anterior': 1, 'Posterior': 2}
    >>> segmentation.flags["empty"]
    False

    Attributes:
        array: (X, Y, Z) uint8 label values; where ``regions`` overlap, bit n of a voxel is region n + 1.
        affine_ras: (4, 4), voxel index to mm, RAS+: that of the image.
        labels: label value by name, without the background.
        volumes_ml: volume in mL by name.
        voxels: number of voxels by name.
        flags: ``empty``, ``touches_border`` (names of labels on a face of the image), ``orientation_unknown``,
            ``far_spacing`` and ``far_intensity`` (whether the image is far from the training cases: yes, no, unknown).
        seconds: by stage.
        notes: of the reader of a DICOM series, such as on its padding, and on axes that were mirrored at your risk.
        regions: how many regions that may overlap there are; 0 for a label map.
        features: measures of image and labels that quality is judged by; empty where nobody asked for them.
        quality: what the bundle's quality model says of the case; None where it has none.
        doubtful_slices: where to look first: ``plane`` (axial, coronal or sagittal, across which the image is
            coarsest), ``count`` of its slices, and ``slices``, those with most doubt of the network, each with its
            ``slice``, from 0 along that axis of the array, and the ``share`` of all doubt. None where nobody asked for
            features.
    """

    array: NDArray[np.uint8]
    affine_ras: NDArray[np.float64]
    labels: dict[str, int]
    volumes_ml: dict[str, float]
    voxels: dict[str, int]
    flags: dict[str, Any]
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()
    regions: int = 0
    features: dict[str, float] = field(default_factory=dict)
    quality: Assessment | None = None
    doubtful_slices: dict[str, Any] | None = None
    _label_map: LabelMap
    _recipe: Recipe
    _series: Series | None = None

    @classmethod
    def of(
        cls,
        label_map: LabelMap,
        recipe: Recipe,
        case: CaseInput,
        seen: Observation | None = None,
        covariates: Mapping[str, str | float] | None = None,
    ) -> Segmentation:
        """Describe what a segmenter made of a case, what was seen of it meanwhile, and who is known to be in it.

        Args:
            label_map: what was made.
            recipe: by what.
            case: its images.
            seen: while it was segmented, where somebody looked.
            covariates: of who and how was scanned, where no DICOM header says it.
        """
        grid = label_map.grid
        facts = describe(label_map.labels, grid.affine, recipe.labels, label_map.regions)
        features = features_of(seen, recipe.labels) if seen is not None and seen.image.numel() else {}
        model = read_quality_model(Path(recipe.root)) if features else None
        series = case if isinstance(case, Series) else case.series if isinstance(case, Source) else None
        if model is not None and series is not None:
            covariates = covariates_of(series)
        quality = None if model is None else model.assess(features, facts["volumes_ml"], covariates)
        spacing, intensity = along_ras(grid.spacing_mm, grid), label_map.preview.intensity
        return cls(
            array=label_map.labels,
            affine_ras=grid.affine,
            labels={name: value for value, name in recipe.labels.items() if value},
            volumes_ml=facts["volumes_ml"],
            voxels=facts["voxels"],
            flags={
                **facts["flags"],
                "orientation_unknown": not grid.is_oriented,
                **far_from_training(recipe.metadata, spacing, intensity),
            },
            seconds=label_map.seconds,
            notes=_once(
                *(case.notes if isinstance(case, (Series, Source)) else ()),
                *label_map.notes,
                *untrained_note(recipe.options, [recipe.metadata]),
                *bfloat16_note(recipe.options.precision, [recipe.metadata], label_map.runtime, recipe.options.mirror),
            ),
            regions=label_map.regions,
            features=features,
            quality=None if quality is None else _as_calibrated(quality, recipe, label_map.runtime),
            doubtful_slices=_doubtful_slices(seen, label_map) if features and seen is not None else None,
            _label_map=label_map,
            _recipe=recipe,
            _series=series,
        )

    def __repr__(self) -> str:
        """Name its shape and its largest volumes in a line."""
        largest = sorted(self.volumes_ml, key=lambda name: -self.volumes_ml[name])
        shown = [f"{name} {self.volumes_ml[name]:.4g} mL" for name in largest[:SHOWN]]
        others = [f"{len(largest) - SHOWN} others"] if len(largest) > SHOWN else []
        return f"Segmentation({' x '.join(map(str, self.array.shape))} voxels: {', '.join(shown + others)})"

    def mask(self, label: str) -> NDArray[np.bool_]:
        """Return where a label is, (X, Y, Z).

        Raises:
            UsageError: there is no such label.
        """
        if label not in self.labels:
            raise UsageError("the bundle has no such label", found=label, expected=", ".join(self.labels))
        value = self.labels[label]
        return self.array >> (value - 1) & 1 == 1 if self.regions else self.array == value

    def save(self, path: str | Path, format: str = "nifti") -> Path:
        """Write the label map, whole or not at all.

        >>> import segpipe
        >>> bundle = segpipe.open_bundle("bundles/hippocampus_mri")
        >>> segmentation = bundle.segment("scan.nii.gz")
        >>> segmentation.save("labels.nii.gz").name
        'labels.nii.gz'

        Args:
            path: the file; its folder is made where there is none.
            format: ``nifti``; or, where the image is a DICOM series, ``seg``, ``labelmap`` (segmentation as one label
                map), ``rtstruct`` or ``sr`` (measurements; it refers to the very file that ``seg`` writes).

        Returns:
            The path.

        Raises:
            UsageError: no such format, an ending that is not of it, or it cannot be written.
            DataError: the format cannot hold this label map.
        """
        path = Path(path)
        require_format(format)
        if format == "nifti" and not path.name.endswith((".nii", ".nii.gz")):
            raise UsageError("not a NIfTI file", path=path, expected="a name that ends in .nii or .nii.gz")
        if format != "nifti" and path.name.endswith((".nii", ".nii.gz")):
            raise UsageError("not a DICOM file", path=path, found=f"format {format}", expected="a name such as seg.dcm")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with Partial(path.parent) as partial:
                folder = partial.folder
                if format == "nifti":
                    self._write_nifti(folder / path.name)
                    written, refused = {format: path.name}, dict[str, str]()
                else:
                    written, refused = self._write_dicom(folder, [format], self._judgement())
                if format not in written:
                    raise self._cannot_write_as(format, refused[format])
                (folder / written[format]).replace(path)
        except OSError as error:
            raise cannot_write(path, error) from error
        return path

    def _judgement(self) -> Judgement | None:
        root = Path(self._recipe.root)
        return Judged.of(self.quality, self.flags, shipped_rules(root), root).judgement(root)

    def _cannot_write_as(self, format: str, reason: str) -> DataError:
        frames = self._series.frames if self._series else ()
        gone = next((frame.path for frame in frames if not frame.path.is_file()), None)
        return DataError(
            f"the label map cannot be written so, as {format}",
            path=gone,
            found=reason,
            hint="leave the series where it is until its results are written"
            if gone
            else 'format="nifti", with a name that ends in .nii.gz, always can be written',
        )

    def write(
        self, folder: Path, formats: Sequence[str], nifti_name: str, judgement: Judgement | None = None
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Write into a result folder what was asked for; the NIfTI file as well where a format cannot be.

        Args:
            folder: the folder.
            formats: of `FORMATS`.
            nifti_name: of the NIfTI file.
            judgement: what DICOM says of the quality; None where nothing was judged.

        Returns:
            File names by format, and for each format that was not written why.

        Raises:
            OSError, UsageError: a file cannot be written, or the disk is full.
        """
        files, not_written = self._write_dicom(folder, [name for name in formats if name != "nifti"], judgement)
        if "nifti" in formats or not_written:
            self._write_nifti(folder / nifti_name)
            files = {"nifti": nifti_name, **files}
        return files, not_written

    def _write_nifti(self, path: Path) -> None:
        write_labels(path, self.array, self._label_map.grid, self.regions)

    def _write_dicom(
        self, folder: Path, formats: Sequence[str], judgement: Judgement | None = None
    ) -> tuple[dict[str, str], dict[str, str]]:
        if not formats:
            return {}, {}
        if self._series is None:
            return {}, dict.fromkeys(formats, NO_DICOM_SOURCE)
        recipe = self._recipe
        infos, _ = label_infos(recipe.labels, {"name": recipe.name, "codes": recipe.metadata.get("codes")})
        algorithm = AlgorithmInfo(
            name=recipe.name,
            version=recipe.version,
            bundle_sha256=recipe.sha256,
            averaged_with=tuple(other.sha256 for other in recipe.ensemble),
            mirror=recipe.options.mirror,
        )
        return write_dicom(
            folder, formats, self._series, self.array, self.volumes_ml, infos, algorithm, self.regions, judgement
        )


def _as_calibrated(assessment: Assessment, recipe: Recipe, runtime: str) -> Assessment:
    """Return an assessment without bounds where the label map was computed otherwise than those of the calibration.

    These are of one bundle, as it was exported.
    """
    ways = [
        *([f"scores of {len(recipe.ensemble) + 1} bundles were averaged"] if recipe.ensemble else []),
        *([f"mirrored along {', '.join(recipe.options.mirror)}"] if recipe.options.mirror else []),
        *bfloat16_note(recipe.options.precision, [recipe.metadata], runtime, recipe.options.mirror),
    ]
    return assessment.without_bounds(f"computed otherwise than calibrated: {'; '.join(ways)}") if ways else assessment


def _doubtful_slices(seen: Observation, label_map: LabelMap) -> dict[str, Any]:
    """Return where the network doubts most, by slices across the axis along which the image is coarsest."""
    from nibabel.orientations import io_orientation

    axis = label_map.preview.normal
    plane = ("sagittal", "coronal", "axial")[int(io_orientation(label_map.grid.affine)[axis, 0])]
    found = [{"slice": number, "share": share} for number, share in seen.where_to_look(axis)]
    return {"plane": plane, "count": label_map.grid.shape[axis], "slices": found}


def require_format(name: str) -> None:
    """Refuse a format that there is not.

    Raises:
        UsageError: it is none of `FORMATS`.
    """
    if name not in FORMATS:
        raise UsageError("no such format", found=name, expected=", ".join(FORMATS))


def _once(*notes: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notes))


def as_source(case: CaseInput, recipe: Recipe) -> CaseInput:
    """Return the voxels of a case that a bundle's own transforms cannot be trusted to read; else the case as it is.

    They read NIfTI files of one grid.

    Raises:
        UsageError: no such file.
        DataError: as `segpipe.inference.read_source`.
    """
    if recipe.route == "typed" or isinstance(case, Source):
        return case
    if isinstance(case, Series):
        return read_source(case, recipe.channels, masks=recipe.masks) if case.further else case
    if all(map(is_nifti, case)) and not isinstance(case, RegisteredFiles):
        return case
    return read_source(case, recipe.channels, masks=recipe.masks)


@contextmanager
def readable(case: CaseInput, recipe: Recipe, folder: Path) -> Iterator[CaseInput]:
    """Give what a segmenter takes: where a bundle's own transforms read files, images become files for the time being.

    Raises:
        UsageError: a file cannot be written, or the disk is full.
    """
    if not isinstance(case, (Series, Source)) or recipe.route == "typed":
        yield case
        return
    paths = []
    try:
        if isinstance(case, Series):
            paths = [folder / f".{case.case_id}.nii.gz"]
            write_volume(load_series(case), paths[0])
        else:
            paths = [folder / f".channel_{index:04}.nii.gz" for index in range(len(case.array))]
            for path, values in zip(paths, case.array, strict=True):
                _write_channel(path, values, case)
        yield [str(path) for path in paths]
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _write_channel(path: Path, values: NDArray[Any], source: Source) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(values, source.header.affine)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
    image.header.set_xyzt_units("mm")
    write_nifti_whole(image, path)


class LoadedBundle:
    """A bundle that passed the gate, with its model in this process.

    Raises:
        RefusedError: it did not pass; or it is foreign, and nobody allowed to run it without isolation.
    """

    def __init__(self, recipe: Recipe, policy: TrustPolicy, is_foreign: bool) -> None:
        vet_opened(recipe.vetted, policy)
        if is_foreign and not policy.allow_unisolated:
            raise RefusedError(
                "the bundle brings code of its own or was let through, and would run in this very process",
                path=recipe.root,
                hint="segpipe.predict runs it isolated; open_bundle(..., allow_unisolated=True) lets it do whatever "
                "this process may do",
            )
        self.segmenter = Segmenter(recipe)

    def segment(self, case: CaseInput, measured: bool = False) -> Segmentation:
        """Return the label map of a case.

        Args:
            case: its images.
            measured: whether its features are wanted also where the bundle has no quality model.

        Raises:
            SegpipeError: as `Segmenter.segment`.
        """
        recipe = self.segmenter.recipe
        seen = Observation() if measured or has_quality_model(Path(recipe.root)) else None
        with temporary_folder() as folder, readable(as_source(case, recipe), recipe, folder) as images:
            label_map = self.segmenter.segment(images, observation=seen)
        return Segmentation.of(label_map, recipe, case, seen)
