"""What of an inference config the typed route and the streaming engine support, and why a config is not of it.

A config outside the subset is still run: by its own evaluator, as stock MONAI does. Plain ``@references`` are followed
as data: nothing is instantiated or evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from segpipe.bundle.vet import DEEPEST_REFERENCES
from segpipe.errors import DataError
from segpipe.inference import Preprocessing, UnsupportedTransform

Activation = Literal["softmax", "sigmoid"]
CLEANUP = ("KeepLargestConnectedComponentd", "RemoveSmallObjectsd", "AsDiscreted", "SplitDimd", "ConcatItemsd")
MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT"}
MOST_RESOLVED = 100_000  # values that a config may become, as references to references can double at each step
MOST_CHANNELS = 1000  # of an image: each is a volume, mostly a file
WEIGHTS = re.compile(r"\$\s*@bundle_root \+ ['\"]/(models/(?:model|member_\d{1,3})\.pt)['\"]", re.ASCII)
MODEL = "models/model.pt"
_AVERAGED = ["Activationsd", "MeanEnsembled"]
_REFERENCE = re.compile(r"^@(\w+(?:(?:#|::)\w+)*)$")
_INDEX = re.compile(r"\d{1,9}", re.ASCII)
_EVALUATOR = {"_target_", "device", "val_data_loader", "network", "inferer", "postprocessing", "val_handlers"}
_ENSEMBLE = (_EVALUATOR - {"network"}) | {"networks", "pred_keys"}
_MEMBER = {"_target_": "torch.nn.Module.to", "self": "%network_def", "device": "@device"}
_STEPS = {
    "Activationsd": {"softmax", "sigmoid"},
    "Invertd": {"transform", "orig_keys", "nearest_interp", "to_tensor"},
    "AsDiscreted": {"argmax", "threshold"},
}


def read_inference(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what an inference config says in the supported subset, and what in it is not supported."""
    supported: dict[str, Any] = {}
    unsupported: list[str] = []
    network = resolve(config.get("network_def"), config)
    if isinstance(network, dict) and is_plain(network) and isinstance(network.get("_target_"), str):
        supported["network_def"] = network
    else:
        unsupported.append("network_def: not plain data")
    _read_inferer(resolve(config.get("inferer"), config), supported, unsupported)
    _read_postprocessing(_steps_of(config), supported, unsupported)
    transforms = resolve(config.get("preprocessing"), config)
    if short_name(transforms) == "Compose" and set(transforms) == {"_target_", "transforms"}:
        transforms = transforms["transforms"]
    try:
        supported["preprocessing"] = Preprocessing.parse(transforms)
    except UnsupportedTransform as error:
        unsupported.insert(0, f"preprocessing: {error.what}: {error.why}")
    return supported, unsupported


def _read_inferer(inferer: Any, supported: dict[str, Any], unsupported: list[str]) -> None:
    arguments = {"_target_", "roi_size", "sw_batch_size", "overlap", "mode"}
    name = short_name(inferer)
    if not isinstance(inferer, dict) or name not in ("SlidingWindowInferer", "SliceInferer") or not is_plain(inferer):
        unsupported.append("inferer: not a plain SlidingWindowInferer or SliceInferer")
        return
    size, overlap = inferer.get("roi_size"), inferer.get("overlap", 0.25)
    sizes = [size] * 3 if isinstance(size, int) else size
    if name == "SliceInferer":
        arguments.add("spatial_dim")
        axis = inferer.get("spatial_dim", 0)
        if type(axis) is not int or axis not in range(3) or not isinstance(size, list) or len(size) != 2:
            unsupported.append("inferer: roi_size or spatial_dim of SliceInferer")
            return
        sizes = [*size[:axis], 1, *size[axis:]]
        supported["slice_axis"] = axis
    odd = sorted(set(inferer) - arguments)
    if odd or not isinstance(sizes, list) or len(sizes) != 3 or not all(isinstance(n, int) and n > 0 for n in sizes):
        unsupported.append(f"inferer: {odd[0] if odd else 'roi_size'}")
    elif not isinstance(overlap, (int, float)):
        unsupported.append("inferer: overlap")
    else:
        supported.update(
            roi_size=tuple(sizes),
            overlap=float(overlap),
            sw_batch_size=int(inferer.get("sw_batch_size", 1)),
            window_mode=inferer.get("mode", "constant"),
        )


def read_members(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the files with the weights of an ensemble's networks, below the bundle; empty for anything else.

    An ensemble has at least two networks, each a copy of ``network_def`` with a checkpoint of its own, in the order of
    ``networks``; a checkpoint that is loaded twice or into another place makes it something else.
    """
    if len(keys := _member_keys(config)) < 2:
        return ()
    evaluator, networks = config["evaluator"], config["networks"]
    stated = evaluator.get("networks"), resolve(evaluator.get("pred_keys"), config)
    if stated != ("@networks", keys) or any(network != _MEMBER for network in networks):
        return ()
    files: dict[str, str] = {}
    loaders = [each for each in _dicts(config) if short_name(each) == "CheckpointLoader"]
    for loader in loaders:
        path, loaded = loader.get("load_path"), loader.get("load_dict")
        match = WEIGHTS.fullmatch(path) if isinstance(path, str) else None
        if match is None or set(loader) != {"_target_", "load_path", "load_dict"} or not isinstance(loaded, dict):
            return ()
        files[str(loaded.get("model"))] = match[1]
    wanted = [f"@networks#{index}" for index in range(len(networks))]
    whole = len(loaders) == len(files) == len(set(files.values())) == len(wanted) and sorted(files) == sorted(wanted)
    return tuple(files[name] for name in wanted) if whole else ()


def _member_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the keys under which an `EnsembleEvaluator` leaves the scores of its networks; empty where it is none."""
    networks = config.get("networks")
    is_ensemble = short_name(config.get("evaluator")) == "EnsembleEvaluator" and isinstance(networks, list)
    return [f"member_{index}" for index in range(len(networks))] if is_ensemble and networks else []


def _steps_of(config: Mapping[str, Any]) -> Any:
    """Return the post-processing's transforms; of an ensemble as if one network had given the mean probabilities."""
    postprocessing = resolve(config.get("postprocessing"), config)
    steps = postprocessing.get("transforms") if isinstance(postprocessing, dict) else postprocessing
    keys = _member_keys(config)
    if not keys or not isinstance(steps, list) or [short_name(step) for step in steps[:2]] != _AVERAGED:
        return steps
    activation, mean, *rest = steps
    averaged = {name: value for name, value in mean.items() if name != "_target_"}
    if activation.get("keys") != keys or averaged != {"keys": keys, "output_key": "pred"}:
        return steps
    return [{**activation, "keys": "pred"}, *rest]


def _read_postprocessing(steps: Any, supported: dict[str, Any], unsupported: list[str]) -> None:
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
    supported.update(activation=chosen[0], cleanup=tuple(steps[3:-1]))


def unsupported_features(config: dict[str, Any]) -> Iterator[str]:
    """Yield each reason why a config's evaluator may give other labels than its ids in the supported subset say."""
    merged = next((key for key in config if key.startswith("+") or "::" in key or "#" in key), None)
    if merged is not None:
        yield f"{merged}: a key that is merged into another"
    if not short_name(resolve(config.get("network_def"), config)):
        yield "network_def: not a class of MONAI or torch"
    yield from _of_evaluator(config)
    yield from _of_weights(config)
    steps = _steps_of(config)
    for step in steps[:3] if isinstance(steps, list) else ():
        name = short_name(step)
        odd = sorted(set(step) - {"_target_", "keys"} - _STEPS.get(name, set())) if name else []
        if name in _STEPS and (odd or step.get("keys") not in ("pred", ["pred"])):
            yield f"postprocessing: {name}: {odd[0] if odd else 'keys'}"


def _of_evaluator(config: dict[str, Any]) -> Iterator[str]:
    evaluator = config.get("evaluator")
    if evaluator is None:
        return
    kinds = {"SupervisedEvaluator": _EVALUATOR, "EnsembleEvaluator": _ENSEMBLE}
    known = kinds.get(short_name(evaluator))
    if known is None:
        yield "evaluator: neither SupervisedEvaluator nor EnsembleEvaluator"
        return
    odd = sorted(set(evaluator) - known)
    others = [name for name in ("inferer", "postprocessing") if evaluator.get(name) != f"@{name}"]
    if odd or others:
        yield f"evaluator: {odd[0] if odd else others[0]}"
    dataset = config.get("dataset")
    if short_name(dataset) and isinstance(dataset, dict) and dataset.get("transform") != "@preprocessing":
        yield "dataset: its transform is not preprocessing"


def _of_weights(config: dict[str, Any]) -> Iterator[str]:
    if short_name(config.get("evaluator")) == "EnsembleEvaluator":
        if not read_members(config):
            yield "evaluator: its networks, keys and checkpoints are not those of an ensemble"
        return
    loaders = [each for each in _dicts(config) if short_name(each) == "CheckpointLoader"]
    for loader in loaders:
        path, loaded = loader.get("load_path"), loader.get("load_dict")
        match = WEIGHTS.fullmatch(path) if isinstance(path, str) else None
        odd = sorted(set(loader) - {"_target_", "load_path", "load_dict", "map_location"})
        if len(loaders) > 1 or odd or not isinstance(loaded, dict) or list(loaded) != ["model"]:
            yield f"checkpoint: {odd[0] if odd else 'not one model'}"
        elif match is None or match[1] != MODEL:
            yield "checkpoint: not models/model.pt"


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dicts(item)


def stated_modality(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the DICOM modality that a bundle's metadata state for its images, empty where it is none that is known."""
    stated: Any = metadata
    for key in ("network_data_format", "inputs", "image", "modality"):
        stated = stated.get(key) if isinstance(stated, Mapping) else None
    known = MODALITIES.get(stated.strip().upper()) if isinstance(stated, str) else None
    return (known,) if known else ()


def units_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the units of the values that a bundle was trained on, as far as it says them, by index of channel."""
    stated = metadata.get("units")
    return {str(index): str(unit) for index, unit in stated.items()} if isinstance(stated, Mapping) else {}


def read_meaning(metadata: dict[str, Any], config: dict[str, Any]) -> tuple[dict[int, str], list[str], int]:
    """Return labels by value, names of the input channels, and how many regions there are that may overlap.

    Raises:
        DataError: ``network_data_format`` cannot be read, or the config's references have no end.
    """
    formats = metadata.get("network_data_format")
    formats = formats if isinstance(formats, dict) else {}

    def tensor(side: str, name: str) -> dict[str, Any]:
        named = formats.get(side) or {}
        return named.get(name) or (next(iter(named.values())) if len(named) == 1 else None) or {}

    def channel_def(side: str, name: str) -> dict[int, str]:
        names = tensor(side, name).get("channel_def") or {}
        if not isinstance(names, (dict, list)):
            raise TypeError(f"channel_def is {type(names).__name__}, neither an object nor a list")
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(key): str(value) for key, value in sorted(pairs, key=lambda item: int(item[0]))}

    try:
        labels, channels = channel_def("outputs", "pred"), list(channel_def("inputs", "image").values())
        counted = tensor("inputs", "image").get("num_channels")
        if isinstance(counted, int) and not 0 <= counted <= MOST_CHANNELS:
            raise ValueError(f"more input channels than {MOST_CHANNELS}, or fewer than none")
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError("network_data_format of the metadata cannot be read", found=str(error)) from error
    if not channels and isinstance(counted, int):
        channels = [f"channel {index}" for index in range(counted)]
    regions = _regions(metadata, len(labels)) if _has_sigmoid(config) else 0
    if regions or len(labels) == 1:  # each channel is a label, and none is the background
        labels = {0: "background"} | {value: name for value, name in enumerate(labels.values(), 1)}
    return labels, channels, regions


def _regions(metadata: dict[str, Any], named: int) -> int:
    """Return the number of sigmoid channels where there are several; a single one may be named with the background."""
    pred = ((metadata.get("network_data_format") or {}).get("outputs") or {}).get("pred") or {}
    channels = pred.get("num_channels", named)
    return channels if isinstance(channels, int) and channels == named > 1 else 0


def _has_sigmoid(config: dict[str, Any]) -> bool:
    """Return whether the post-processing takes each channel for itself."""
    steps = resolve(config.get("postprocessing"), config)
    steps = steps.get("transforms") if isinstance(steps, dict) else steps
    return isinstance(steps, list) and any(
        isinstance(step, dict) and short_name(step) == "Activationsd" and step.get("sigmoid") is True for step in steps
    )


def short_name(component: Any) -> str:
    """Return the name of a component of MONAI or torch; empty for what is none, or is the bundle's own."""
    target = component.get("_target_") if isinstance(component, dict) else None
    ours = isinstance(target, str) and ("." not in target or target.startswith(("monai.", "torch.")))
    return str(target).rsplit(".", 1)[-1] if ours else ""


def resolve(
    value: Any,
    config: Mapping[str, Any],
    seen: frozenset[str] = frozenset(),
    left: list[int] | None = None,
    depth: int = 0,
) -> Any:
    """Return ``value`` with each string that is one ``@id`` replaced by that id's value in ``config``.

    What cannot be followed (an unknown id, a circle, an expression) stays as it is written.

    Raises:
        DataError: it would become more than `MOST_RESOLVED` values, or more than `DEEPEST_REFERENCES` deep.
    """
    left = [MOST_RESOLVED] if left is None else left
    left[0] -= 1
    if left[0] < 0 or depth > DEEPEST_REFERENCES:
        expected = f"at most {MOST_RESOLVED} values, {DEEPEST_REFERENCES} deep"
        raise DataError(
            "the config's references grow beyond any use",
            expected=expected,
            hint="write values where they are used, or get a bundle from whom you trust",
        )
    if isinstance(value, Mapping):
        return {key: resolve(item, config, seen, left, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, config, seen, left, depth + 1) for item in value]
    match = _REFERENCE.match(value) if isinstance(value, str) else None
    if match is None or value in seen:
        return value
    target: Any = config
    for part in re.split("#|::", match[1]):
        if isinstance(target, Mapping) and part in target:
            target = target[part]
        elif isinstance(target, list) and _INDEX.fullmatch(part) and int(part) < len(target):
            target = target[int(part)]
        else:
            return value
    return resolve(target, config, seen | {value}, left, depth + 1)


def is_plain(value: Any) -> bool:
    """Return whether a value holds no reference, expression or macro any more."""
    if isinstance(value, Mapping):
        return all(is_plain(item) for item in value.values())
    if isinstance(value, list):
        return all(is_plain(item) for item in value)
    return not (isinstance(value, str) and value[:1] in ("@", "$", "%"))
