"""``metadata.json`` of an exported bundle, complete by MONAI's bundle specification.

https://docs.monai.io/en/stable/mb_specification.html; our schema is ``segpipe/schemas/bundle_metadata.schema.json``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from segpipe.bundle.exporting.bundle_configs import window
from segpipe.bundle.exporting.card_figures import OVERALL
from segpipe.bundle.exporting.fine_tuned import parent_metadata
from segpipe.bundle.exporting.run_record import PROVENANCE, Run
from segpipe.data import Manifest
from segpipe.dicom import codes_metadata, label_infos
from segpipe.errors import UsageError
from segpipe.inference import LabelRule

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
NOT_STATED = "not stated"
NAME, VERSION = r"[A-Za-z0-9][\w.-]*", r"\d+\.\d+\.\d+[\w.+-]*"
RECORDED = ("status", "seed", "fold", "epochs", "best", "config_sha256", "manifest_sha256")
NOT_A_DEVICE = "Research and engineering use. Not a medical device, not for diagnosis or treatment."
LIST_OUTPUT = (
    "MONAI's BasicUNetPlusPlus returns a list of one tensor, and verify_net_in_out expects a tensor; "
    "SlidingWindowInferer unwraps it, so inference is not affected"
)


@dataclass(frozen=True)
class Labelling:
    """What whoever exports says of a bundle, as the keywords of `segpipe.export`.

    Raises:
        UsageError: a name that is no file name, or a version that is not like 1.2.3.
    """

    name: str
    version: str
    licence: str
    authors: str
    description: str
    limits: tuple[str, ...]
    codes: Mapping[str, Any]

    def __post_init__(self) -> None:
        for what, value, pattern in (("name", self.name, NAME), ("version", self.version, VERSION)):
            if not re.fullmatch(pattern, value):
                raise UsageError(f"this {what} of a bundle cannot be used", found=value, expected=pattern)


def bundle_metadata(
    run: Run,
    labelling: Labelling,
    network: Mapping[str, Any],
    rules: Mapping[int, LabelRule],
    results: dict[str, Any] | None,
    section: str,
    members: int = 1,
) -> dict[str, Any]:
    """Return all of ``metadata.json``.

    Args:
        run: what was trained.
        labelling: name, version and rights.
        network: the exported network's class and arguments.
        rules: post-processing by label value, which needs scikit-image.
        results: summary of an evaluation, as `segpipe.bundle.exporting.tied_evaluation.Evaluation` has it.
        section: of the manifest, which ``evaluate.json`` measures.
        members: networks of an ensemble; 1 for a single model.

    Raises:
        UsageError: codes for what is no label.
    """
    manifest, versions, target = run.manifest, run.versions, str(network["_target_"])
    foreground = ", ".join(manifest.targets.values())
    modality = " and ".join(manifest.channels)
    outputs = _output_channels(run)
    net = target.rpartition(".")[2]
    what = f"A {net} that labels" if members == 1 else f"An ensemble of {members} {net} networks that label"
    described = f"{what} {foreground} in 3D {modality} volumes."
    return {
        "schema": SCHEMA,
        "name": labelling.name,
        "version": labelling.version,
        "changelog": {labelling.version: "exported from a training run"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"].split("+")[0],
        "numpy_version": versions["numpy"],
        "required_packages_version": _required(versions, bool(rules), target),
        "task": f"Segmentation of {foreground} in {modality}",
        "description": labelling.description or described,
        "authors": labelling.authors,
        "copyright": NOT_STATED if labelling.authors == NOT_STATED else f"Copyright (c) {labelling.authors}",
        "license": labelling.licence,
        "data_source": manifest.source or manifest.name,
        "data_type": "nifti",
        "image_classes": f"{manifest.n_channels} channel(s): {', '.join(manifest.channels)}",
        "label_classes": "; ".join(f"{value} is {name}" for value, name in named_targets(manifest).items()),
        "pred_classes": "; ".join(f"channel {channel} is {name}" for channel, name in outputs.items()),
        "codes": _codes(manifest, labelling),
        "eval_metrics": _headline(results, run.record.get("best") or {}),
        "intended_use": NOT_A_DEVICE,
        "limits": [*labelling.limits, *_registered(manifest)],
        "references": [manifest.reference] if manifest.reference else [],
        "network_data_format": _network_data_format(run, outputs),
        **({"units": manifest.units} if manifest.units else {}),
        "results": results,
        "evaluate_section": section,
        "training_data": _training_data(run),
        **_training(run),
        "config_requirements": {
            "inference.json": [],
            "evaluate.json": [],
            "train.json": [f"segpipe=={versions.get('segpipe', '0')}"],
        },
        "exceptions": {"verify_net_in_out": LIST_OUTPUT} if target.endswith("BasicUNetPlusPlus") else {},
        "postprocessing": {manifest.targets[value]: rule.words() for value, rule in rules.items() if rule},
        "commands": _commands(labelling.name, results or {}, "parent" in run.record),
        "provenance": PROVENANCE,
        "run": {
            "network": run.config.get("network_name"),
            "loss": run.config.get("loss_name"),
            "keep_weights": run.config.get("keep_weights", "best"),
            **{key: run.record.get(key) for key in RECORDED},
            "git_revision": (run.record.get("environment") or {}).get("git_revision"),
        },
    }


def _registered(manifest: Manifest) -> list[str]:
    """Say of how many cases something else than their files has it that their channels lie in one space."""
    cases = manifest.cases()
    said = [case.registered for case in cases if case.registered]
    by = Counter(each if isinstance(each, str) else "the word of who imported them" for each in said)
    return [
        f"the channels of {count} of {len(cases)} cases are registered by {what}, and were resampled to one grid"
        for what, count in by.items()
    ]


def _required(versions: Mapping[str, str], cleanup: bool, network: str) -> dict[str, str]:
    """Return what the stock configs need beside MONAI's own requirements."""
    required = {name: versions[name] for name in ("nibabel", "pytorch-ignite") if name in versions}
    needed = ["fire"]  # without it, monai.bundle does not start
    needed += ["scikit-image"] if cleanup else []
    needed += ["einops"] if network.endswith("SwinUNETR") else []
    for name in needed:
        with suppress(PackageNotFoundError):
            required[name] = version(name)
    return required


def _output_channels(run: Run) -> dict[str, str]:
    """Return the meaning of the network's output channels; one sigmoid channel is the one label, or each a region."""
    if run.manifest.regions is not None:
        return {str(channel): name for channel, name in enumerate(run.manifest.regions)}
    if run.config["activation"] == "sigmoid":
        return {"0": run.manifest.labels["1"]}
    return dict(run.manifest.labels)


def named_targets(manifest: Manifest) -> dict[int, str]:
    """Return the name of each value of a label map, or the number of each region, with background."""
    return {0: manifest.labels["0"], **manifest.targets}


def _codes(manifest: Manifest, labelling: Labelling) -> dict[str, Any]:
    """Return what each label means in DICOM, of the labels whose meaning is known."""
    names = manifest.targets.values()
    unknown = sorted(set(labelling.codes) - set(names))
    if unknown:
        raise UsageError("codes are given for what is no label", found=unknown[0], expected=", ".join(names))
    infos, _ = label_infos(named_targets(manifest), {"name": labelling.name, "codes": labelling.codes})
    return codes_metadata(infos)


def _headline(results: Mapping[str, Any] | None, best: Mapping[str, Any]) -> dict[str, float]:
    results = results or {}
    measured = (results.get("metrics") or {}).get("dice", {}).get(OVERALL, {})
    figures = {"val": best.get("val_mean_dice"), results.get("split", "test"): measured.get("value")}
    return {f"{part}_mean_dice": round(float(value), 4) for part, value in figures.items() if value is not None}


def _network_data_format(run: Run, outputs: Mapping[str, str]) -> dict[str, Any]:
    channels = run.manifest.channels
    names = [name.upper() for name in channels]
    is_ct = all(name.startswith("CT") for name in names)
    is_mr = all(name.startswith(("M", "T1", "T2", "FL")) for name in names)
    shape = window(run.config)
    shared = {"type": "image", "spatial_shape": shape, "dtype": "float32", "value_range": [], "is_patch_data": True}
    image = {
        **shared,
        "format": "hounsfield" if is_ct else "magnitude",
        "modality": "CT" if is_ct else "MR" if is_mr else ", ".join(channels),
        "num_channels": len(channels),
        "channel_def": {str(index): name for index, name in enumerate(channels)},
    }
    pred = {**shared, "format": "labels", "num_channels": len(outputs), "channel_def": outputs}
    return {"inputs": {"image": image}, "outputs": {"pred": pred}}


def _training_data(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    return {
        "name": manifest.name,
        "description": manifest.description,
        "licence": manifest.licence,
        "source": manifest.source,
        "split_rule": manifest.split_rule,
        "patient_rule": manifest.patient_rule,
        "training_cases": len(run.cases.get("training", [])) or None,
        "validation_cases": len(run.cases.get("validation", [])) or None,
        "test_cases": len(manifest.test) or None,
        "seen": run.seen,
        **_label_maps(manifest),
    }


def _label_maps(manifest: Manifest) -> dict[str, Any]:
    """Return what the label maps said beside one label a voxel; nothing where they did not."""
    partial = sum(manifest.annotated(case) is not None for case in manifest.training)
    said = {
        "ignore_label": manifest.ignore_label,
        "regions": manifest.regions,
        "partly_annotated_cases": partial or None,
    }
    known = {name: value for name, value in said.items() if value is not None}
    return {**known, **({"labels": manifest.labels} if manifest.regions is not None else {})}


def _training(run: Run) -> dict[str, Any]:
    """Return what the training did to the axes of the network's grid, and what it began with, as far as is known."""
    axes = run.record.get("mirror_axes")
    known = {**({} if axes is None else {"mirror_axes": axes}), **parent_metadata(run.record)}
    return {"training": known} if known else {}


def _commands(name: str, results: Mapping[str, Any], has_parent: bool) -> dict[str, str]:
    fold = "" if results.get("fold") is None else f" --fold {results['fold']}"
    part = f"--split {results.get('split', 'test')}{fold} --data DATA"
    nsd = results.get("tolerance_mm", 1.0)
    tolerance = "" if nsd == 1.0 else f" --tolerance-mm {nsd:g}"
    manifest = f"{name}/configs/manifest.json"
    train, reproduce = (" --initial_weights INITIAL", " --parent PARENT") if has_parent else ("", "")
    stock = f"python -m monai.bundle run --config_file {name}/configs"
    return {
        "predict_stock": f"{stock}/inference.json --bundle_root {name} --dataset_dir IMAGES --output_dir OUT",
        "predict": f"segpipe predict {name} IMAGES OUT",
        "predict_again": f"segpipe predict {name} {manifest} PREDICTIONS {part}",
        "evaluate": f"segpipe evaluate {manifest} PREDICTIONS --out METRICS {part}{tolerance}",
        "evaluate_stock": f"{stock}/evaluate.json --bundle_root {name} --dataset_dir DATA --output_dir OUT",
        "train": f"{stock}/train.json --bundle_root {name} --dataset_dir DATA{train}",
        "check": f"cd {name} && sha256sum --check SHA256SUMS",
        "verify": f"segpipe bundle verify {name}",
        "reproduce": f"segpipe reproduce {name} --data DATA{reproduce}",
    }
