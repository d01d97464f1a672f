"""What keeps a config from meaning what its ids say in the closed form, where only its own evaluator tells the rest.

The one door to a bundle: metadata, configs and hashes as data, nothing evaluated, no torch imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segpipe.bundle.references import is_plain, resolve
from segpipe.bundle.vet import NotReadableError, check_sums, fingerprint, hash_files, read_document
from segpipe.errors import DataError, RefusedError, UsageError
from segpipe.inference import BundleFiles, ModelOptions, Preprocessing, Recipe, UnsupportedTransform

WEIGHTS = re.compile(r"\$\s*@bundle_root \+ ['\"]/models/model\.pt['\"]")
_EVALUATOR = {"_target_", "device", "val_data_loader", "network", "inferer", "postprocessing", "val_handlers"}
_STEPS = {
    "Activationsd": {"softmax", "sigmoid"},
    "Invertd": {"transform", "orig_keys", "nearest_interp", "to_tensor"},
    "AsDiscreted": {"argmax", "threshold"},
}


def unsupported_features(config: dict[str, Any]) -> Iterator[str]:
    """Each reason why the evaluator of a config may give other labels than its ids of the closed form say."""
    merged = next((key for key in config if key.startswith("+") or "::" in key or "#" in key), None)
    if merged is not None:
        yield f"{merged}: a key that is merged into another"
    if not short_name(resolve(config.get("network_def"), config)):
        yield "network_def: not a class of MONAI or torch"
    yield from _of_evaluator(config)
    yield from _of_weights(config)
    steps = resolve(config.get("postprocessing"), config)
    steps = steps.get("transforms") if isinstance(steps, dict) else steps
    for step in steps[:3] if isinstance(steps, list) else ():
        name = short_name(step)
        odd = sorted(set(step) - {"_target_", "keys"} - _STEPS.get(name, set())) if name else []
        if name in _STEPS and (odd or step.get("keys") not in ("pred", ["pred"])):
            yield f"postprocessing: {name}: {odd[0] if odd else 'keys'}"


def _of_evaluator(config: dict[str, Any]) -> Iterator[str]:
    evaluator = config.get("evaluator")
    if evaluator is None:
        return
    if short_name(evaluator) != "SupervisedEvaluator":
        yield "evaluator: not a SupervisedEvaluator"
        return
    odd = sorted(set(evaluator) - _EVALUATOR)
    others = [name for name in ("inferer", "postprocessing") if evaluator.get(name) != f"@{name}"]
    if odd or others:
        yield f"evaluator: {odd[0] if odd else others[0]}"
    dataset = config.get("dataset")
    if short_name(dataset) and isinstance(dataset, dict) and dataset.get("transform") != "@preprocessing":
        yield "dataset: its transform is not preprocessing"


def _of_weights(config: dict[str, Any]) -> Iterator[str]:
    loaders = [each for each in _dicts(config) if short_name(each) == "CheckpointLoader"]
    for loader in loaders:
        path, loaded = loader.get("load_path"), loader.get("load_dict")
        odd = sorted(set(loader) - {"_target_", "load_path", "load_dict", "map_location"})
        if len(loaders) > 1 or odd or not isinstance(loaded, dict) or list(loaded) != ["model"]:
            yield f"checkpoint: {odd[0] if odd else 'not one model'}"
        elif not (isinstance(path, str) and WEIGHTS.fullmatch(path)):
            yield "checkpoint: not models/model.pt"


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dicts(each)


def short_name(component: Any) -> str:
    """The name of a component of MONAI or torch; empty for what is none, or is the bundle's own."""
    target = component.get("_target_") if isinstance(component, dict) else None
    ours = isinstance(target, str) and ("." not in target or target.startswith(("monai.", "torch.")))
    return str(target).rsplit(".", 1)[-1] if ours else ""


Activation = Literal["softmax", "sigmoid"]
CLEANUP = ("KeepLargestConnectedComponentd", "RemoveSmallObjectsd", "AsDiscreted", "SplitDimd", "ConcatItemsd")


@dataclass(frozen=True)
class Bundle:
    """A bundle as data.

    Attributes:
        root: the folder.
        name: its name.
        version: its version.
        metadata: ``configs/metadata.json``.
        inference: the inference config as it is written, never evaluated.
        config_file: where the inference config lies.
        weights: the state dict, ``models/model.pt``, or the first other one where it is called otherwise.
        sha256: names the content: the hash of the sorted SHA256SUMS lines.
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
        overlap: share by which windows overlap.
        sw_batch_size: windows in one forward pass.
        window_mode: how overlapping windows are weighted, ``gaussian`` or ``constant``.
        regions: how many regions the scores have that may overlap, one a channel under a sigmoid: labels 1 and up;
            0 where there is one label map.
        signed_by: fingerprint of the key whose signature was required and found; None where none was required.
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
    overlap: float = 0.25
    sw_batch_size: int = 1
    window_mode: Literal["gaussian", "constant"] = "constant"
    regions: int = 0
    signed_by: str | None = None

    @property
    def facts(self) -> dict[str, str | None]:
        """How results name it."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256, "signed_by": self.signed_by}

    def recipe(self, options: ModelOptions, ensemble: Sequence[Bundle] = ()) -> Recipe:
        """Return what a segmenter of this bundle, and of further ones whose scores are averaged, is made from."""
        windowing: dict[str, Any] = {
            "roi_size": self.roi_size,
            "overlap": self.overlap,
            "batch": self.sw_batch_size,
            "mode": self.window_mode,
            "activation": self.activation,
        }
        typed = None if self.unsupported else self.preprocessing
        return Recipe(
            **self._files(),
            channels=max(1, len(self.channels)),
            labels=self.labels,
            preprocessing=typed.to_config() if typed else None,
            windowing=None if self.unsupported else windowing,
            cleanup=self.cleanup,
            regions=self.regions,
            options=options,
            ensemble=tuple(BundleFiles(**bundle._files()) for bundle in ensemble),
        )

    def _files(self) -> dict[str, Any]:
        return {
            "root": str(self.root.absolute()),
            "inference": self.inference,
            "metadata": self.metadata,
            "weights": str(self.weights.absolute()),
            "sha256": self.sha256,
            "config_file": self.config_file.relative_to(self.root).as_posix(),
        }


def open_bundle(path: str | Path, changed_too: bool = False, key: Path | None = None) -> Bundle:
    """Read a bundle folder, ours or any other of MONAI's format.

    Args:
        path: the folder.
        changed_too: let a bundle pass that is not as its SHA256SUMS says.
        key: file of the public key that must have signed it; it is checked before anything else is read.

    Raises:
        UsageError: not a bundle folder, it has no inference config, or ``key`` is no public key.
        DataError: a file of it cannot be parsed, or the weights are absent.
        RefusedError: it has SHA256SUMS, and a file was changed, is missing or was added; it is not signed by ``key``.
    """
    root = Path(path)
    if not (root / "configs" / "metadata.json").is_file():
        raise UsageError(
            "not a MONAI bundle folder",
            path=root,
            expected="a folder with configs/metadata.json",
            hint="make one with `segpipe export`",
        )
    signed_by = _signer(root, key)
    try:
        sha256, intact = check_sums(root)
    except RefusedError:
        if not changed_too:
            raise
        sha256, intact = fingerprint(hash_files(root)), False
    metadata = _mapping(root / "configs" / "metadata.json", "bundle metadata")
    config_file = _inference_file(root)
    inference = _mapping(config_file, "inference config")
    weights = _weights_file(root)
    found, unsupported = read_inference(inference)
    unsupported += unsupported_features(inference)
    unsupported += [] if weights.name == "model.pt" else ["weights: not models/model.pt"]
    labels, channels = _meaning(metadata)
    regions = _regions(metadata, len(labels)) if _has_sigmoid(inference) else 0
    if regions or len(labels) == 1:  # each channel is a label, and none is the background
        labels = {0: "background"} | {value: name for value, name in enumerate(labels.values(), 1)}
    return Bundle(
        root=root,
        name=str(metadata.get("name") or root.resolve().name),
        version=str(metadata.get("version", "0")),
        metadata=metadata,
        inference=inference,
        config_file=config_file,
        weights=weights,
        sha256=sha256,
        intact=intact,
        labels=labels,
        channels=channels,
        unsupported=tuple(unsupported),
        regions=regions,
        signed_by=signed_by,
        **found,
    )


def _signer(root: Path, key: Path | None) -> str | None:
    if key is None:
        return None
    from segpipe.bundle.signing import check_signature  # its packages are an extra

    return check_signature(root, key)


def read_inference(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What an inference config says in the closed form, and what in it is not supported by that form."""
    found: dict[str, Any] = {}
    unsupported: list[str] = []
    transforms = resolve(config.get("preprocessing"), config)
    if (
        isinstance(transforms, dict)
        and short_name(transforms) == "Compose"
        and set(transforms) == {"_target_", "transforms"}
    ):
        transforms = transforms["transforms"]
    try:
        found["preprocessing"] = Preprocessing.parse(transforms)
    except UnsupportedTransform as error:
        unsupported.append(f"preprocessing: {error.what}: {error.why}")
    network = resolve(config.get("network_def"), config)
    if isinstance(network, dict) and is_plain(network) and isinstance(network.get("_target_"), str):
        found["network_def"] = network
    else:
        unsupported.append("network_def: not plain data")
    _read_inferer(resolve(config.get("inferer"), config), found, unsupported)
    _read_postprocessing(resolve(config.get("postprocessing"), config), found, unsupported)
    return found, unsupported


def _read_inferer(inferer: Any, found: dict[str, Any], unsupported: list[str]) -> None:
    known = {"_target_", "roi_size", "sw_batch_size", "overlap", "mode"}
    if not isinstance(inferer, dict) or short_name(inferer) != "SlidingWindowInferer" or not is_plain(inferer):
        unsupported.append("inferer: not a plain SlidingWindowInferer")
        return
    size, overlap = inferer.get("roi_size"), inferer.get("overlap", 0.25)
    sizes = [size] * 3 if isinstance(size, int) else size
    odd = sorted(set(inferer) - known)
    if odd or not isinstance(sizes, list) or len(sizes) != 3 or not all(isinstance(n, int) and n > 0 for n in sizes):
        unsupported.append(f"inferer: {odd[0] if odd else 'roi_size'}")
    elif not isinstance(overlap, (int, float)):
        unsupported.append("inferer: overlap")
    else:
        found.update(
            roi_size=tuple(sizes),
            overlap=float(overlap),
            sw_batch_size=int(inferer.get("sw_batch_size", 1)),
            window_mode=inferer.get("mode", "constant"),
        )


def _read_postprocessing(postprocessing: Any, found: dict[str, Any], unsupported: list[str]) -> None:
    steps = postprocessing.get("transforms") if isinstance(postprocessing, dict) else postprocessing
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        unsupported.append("postprocessing: not a list of transforms")
        return
    names = [short_name(step) for step in steps]
    if names[:3] != ["Activationsd", "Invertd", "AsDiscreted"] or names[-1] != "SaveImaged":
        unsupported.append("postprocessing: not activation, Invertd, discretisation, saving")
        return
    odd = [name for name in names[3:-1] if name not in CLEANUP]
    chosen: list[Activation] = [name for name in ("softmax", "sigmoid") if steps[0].get(name) is True]
    whole_label = steps[2].get("argmax") is True if chosen == ["softmax"] else steps[2].get("threshold") == 0.5
    if odd or len(chosen) != 1 or not whole_label or steps[1].get("nearest_interp") is not False:
        unsupported.append(f"postprocessing: {odd[0] if odd else 'activation, interpolation or threshold'}")
        return
    found.update(activation=chosen[0], cleanup=tuple(steps[3:-1]))


def _regions(metadata: dict[str, Any], named: int) -> int:
    """Number of sigmoid channels where there are several; a single one may be named together with the background."""
    pred = ((metadata.get("network_data_format") or {}).get("outputs") or {}).get("pred") or {}
    channels = pred.get("num_channels", named)
    return channels if isinstance(channels, int) and channels == named > 1 else 0


def _has_sigmoid(config: dict[str, Any]) -> bool:
    """Whether the post-processing takes each channel for itself."""
    steps = resolve(config.get("postprocessing"), config)
    steps = steps.get("transforms") if isinstance(steps, dict) else steps
    return isinstance(steps, list) and any(
        isinstance(step, dict) and short_name(step) == "Activationsd" and step.get("sigmoid") is True for step in steps
    )


def _inference_file(root: Path) -> Path:
    names = [f"inference.{suffix}" for suffix in ("json", "yaml", "yml")]
    found = next((root / "configs" / name for name in names if (root / "configs" / name).is_file()), None)
    if found is None:
        raise UsageError("the bundle has no inference config", path=root / "configs", expected=" or ".join(names))
    return found


def _weights_file(root: Path) -> Path:
    standard = root / "models" / "model.pt"
    others = sorted(standard.parent.glob("*.pt")) if standard.parent.is_dir() else []
    found = next((path for path in (standard, *others) if path.is_file()), None)
    if found is None:
        raise DataError("the bundle has no weights", path=standard, hint="it needs a state dict models/model.pt")
    return found


def _mapping(path: Path, what: str) -> dict[str, Any]:
    """A document as JSON could hold it, as the worker is handed it."""
    try:
        document = read_document(path)
    except NotReadableError as error:
        raise DataError(f"the {what} cannot be read", path=path, found=error) from error
    document = json.loads(json.dumps(document, default=str))  # dates of YAML, and keys that are numbers
    if not isinstance(document, dict):
        raise DataError(f"the {what} is not a mapping", path=path, found=type(document).__name__)
    return document


def _meaning(metadata: dict[str, Any]) -> tuple[dict[int, str], list[str]]:
    """Meaning of the scores' channels by number, and names of the input channels."""
    formats = metadata.get("network_data_format")
    formats = formats if isinstance(formats, dict) else {}

    def tensor(side: str, name: str) -> dict[str, Any]:
        named = formats.get(side) or {}
        return named.get(name) or (next(iter(named.values())) if len(named) == 1 else None) or {}

    def channel_def(side: str, name: str) -> dict[int, str]:
        names = tensor(side, name).get("channel_def") or {}
        known = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(key): str(value) for key, value in sorted(known, key=lambda item: int(item[0]))}

    try:
        labels, channels = channel_def("outputs", "pred"), list(channel_def("inputs", "image").values())
        counted = tensor("inputs", "image").get("num_channels")
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError("network_data_format of the metadata cannot be read", found=str(error)) from error
    if not channels and isinstance(counted, int):
        channels = [f"channel {index}" for index in range(counted)]
    return labels, channels
