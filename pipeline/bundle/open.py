"""The one door to a bundle: metadata, configs and hashes as data, nothing evaluated, no torch imported."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.bundle.closed_form import deviations, short_name
from pipeline.bundle.reading import NotReadableError, read_document
from pipeline.bundle.references import is_plain, resolve
from pipeline.bundle.sums import check_sums, fingerprint, hash_files
from pipeline.errors import DataError, RefusedError, UsageError
from pipeline.inference.preprocessing import OutsideClosedList, Preprocessing

Activation = Literal["softmax", "sigmoid"]
CLEANUP = (
    "KeepLargestConnectedComponentd",
    "RemoveSmallObjectsd",
    "AsDiscreted",
    "SplitDimd",
    "ConcatItemsd",
)


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
        outside: why it runs through its own stock transforms; empty where the fields below say all.
        preprocessing: the deterministic transforms, None where they are outside the closed list.
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
    outside: tuple[str, ...] = ()
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
        return {
            "name": self.name,
            "version": self.version,
            "sha256": self.sha256,
            "signed_by": self.signed_by,
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
            "not a MONAI bundle folder", path=root, expected="a folder with configs/metadata.json",
            hint="make one with `segpipe export`",
        )  # fmt: skip
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
    found, outside = read_inference(inference)
    outside += deviations(inference)
    outside += [] if weights.name == "model.pt" else ["weights: not models/model.pt"]
    labels, channels = _meaning(metadata)
    regions = _regions(metadata, len(labels)) if _has_sigmoid(inference) else 0
    if regions or len(labels) == 1:  # each channel is a label, and none is the background
        labels = {0: "background"} | {value: name for value, name in enumerate(labels.values(), 1)}
    return Bundle(
        root=root, name=str(metadata.get("name") or root.resolve().name),
        version=str(metadata.get("version", "0")), metadata=metadata, inference=inference,
        config_file=config_file, weights=weights, sha256=sha256, intact=intact, labels=labels, channels=channels,
        outside=tuple(outside), regions=regions, signed_by=signed_by, **found,
    )  # fmt: skip


def _signer(root: Path, key: Path | None) -> str | None:
    if key is None:
        return None
    from pipeline.bundle.signing import check_signature  # its packages are an extra

    return check_signature(root, key)


def read_inference(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What an inference config says in the closed form, and what in it lies outside that form."""
    found: dict[str, Any] = {}
    outside: list[str] = []
    transforms = resolve(config.get("preprocessing"), config)
    if (
        isinstance(transforms, dict)
        and short_name(transforms) == "Compose"
        and set(transforms) == {"_target_", "transforms"}
    ):
        transforms = transforms["transforms"]
    try:
        found["preprocessing"] = Preprocessing.parse(transforms)
    except OutsideClosedList as error:
        outside.append(f"preprocessing: {error.what}: {error.why}")
    network = resolve(config.get("network_def"), config)
    if isinstance(network, dict) and is_plain(network) and isinstance(network.get("_target_"), str):
        found["network_def"] = network
    else:
        outside.append("network_def: not plain data")
    _read_inferer(resolve(config.get("inferer"), config), found, outside)
    _read_postprocessing(resolve(config.get("postprocessing"), config), found, outside)
    return found, outside


def _read_inferer(inferer: Any, found: dict[str, Any], outside: list[str]) -> None:
    known = {"_target_", "roi_size", "sw_batch_size", "overlap", "mode"}
    if (
        not isinstance(inferer, dict)
        or short_name(inferer) != "SlidingWindowInferer"
        or not is_plain(inferer)
    ):
        outside.append("inferer: not a plain SlidingWindowInferer")
        return
    size, overlap = inferer.get("roi_size"), inferer.get("overlap", 0.25)
    sizes = [size] * 3 if isinstance(size, int) else size
    odd = sorted(set(inferer) - known)
    if (
        odd
        or not isinstance(sizes, list)
        or len(sizes) != 3
        or not all(isinstance(n, int) and n > 0 for n in sizes)
    ):
        outside.append(f"inferer: {odd[0] if odd else 'roi_size'}")
    elif not isinstance(overlap, (int, float)):
        outside.append("inferer: overlap")
    else:
        found.update(
            roi_size=tuple(sizes), overlap=float(overlap), sw_batch_size=int(inferer.get("sw_batch_size", 1)),
            window_mode=inferer.get("mode", "constant"),
        )  # fmt: skip


def _read_postprocessing(postprocessing: Any, found: dict[str, Any], outside: list[str]) -> None:
    steps = postprocessing.get("transforms") if isinstance(postprocessing, dict) else postprocessing
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        outside.append("postprocessing: not a list of transforms")
        return
    names = [short_name(step) for step in steps]
    if names[:3] != ["Activationsd", "Invertd", "AsDiscreted"] or names[-1] != "SaveImaged":
        outside.append("postprocessing: not activation, Invertd, discretisation, saving")
        return
    odd = [name for name in names[3:-1] if name not in CLEANUP]
    chosen: list[Activation] = [name for name in ("softmax", "sigmoid") if steps[0].get(name) is True]
    whole_label = (
        steps[2].get("argmax") is True if chosen == ["softmax"] else steps[2].get("threshold") == 0.5
    )
    if odd or len(chosen) != 1 or not whole_label or steps[1].get("nearest_interp") is not False:
        outside.append(f"postprocessing: {odd[0] if odd else 'activation, interpolation or threshold'}")
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
        isinstance(step, dict) and short_name(step) == "Activationsd" and step.get("sigmoid") is True
        for step in steps
    )


def _inference_file(root: Path) -> Path:
    names = [f"inference.{suffix}" for suffix in ("json", "yaml", "yml")]
    found = next((root / "configs" / name for name in names if (root / "configs" / name).is_file()), None)
    if found is None:
        raise UsageError(
            "the bundle has no inference config", path=root / "configs", expected=" or ".join(names)
        )
    return found


def _weights_file(root: Path) -> Path:
    standard = root / "models" / "model.pt"
    others = sorted(standard.parent.glob("*.pt")) if standard.parent.is_dir() else []
    found = next((path for path in (standard, *others) if path.is_file()), None)
    if found is None:
        raise DataError(
            "the bundle has no weights", path=standard, hint="it needs a state dict models/model.pt"
        )
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
