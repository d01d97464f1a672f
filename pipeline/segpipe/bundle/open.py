"""The one door to a bundle: metadata, configs and hashes as data, nothing evaluated, no torch imported.

`Bundle.segment` alone runs it, behind the gate.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from segpipe.bundle.mirroring import judge_mirror
from segpipe.bundle.supported_subset import (
    MODEL,
    Activation,
    read_inference,
    read_meaning,
    read_members,
    stated_modality,
    units_of,
    unsupported_features,
)
from segpipe.bundle.vet import (
    FIRST_STAGE,
    INFERENCE,
    TrustPolicy,
    check_sums,
    fingerprint,
    hash_files,
    plain,
    read_mapping,
    unpacked,
)
from segpipe.common.api_calls import require_keywords
from segpipe.common.channel_names import masks_of
from segpipe.common.files import absolute_path, sha256_of
from segpipe.errors import DataError, RefusedError, UsageError
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


def open_bundle(
    path: str | PathLike[str],
    *,
    allow: str | Iterable[str] = (),
    run_unvetted_code: bool = False,
    key: str | PathLike[str] | None = None,
    allow_unisolated: bool = False,
) -> Bundle:
    """Read a bundle, ours or any other of MONAI's format.

    >>> import segpipe
    >>> segpipe.open_bundle("bundles/hippocampus_mri").name
    'hippocampus_mri'

    Args:
        path: the folder, or one zip file, which is unpacked for as long as the bundle is in use.
        allow: names that the bundle may use beside the list of admitted ones, as `segpipe bundle verify` gives them;
            one text is one name.
        run_unvetted_code: take a bundle that was changed, or whose code is not vetted: it may then read, change and
            send whatever you may on this machine.
        key: file of the public key that must have signed it; it is checked before anything else is read.
        allow_unisolated: run a bundle that brings code of its own, or was let through by the two options above, also
            where nothing can isolate it: in `Bundle.segment`, which runs it in this very process, and in
            `segpipe.predict` on a machine without Landlock and seccomp.

    Raises:
        UsageError: no bundle, it has no inference config, ``key`` is no public key, or an argument of a wrong type.
        DataError: a file of it cannot be parsed, or the weights are absent.
        RefusedError: it has SHA256SUMS, and a file was changed, is missing or was added; it is not signed by ``key``;
            or its archive is not safe to be unpacked.
    """
    absolute_path(path, "the folder or the zip file of a bundle")
    path, policy = Path(path), TrustPolicy(_names(allow), run_unvetted_code, allow_unisolated)
    stack = ExitStack()
    root = stack.enter_context(bundle_folder(path))
    holder = _Unpacked()
    weakref.finalize(holder, stack.close)
    if not (root / "configs" / "metadata.json").is_file():
        raise UsageError(
            "not a MONAI bundle folder",
            path=root,
            expected="a folder with configs/metadata.json",
            hint="make one with `segpipe export`",
        )
    config_file, weights = _find_files(root)
    signed_by = None if key is None else _signer(root, absolute_path(key, "the file of a public key"))
    try:
        hashes, intact = check_sums(root)
    except RefusedError:
        if not run_unvetted_code:
            raise
        hashes, intact = hash_files(root), False
    if config_file is None:
        raise UsageError("the bundle has no inference config", path=root, expected=" or ".join(INFERENCE))
    metadata = read_mapping(root / "configs/metadata.json", "bundle metadata")
    inference = read_mapping(config_file, "inference config")
    files = [root / file for file in read_members(inference)]
    if gone := [file for file in files if not file.is_file()]:
        raise DataError("a member of the ensemble has no weights", path=gone[0], hint="get the bundle again")
    weights = files[0] if files else weights
    if weights is None:
        raise DataError("the bundle has no weights", path=root / MODEL, hint=f"it needs a state dict {MODEL}")
    labels, channels, regions = read_meaning(metadata, inference)
    odd = list(unsupported_features(inference))
    supported, unsupported = read_inference(inference)
    unsupported += odd if files or weights.name == "model.pt" else [*odd, "weights: not models/model.pt"]
    deciding = {file.relative_to(root).as_posix(): sha256_of(file) for file in (config_file, *(files or [weights]))}
    first_stage = _read_first_stage(root, policy, channels, unsupported)
    if first_stage is not None:
        deciding |= {f"{FIRST_STAGE}/{file}": sha256 for file, sha256 in first_stage.model["files"].items()}
    return Bundle(
        root=root.absolute(),
        name=str(metadata.get("name") or root.resolve().name),
        version=str(metadata.get("version", "0")),
        metadata=metadata,
        inference=inference,
        config_file=config_file.absolute(),
        weights=weights.absolute(),
        weights_sha256=hashes[weights.relative_to(root).as_posix()],
        members=tuple(
            WeightsFile(path=str(file.absolute()), sha256=hashes[file.relative_to(root).as_posix()]) for file in files
        ),
        sha256=fingerprint(hashes),
        intact=intact,
        labels=labels,
        channels=channels,
        unsupported=tuple(unsupported),
        regions=regions,
        signed_by=signed_by,
        policy=policy,
        first_stage=first_stage,
        model={"files": deciding, "postprocessing": list(supported.get("cleanup", ()))},
        _unpacked=holder,
        **supported,
    )


def _read_first_stage(
    root: Path, policy: TrustPolicy, channels: Sequence[str], unsupported: Sequence[str]
) -> Bundle | None:
    """Open the bundle of the first stage on the terms of the whole; None where there is none.

    Raises:
        DataError: its label map does not give the channels that a scan has not, or one of the stages runs through
            transforms of its own.
    """
    if not (root / FIRST_STAGE / "configs" / "metadata.json").is_file():
        return None
    first = open_bundle(
        root / FIRST_STAGE,
        allow=policy.allow,
        run_unvetted_code=policy.run_unvetted_code,
        allow_unisolated=policy.allow_unisolated,
    )
    given = len(first.channels) + sum(value != 0 for value in first.labels)
    odd = [*(f"of the first stage, {each}" for each in first.unsupported), *unsupported]
    if given != len(channels) or first.regions or first.first_stage is not None or odd:
        raise DataError(
            "the two stages of the bundle do not fit",
            path=root / FIRST_STAGE,
            found="; ".join(odd) or f"{given} channels of scans and label map",
            expected=f"{len(channels)}, of one label map, and transforms of the supported subset",
            hint="export both stages again: `segpipe export SECOND OUT --first-stage FIRST`",
        )
    return first


@contextmanager
def bundle_folder(path: str | Path) -> Iterator[Path]:
    """Yield the folder of a bundle, which a zip file becomes for the time of the block.

    Raises:
        UsageError: a file that holds no bundle.
        RefusedError: an archive that is not safe to be unpacked, whatever the terms.
    """
    path = Path(path)
    if not path.is_file():  # a folder; of what is not there, `open_bundle` speaks
        yield path
        return
    with unpacked(path) as (root, findings):
        if root is None:
            raise RefusedError(
                "the bundle's archive is not safe to be unpacked",
                path=path,
                findings=plain(findings),
                hint="get it from whom you trust",
            )
        yield root


def is_bundle(path: str | Path) -> bool:
    """Return whether a path looks like a bundle: a folder with metadata, or a zip file."""
    path = Path(path)
    return (path / "configs" / "metadata.json").is_file() or (path.is_file() and path.suffix.lower() == ".zip")


class _Unpacked:
    """What a bundle and its copies hold on to: when it is gone, so is the folder that a zip file was unpacked to.

    A copy in another process does not hold it: it lasts as long as the bundle here.
    """

    def __deepcopy__(self, memo: object) -> _Unpacked:
        return self


def _names(allow: Any) -> tuple[str, ...]:
    names = [allow] if isinstance(allow, str) else list(allow) if isinstance(allow, Iterable) else [allow]
    if not all(isinstance(name, str) for name in names):
        raise UsageError("not names to allow", found=repr(allow), expected="a name, or a list of names")
    return tuple(names)


def _signer(root: Path, key: Path) -> str:
    from segpipe.bundle.signing import check_signature  # its packages are an extra

    return check_signature(root, key)


def _find_files(root: Path) -> tuple[Path | None, Path | None]:
    """Return the inference config and the weights, None for what is not there."""
    configs = [root / file for file in INFERENCE]
    standard = root / "models" / "model.pt"
    weights = [standard, *sorted(standard.parent.glob("*.pt"))] if standard.parent.is_dir() else []
    return next(filter(Path.is_file, configs), None), next(filter(Path.is_file, weights), None)
