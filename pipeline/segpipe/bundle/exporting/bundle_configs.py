"""The configs of an exported bundle, from a run's config.

``inference.json`` and ``evaluate.json`` name only ``monai.*`` and ``torch.*``. Their only expressions are the sorted
listing of ``dataset_dir``, path joins and ``run()``. ``inference_fast.json`` is an overlay for where this package is
installed.

An ensemble has a copy of ``network_def`` for each of its members (a macro, which MONAI copies as text), a
`CheckpointLoader` for each, and the mean of their activated scores where one network's would be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from segpipe.bundle.exporting.label_masks import counted_voxels, region_masks
from segpipe.bundle.supported_subset import is_plain, resolve
from segpipe.bundle.tensors import weights_files
from segpipe.bundle.vet import FIRST_STAGE
from segpipe.errors import UsageError
from segpipe.inference import LabelRule, Preprocessing, cleanup_transforms

STORE_BESIDE = "$@run_dir + '/store'"  # of a run whose cases were in a store: as rounded, and wherever it runs
UNETPP = "segpipe.components.UNetPlusPlus"
OF_SLICES = {"segpipe.components.SliceUNet": "UNet", "segpipe.components.SliceDynUNet": "DynUNet"}
STAGE_DIR = f"{FIRST_STAGE}_dir"  # id of the folder of the masks that it wrote
FAST = "segpipe.components.FastPrediction"
Rules = Mapping[int, LabelRule]
Config = Mapping[str, Any]
NIFTI = ["[!.]*.[nN][iI][iI].[gG][zZ]", "[!.]*.[nN][iI][iI]"]  # hidden files are no images, as in `predict`
ABSOLUTE = re.compile(r"/|~|\\\\|.:[\\/]", re.DOTALL)
ABSOLUTE_IN_QUOTES = re.compile(r"(?<!\+ )['\"](?:/|~|[A-Za-z]:[\\/])")  # in an expression; not one that is joined


def network_definition(config: Config) -> dict[str, Any]:
    """Return the run's network as stock MONAI has it, with plain arguments.

    Our UNet++ and our networks of slices only add behaviour; their state dicts are those of MONAI's classes.

    Raises:
        UsageError: the network is of ours and has no stock counterpart, or has arguments that are not plain values.
    """
    network = resolve(config.get("network_def"), config)
    target = network.get("_target_") if isinstance(network, dict) else None
    if not isinstance(target, str) or not is_plain(network):
        raise UsageError(
            "the network of the run cannot be exported",
            found=f"network_def {network!r:.200}",
            expected="a class with plain arguments",
            hint="replace expressions in network_def by their values",
        )
    if target == UNETPP:
        return {**network, "_target_": "monai.networks.nets.BasicUNetPlusPlus", "deep_supervision": False}
    if target in OF_SLICES:
        return {**network, "_target_": f"monai.networks.nets.{OF_SLICES[target]}"}
    if "." in target and not target.startswith(("monai.", "torch.")):
        raise UsageError(
            "the network of the run cannot run in stock MONAI",
            found=target,
            expected=f"a network of monai.networks.nets, or one of {', '.join([UNETPP, *OF_SLICES])}",
            hint="an exported bundle must run without this package",
        )
    return network


def file_endings(files: int, masks: int = 0) -> list[str]:
    """Return how the files of one case end, in the order of its channels.

    Args:
        files: of a case; with more than one they end in ``_0000.nii.gz``, ``_0001.nii.gz``, ...
        masks: the last of them, which a first stage wrote beside ``_0000.nii.gz``.
    """
    if files == 1:
        return [".nii.gz"]
    scans = [f"_{index:04}.nii.gz" for index in range(files - masks)]
    return [*scans, *(f"_0000_{FIRST_STAGE}_{value}.nii.gz" for value in range(1, masks + 1))]


def inference_config(config: Config, rules: Rules, files: int, members: int = 1, masks: int = 0) -> dict[str, Any]:
    """Return a flat config that stock MONAI runs over a folder of NIfTI files.

    Args:
        config: a run's resolved config.
        rules: post-processing by label value.
        files: image files of one case; with more than one they end as `file_endings` has it.
        members: networks of an ensemble; 1 for a single model.
        masks: the last of the files, which lie in ``first_stage_dir``.

    Raises:
        UsageError: something in the run has no place in a stock config.
    """
    endings = file_endings(files, masks)
    parts = [f"p[:-12] + {ending!r}" for ending in endings[: files - masks]]
    parts += [f"@{STAGE_DIR} + '/' + p[len(@dataset_dir):-12] + {ending!r}" for ending in endings[files - masks :]]
    listing = "p" if files == 1 else f"[{', '.join(parts)}]"
    save = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "seg",
        "output_ext": ".nii.gz",
        "output_dtype": "uint8",
        "resample": False,
        "separate_folder": False,
        "print_log": False,
    }
    return {
        **_head(config, members),
        **({STAGE_DIR: "@dataset_dir"} if masks else {}),
        "files": {
            "_target_": "torch.utils.data.datapipes.iter.FileLister",
            "root": "@dataset_dir",
            "masks": NIFTI if files == 1 else ["[!.]*_0000.nii.gz"],
        },
        "datalist": f"$[{{'image': {listing}}} for p in sorted(@files)]",
        "preprocessing": _compose("@deterministic_transforms"),
        **_data_to_scores(config),
        "postprocessing": _compose([*_label_map_transforms(config, rules, members), save]),
        "handlers": _loaders(members),
        "evaluator": _evaluator(members),
        **RUN,
    }


def fast_config(config: Config, rules: Rules, members: int = 1) -> dict[str, Any] | None:
    """Return an overlay of the inference config that runs our engine where this package is installed.

    Given to `monai.bundle run` behind ``inference.json``. None where the transforms do not stream.
    """
    if Preprocessing.parse(_head(config, members)["deterministic_transforms"]).why_not_streamed():
        return None
    weights = [f"$@bundle_root + '/{file}'" for file in weights_files(members)]
    windows = {key: value for key, value in _data_to_scores(config)["inferer"].items() if key != "_target_"}
    return {
        "fast": {
            "_target_": FAST,
            "config_file": "$@bundle_root + '/configs/inference.json'",
            "weights": weights[0] if members == 1 else weights,
            "network": "@network_def" if members == 1 else "@networks",
            "datalist": "@datalist",
            "output_dir": "@output_dir",
            "device": "@device",
            **windows,
            "activation": _activation(config),
            "cleanup": _cleanup(config, rules),
        },
        "run": ["$@fast.run()"],
    }


def evaluate_config(config: Config, rules: Rules, section: str, members: int = 1) -> dict[str, Any]:
    """Return a config that measures Dice over a section of ``manifest.json``, on the files' grid, in stock MONAI.

    The truth is read beside the deterministic transforms, so that no resampling touches it. Ignored voxels are set to
    background in both, regions are masks of the truth, and cases in which not every label was looked for are left out.
    """
    ignored, regions = config.get("ignore_label"), config.get("regions") or {}
    truth: list[dict[str, Any]] = [
        {"_target_": "CopyItemsd", "keys": "label", "names": "truth"},
        {"_target_": "SelectItemsd", "keys": ["image", "truth"]},
        _compose("@deterministic_transforms"),
        {"_target_": "LoadImaged", "keys": "truth", "ensure_channel_first": True},
        *([] if ignored is None else counted_voxels(config)),
        *(region_masks(config) if regions else [{"_target_": "CopyItemsd", "keys": "truth", "names": "label"}]),
    ]
    compared: list[dict[str, Any]] = []
    if ignored is not None:
        compared.append({"_target_": "MaskIntensityd", "keys": ["pred", "label"], "mask_key": "counted"})
    if not regions:
        compared.append({"_target_": "AsDiscreted", "keys": ["pred", "label"], "to_onehot": n_labels(config)})
    listed = "listed" if config.get("annotated_sets") else "datalist"
    save = {
        "_target_": "MetricsSaver",
        "save_dir": "@output_dir",
        "metrics": "*",
        "metric_details": ["val_mean_dice"],
        "summary_ops": "*",
    }
    return {
        **_head(config, members),
        listed: {
            "_target_": "monai.data.load_decathlon_datalist",
            "data_list_file_path": "$@bundle_root + '/configs/manifest.json'",
            "data_list_key": section,
            "base_dir": "@dataset_dir",
        },
        **({"datalist": "$[c for c in @listed if 'annotated_labels' not in c]"} if listed == "listed" else {}),
        "preprocessing": _compose(truth),
        **_data_to_scores(config),
        "postprocessing": _compose([*_label_map_transforms(config, rules, members), *compared]),
        "key_metric": {
            "val_mean_dice": {
                "_target_": "MeanDice",
                "include_background": bool(regions),
                "output_transform": {"_target_": "monai.handlers.from_engine", "keys": ["pred", "label"]},
            }
        },
        "handlers": [*_loaders(members), {"_target_": "StatsHandler", "iteration_log": False}, save],
        "evaluator": {**_evaluator(members), "key_val_metric": "@key_metric"},
        **RUN,
    }


def train_config(config: Config) -> dict[str, Any]:
    """Return the run's config without its own places; what it writes goes beside the caller, never into the bundle.

    Raises:
        UsageError: another absolute path stands in it.
    """
    places = {
        "bundle_root": ".",
        "dataset_dir": "data",
        "run_dir": "run",
        "manifest": "$@bundle_root + '/configs/manifest.json'",
        "resume": False,
        "store": None if config.get("store") is None else STORE_BESIDE,
    }
    exported = {**config, **{key: value for key, value in places.items() if key in config}}
    leftover = _absolute_path(exported)
    if leftover is not None:
        raise UsageError(
            "the run's config holds a path of this machine",
            found=leftover,
            expected="paths relative to bundle_root or dataset_dir",
        )
    return exported


def check_rules(rules: Rules, config: Config) -> None:
    """Refuse a rule for a label, or region, that the network does not have.

    Raises:
        UsageError: naming it.
    """
    last = len(config.get("regions") or ()) or n_labels(config) - 1
    unknown = [value for value in sorted(rules) if not 0 < value <= last]
    if unknown:
        raise UsageError(
            f"a post-processing rule is for an unknown {'region' if config.get('regions') else 'label'}",
            found=unknown[0],
            expected=f"1 to {last}",
        )


def n_labels(config: Config) -> int:
    """Return the number of values of the label map, background included; one sigmoid channel makes two."""
    return max(2, int(resolve(config["out_channels"], config)))


RUN: Config = {"initialize": [], "run": ["$@evaluator.run()"]}


def _evaluator(members: int) -> dict[str, Any]:
    networks = {"network": "@network"} if members == 1 else {"networks": "@networks", "pred_keys": _score_keys(members)}
    return {
        "_target_": "SupervisedEvaluator" if members == 1 else "EnsembleEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        **networks,
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "val_handlers": "@handlers",
    }


def _loaders(members: int) -> list[dict[str, Any]]:
    """Return what loads the weights of each network when the evaluator starts."""
    networks = ["@network"] if members == 1 else [f"@networks#{index}" for index in range(members)]
    return [
        {"_target_": "CheckpointLoader", "load_path": f"$@bundle_root + '/{file}'", "load_dict": {"model": network}}
        for file, network in zip(weights_files(members), networks, strict=True)
    ]


def _score_keys(members: int) -> list[str]:
    """Return the keys of the members' scores: not MONAI's ``pred_0``, which splitting ``pred`` into labels makes."""
    return [f"member_{index}" for index in range(members)]


def _head(config: Config, members: int) -> dict[str, Any]:
    transforms = resolve(config["deterministic_transforms"], config)
    network = {"_target_": "torch.nn.Module.to", "self": "@network_def", "device": "@device"}
    copies = [{**network, "self": "%network_def"} for _ in range(members)]
    return {
        "bundle_root": ".",
        "output_dir": "eval",
        "dataset_dir": "data",
        "device": "cpu",
        "network_def": network_definition(config),
        **({"network": network} if members == 1 else {"networks": copies}),
        "deterministic_transforms": Preprocessing.parse(transforms).to_config(),
    }


def slice_axis(config: Config) -> int | None:
    """Return the axis along which a run's network goes slice by slice, None where it sees volumes."""
    network, patch = resolve(config.get("network_def"), config), resolve(config["patch_size"], config)
    return patch.index(1) if network.get("_target_") in OF_SLICES else None


def window(config: Config) -> list[int]:
    """Return the size of a window as the network takes it: along three axes, or the two of a slice."""
    patch, axis = resolve(config["patch_size"], config), slice_axis(config)
    return [size for place, size in enumerate(patch) if place != axis]


def _data_to_scores(config: Config) -> dict[str, Any]:
    axis = slice_axis(config)
    return {
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer" if axis is None else "SliceInferer",
            "roi_size": window(config),
            "sw_batch_size": resolve(config.get("sw_batch_size", 1), config),
            "overlap": resolve(config.get("overlap", 0.5), config),
            "mode": "gaussian",
            **({} if axis is None else {"spatial_dim": axis}),
        },
    }


def _compose(transforms: str | list[dict[str, Any]]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": transforms}


def _label_map_transforms(config: Config, rules: Rules, members: int) -> list[dict[str, Any]]:
    """Return the way from logits on the network's grid to a label map on the file's grid.

    The members of an ensemble are averaged behind their activation: logits of networks that were trained apart have
    no common scale, probabilities have. Scores are inverted, never logits: the inverse of a crop pads with 0, and a
    logit of 0 is not background.
    """
    activation = _activation(config)
    discrete = {"argmax": True} if activation == "softmax" else {"threshold": 0.5}
    invert = {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": False,
        "to_tensor": True,
    }
    keys = _score_keys(members)
    mean = {"_target_": "MeanEnsembled", "keys": keys, "output_key": "pred"}
    return [
        {"_target_": "Activationsd", "keys": "pred" if members == 1 else keys, activation: True},
        *([] if members == 1 else [mean]),
        invert,
        {"_target_": "AsDiscreted", "keys": "pred", **discrete},
        *_cleanup(config, rules),
    ]


def _cleanup(config: Config, rules: Rules) -> list[dict[str, Any]]:
    return cleanup_transforms(rules, n_labels(config), len(config.get("regions") or ()))


def _activation(config: Config) -> str:
    activation, n_channels = config.get("activation"), int(resolve(config["out_channels"], config))
    channels = len(config.get("regions") or [0])
    if activation not in ("softmax", "sigmoid") or (n_channels == channels) != (activation == "sigmoid"):
        raise UsageError(
            "the run's scores do not make one label map",
            found=f"{activation} over {n_channels} channels",
            expected="softmax over background and labels, or sigmoid over one channel or one for each of the regions",
        )
    return str(activation)


def _absolute_path(value: Any) -> str | None:
    """Return the first string of a config, or of a part of it, that is an absolute path or an expression with one."""
    if isinstance(value, (Mapping, list)):
        parts = value.values() if isinstance(value, Mapping) else value
        return next((found for part in parts if (found := _absolute_path(part))), None)
    if isinstance(value, str) and (
        ABSOLUTE.match(value) or (value.startswith("$") and ABSOLUTE_IN_QUOTES.search(value))
    ):
        return value
    return None
