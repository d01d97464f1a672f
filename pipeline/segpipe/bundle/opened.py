"""A bundle as it was opened: metadata, configs and hashes as data, nothing evaluated, no torch imported.

`Bundle.segment` alone runs it, behind the gate.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from segpipe.bundle.mirroring import judge_mirror
from segpipe.bundle.supported_subset import Activation, stated_modality, units_of
from segpipe.bundle.vet import TrustPolicy
from segpipe.common.api_calls import require_keywords
from segpipe.common.channel_names import masks_of
from segpipe.errors import DataError, UsageError
from segpipe.inference import (
    BundleFiles,
    ModelKeywords,
    ModelOptions,
    Preprocessing,
    Recipe,
    Source,
    WeightsFile,
    split_words,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from segpipe.bundle.segmentation import LoadedBundle, Segmentation
    from segpipe.inference import CaseInput, Image


@dataclass(frozen=True, repr=False)
class Bundle:
    """A bundle as data; `segment` runs it.

    >>> import segpipe
    >>> bundle = segpipe.open_bundle("bundles/hippocampus_mri")
    >>> bundle.labels
    {0: 'background', 1: 'Anterior', 2: 'Posterior'}

    Attributes:
        root: the folder.
        name: its name.
        version: its version.
        metadata: ``configs/metadata.json``.
        inference: the inference config as it is written, never evaluated.
        config_file: where the inference config lies.
        weights: the state dict, ``models/model.pt``, or the first other one where it is called otherwise.
        members: of an ensemble, the state dict of each of its networks, ``weights`` first; empty for a single model.
        sha256: names the content: the hash of the sorted SHA256SUMS lines.
        model: what alone decides on a label map: ``files``, the hashes of its config and weights, and
            ``postprocessing``. Bundles that differ in their words only, such as the card, have the same.
        intact: True where every file is as SHA256SUMS says, False where one is not and that was let pass, None where
            the bundle has no such file.
        labels: label value to name, background included.
        channels: name of each input channel.
        unsupported: why it runs through its own stock transforms; empty where the fields below say all.
        preprocessing: the deterministic transforms, None where they are not all of the supported subset.
        network_def: class and arguments of the network as plain data.
        activation: from logits to scores.
        cleanup: MONAI transforms between the label map and its file, as plain data.
        roi_size: the sliding window in voxels.
        slice_axis: 0 to 2, along which the network goes slice by slice; None where it sees volumes.
        overlap: share by which windows overlap.
        sw_batch_size: windows in one forward pass.
        window_mode: how overlapping windows are weighted, ``gaussian`` or ``constant``.
        regions: how many regions the scores have that may overlap, one a channel under a sigmoid: labels 1 and up;
            0 where there is one label map.
        weights_sha256: of the weights' file as it was opened.
        signed_by: fingerprint of the key whose signature was required and found; None where none was required.
        policy: on which terms it may be run.
        first_stage: the bundle in its folder ``first_stage``, whose label map of a case gives the last channels; None
            where a case brings all of them.
    """

    root: Path
    name: str
    version: str
    metadata: dict[str, Any]
    inference: dict[str, Any]
    config_file: Path
    weights: Path
    sha256: str
    intact: bool | None
    labels: dict[int, str]
    channels: list[str]
    unsupported: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    network_def: dict[str, Any] | None = None
    activation: Activation | None = None
    cleanup: tuple[dict[str, Any], ...] = ()
    roi_size: tuple[int, int, int] | None = None
    slice_axis: int | None = None
    overlap: float = 0.25
    sw_batch_size: int = 1
    window_mode: Literal["gaussian", "constant"] = "constant"
    regions: int = 0
    weights_sha256: str = ""
    members: tuple[WeightsFile, ...] = ()
    signed_by: str | None = None
    policy: TrustPolicy = field(default_factory=TrustPolicy)
    model: dict[str, Any] = field(default_factory=dict)
    first_stage: Bundle | None = None
    _unpacked: object = field(default=None, compare=False)
    _loaded: dict[ModelOptions, LoadedBundle] = field(default_factory=dict, init=False, compare=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False, compare=False)

    def segment(
        self,
        image: Image,
        *,
        affine_ras: ArrayLike | None = None,
        modality: str | Sequence[str] | None = None,
        registered: bool = False,
        **options: Unpack[ModelKeywords],
    ) -> Segmentation:
        """Return the label map of one image, on the image's own grid.

        The bundle is vetted before anything of it runs, in this process. The model stays loaded for further calls with
        the same options; calls from several threads take turns. The label map is that of `segpipe.predict`.

        >>> import segpipe
        >>> segmentation = segpipe.open_bundle("bundles/hippocampus_mri").segment("scan.nii.gz", device="cpu")
        >>> sorted(segmentation.volumes_ml)
        ['Anterior', 'Posterior']

        Args:
            image: a path (file of an image, or folder of one DICOM series), a nibabel or SimpleITK image, a numpy array
                (X, Y, Z) with ``affine_ras``, or a volume of `segpipe.read_dicom`; or a list of these, one a channel.
            affine_ras: (4, 4) of an array: voxel index to mm, RAS+.
            modality: which a DICOM series may have, such as ``CT``; None takes the one that the bundle states, if any.
            registered: the channels lie in one space: those on another grid than the first are resampled to it.
            options: ``device`` (``auto``, ``cpu`` or ``cuda:N``), ``runtime`` (``auto``, ``torch`` or ``openvino``),
                ``threads``, ``mirror`` (axes of the network's grid that the training mirrored, ``x,y`` or
                ``all`` of them), ``mirror_untrained`` (others too, at your risk) and ``max_memory`` (bytes, or ``4G``).

        Raises:
            UsageError: no such image, an array without its affine, a wrong option, or no such device.
            DataError: the image, the bundle's config or its weights cannot be used, or a series is of another modality.
            RefusedError: the bundle does not pass the gate, brings code of its own and was not opened with
                ``allow_unisolated``, its training did not mirror these axes, or the image needs more memory than it may
                take.
        """
        from segpipe.bundle.segmentation import LoadedBundle
        from segpipe.inference import read_images

        require_keywords(
            "Bundle.segment", options, ("affine_ras", "modality", "registered", *ModelKeywords.__annotations__)
        )
        model = ModelOptions.parse(**options)
        of_scans = self.of_scans
        modalities = tuple(word.upper() for word in split_words(modality)) or stated_modality(of_scans.metadata)
        with self._turn:
            if model not in self._loaded:
                self._loaded.clear()
                self._loaded[model] = LoadedBundle(self.recipe(model), self.policy, self.is_foreign)
            unit = units_of(of_scans.metadata).get("0")
            whole = isinstance(image, (list, tuple)) and len(image) == len(self.channels)  # masks of a first stage, too
            channels = max(1, len((self if whole else of_scans).channels))
            masks = self.masks if channels == len(self.channels) else 0
            case = read_images(image, channels, affine_ras, registered, unit, masks)
            _require_modality(case, modalities)
            return self._loaded[model].segment(case)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy takes along, also to another process: all but the loaded model."""
        return {name: value for name, value in vars(self).items() if name not in ("_loaded", "_turn")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take it up; the model is loaded when it is needed."""
        vars(self).update(state, _loaded={}, _turn=threading.Lock())

    def __repr__(self) -> str:
        """Name it in a line."""
        return f"Bundle({self.name!r}, version {self.version}, sha256 {self.sha256[:12]}, root {str(self.root)!r})"

    @property
    def is_foreign(self) -> bool:
        """Whether it runs more than the closed form, or was let through by name or whatever was found."""
        return bool(self.unsupported or self.policy.allow or self.policy.run_unvetted_code)

    @property
    def of_scans(self) -> Bundle:
        """The bundle that says what images a case brings: the first stage, where there is one."""
        return self.first_stage or self

    @property
    def masks(self) -> int:
        """How many of the last channels are masks, by the first stage or by their names."""
        if self.first_stage is not None:
            return len(self.channels) - len(self.first_stage.channels)
        return masks_of(self.channels)

    @property
    def facts(self) -> dict[str, str | None]:
        """Return how results name it."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256, "signed_by": self.signed_by}

    def recipe(self, options: ModelOptions, ensemble: Sequence[Bundle] = ()) -> Recipe:
        """Return what a segmenter of this bundle, and of further ones whose scores are averaged, is made from.

        Raises:
            UsageError: further bundles beside one of two stages.
            RefusedError: axes to mirror that the training did not, as `segpipe.bundle.mirroring` judges them.
        """
        if ensemble and any(bundle.first_stage for bundle in (self, *ensemble)):
            raise UsageError(
                "a bundle of two stages is averaged with no other",
                hint="export a cross-validation of the second stage: its folds are one ensemble",
            )
        alone = replace(options, mirror=(), mirror_untrained=False)  # as when the second stage was trained on it
        windowing: dict[str, Any] = {
            "roi_size": self.roi_size,
            "overlap": self.overlap,
            "batch": self.sw_batch_size,
            "mode": self.window_mode,
            "activation": self.activation,
            "members": max(1, len(self.members)),
            "slice_axis": self.slice_axis,
        }
        typed = None if self.unsupported else self.preprocessing
        return Recipe(
            **self._files(),
            name=self.name,
            version=self.version,
            channels=max(1, len(self.channels)),
            masks=self.masks,
            labels=self.labels,
            preprocessing=typed.to_config() if typed else None,
            windowing=None if self.unsupported else windowing,
            cleanup=self.cleanup,
            regions=self.regions,
            options=judge_mirror(options, (self, *ensemble)),
            ensemble=tuple(BundleFiles(**bundle._files()) for bundle in ensemble),
            first_stage=None if self.first_stage is None else self.first_stage.recipe(alone),
        )

    def _files(self) -> dict[str, Any]:
        return {
            "root": str(self.root),
            "inference": self.inference,
            "metadata": self.metadata,
            "weights": str(self.weights),
            "sha256": self.sha256,
            "weights_sha256": self.weights_sha256,
            "members": self.members[1:],
            "config_file": self.config_file.relative_to(self.root).as_posix(),
        }


def _require_modality(case: CaseInput, modalities: Sequence[str]) -> None:
    found = case.modality if isinstance(case, Source) else None
    if found is not None and modalities and found.upper() not in modalities:
        raise DataError(
            "the series is of another modality than the bundle is for",
            found=found or "no modality",
            expected=" or ".join(modalities),
            hint=f'modality=["{found}"] lets it through' if found else "the files need a Modality in their headers",
        )
