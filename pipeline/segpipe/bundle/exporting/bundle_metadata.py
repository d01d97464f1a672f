"""``metadata.json`` of an exported bundle, complete by MONAI's bundle specification.

https://docs.monai.io/en/stable/mb_specification.html; our schema is ``segpipe/schemas/bundle_metadata.schema.json``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from segpipe.bundle.exporting.card_results import OVERALL
from segpipe.bundle.exporting.run_record import PROVENANCE, Run
from segpipe.bundle.references import resolve
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
    """What whoever exports says of a bundle; ``codes`` by label name, as `segpipe.dicom.codes` reads them.

    An empty ``description`` becomes one of network, labels and channels.

    Raises:
        UsageError: a name that is no file name, or a version that is not like 1.2.3.
    """

    name: str
    version: str = "0.1.0"
    licence: str = "Apache-2.0"
    authors: str = NOT_STATED
    limits: tuple[str, ...] = ()
    codes: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""

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
) -> dict[str, Any]:
    """All of ``metadata.json``.

    Args:
        run: what was trained.
        labelling: name, version and rights.
        network: the exported network's class and arguments.
        rules: post-processing by label value, which needs scikit-image.
        results: summary of an evaluation, as `segpipe.bundle.exporting.card_results.Evaluation` has it.
        section: of the manifest, which ``evaluate.json`` measures.
    """
    manifest, versions = run.manifest, run.versions
    foreground = ", ".join(manifest.foreground.values())
    modality = " and ".join(manifest.channels)
    best = run.record.get("best") or {}
    is_list = str(network["_target_"]).endswith("BasicUNetPlusPlus")
    return {
        "schema": SCHEMA,
        "name": labelling.name,
        "version": labelling.version,
        "changelog": {labelling.version: "exported from a training run"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"].split("+")[0],
        "numpy_version": versions["numpy"],
        "required_packages_version": _required(versions, bool(rules), str(network["_target_"])),
        "task": f"Segmentation of {foreground} in {modality}",
        "description": labelling.description
        or f"A {_short(network)} that labels {foreground} in 3D {modality} volumes.",
        "authors": labelling.authors,
        "copyright": NOT_STATED if labelling.authors == NOT_STATED else f"Copyright (c) {labelling.authors}",
        "license": labelling.licence,
        "data_source": manifest.source or manifest.name,
        "data_type": "nifti",
        "image_classes": f"{manifest.n_channels} channel(s): {', '.join(manifest.channels)}",
        "label_classes": "; ".join(f"{value} is {name}" for value, name in manifest.labels.items()),
        "pred_classes": "; ".join(f"channel {i} is {n}" for i, n in _output_channels(run).items()),
        "codes": _codes(manifest, labelling),
        "eval_metrics": _headline(results, best),
        "intended_use": NOT_A_DEVICE,
        "limits": list(labelling.limits),
        "references": [manifest.reference] if manifest.reference else [],
        "network_data_format": _network_data_format(run),
        "results": results,
        "evaluate_section": section,
        "training_data": _training_data(run),
        "config_requirements": {
            "inference.json": [],
            "evaluate.json": [],
            "train.json": [f"segpipe=={versions.get('segpipe', '0')}"],
        },
        "exceptions": {"verify_net_in_out": LIST_OUTPUT} if is_list else {},
        "postprocessing": {manifest.labels[str(value)]: rule.words() for value, rule in rules.items() if rule},
        "commands": _commands(labelling.name, results),
        "provenance": PROVENANCE,
        "run": {
            "network": run.config.get("network_name"),
            "loss": run.config.get("loss_name"),
            **{key: run.record.get(key) for key in RECORDED},
            "git_revision": (run.record.get("environment") or {}).get("git_revision"),
        },
    }


def _codes(manifest: Manifest, labelling: Labelling) -> dict[str, Any]:
    """What each label means in DICOM, of the labels whose meaning is known."""
    unknown = sorted(set(labelling.codes) - set(manifest.foreground.values()))
    if unknown:
        raise UsageError(
            "codes are given for what is no label", found=unknown[0], expected=", ".join(manifest.foreground.values())
        )
    labels = {int(value): name for value, name in manifest.labels.items()}
    infos, _ = label_infos(labels, {"name": labelling.name, "codes": labelling.codes})
    return codes_metadata(infos)


def _required(versions: Mapping[str, str], cleanup: bool, network: str) -> dict[str, str]:
    """What the stock configs need beside MONAI's own requirements."""
    required = {name: versions[name] for name in ("nibabel", "pytorch-ignite") if name in versions}
    needed = {
        "fire": True,  # without it, monai.bundle does not start
        "scikit-image": cleanup,
        "einops": network.endswith("SwinUNETR"),
    }
    for name in (name for name, is_needed in needed.items() if is_needed):
        with suppress(PackageNotFoundError):
            required[name] = version(name)
    return required


def _output_channels(run: Run) -> dict[str, str]:
    """Meaning of the network's output channels; one sigmoid channel is the one label."""
    if run.config["activation"] == "sigmoid":
        return {"0": run.manifest.labels["1"]}
    return dict(run.manifest.labels)


def _network_data_format(run: Run) -> dict[str, Any]:
    patch = resolve(run.config["patch_size"], run.config)
    channels = run.manifest.channels
    is_ct = all(name.upper().startswith("CT") for name in channels)
    is_mr = all(name.upper().startswith("M") or name.upper()[:2] in ("T1", "T2", "FL") for name in channels)
    shared = {"type": "image", "spatial_shape": patch, "dtype": "float32", "value_range": [], "is_patch_data": True}
    outputs = _output_channels(run)
    return {
        "inputs": {
            "image": {
                **shared,
                "format": "hounsfield" if is_ct else "magnitude",
                "modality": "CT" if is_ct else "MR" if is_mr else ", ".join(channels),
                "num_channels": len(channels),
                "channel_def": {str(index): name for index, name in enumerate(channels)},
            }
        },
        "outputs": {"pred": {**shared, "format": "labels", "num_channels": len(outputs), "channel_def": outputs}},
    }


def _training_data(run: Run) -> dict[str, Any]:
    cases = run.record.get("cases") or {}
    return {
        "name": run.manifest.name,
        "description": run.manifest.description,
        "licence": run.manifest.licence,
        "source": run.manifest.source,
        "split_rule": run.manifest.split_rule,
        "patient_rule": run.manifest.patient_rule,
        "training_cases": len(cases.get("training", [])) or None,
        "validation_cases": len(cases.get("validation", [])) or None,
        "test_cases": len(run.manifest.test) or None,
        "seen": run.seen,
    }


def _headline(results: dict[str, Any] | None, best: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    if best.get("val_mean_dice") is not None:
        found["val_mean_dice"] = round(float(best["val_mean_dice"]), 4)
    mean = ((results or {}).get("metrics") or {}).get("dice", {}).get(OVERALL, {})
    if mean.get("value") is not None:
        found[f"{(results or {}).get('split', 'test')}_mean_dice"] = round(float(mean["value"]), 4)
    return found


def _commands(name: str, results: Mapping[str, Any] | None) -> dict[str, str]:
    measured = results or {}
    fold = "" if measured.get("fold") is None else f" --fold {measured['fold']}"
    part = f"--split {measured.get('split', 'test')}{fold} --data DATA"
    nsd = measured.get("tolerance_mm", 1.0)
    tolerance = "" if nsd == 1.0 else f" --tolerance-mm {nsd:g}"
    manifest = f"{name}/configs/manifest.json"
    stock = f"python -m monai.bundle run --config_file {name}/configs"
    return {
        "predict_stock": f"{stock}/inference.json --bundle_root {name} --dataset_dir IMAGES --output_dir OUT",
        "predict": f"segpipe predict {name} IMAGES OUT",
        "predict_again": f"segpipe predict {name} {manifest} PREDICTIONS {part}",
        "evaluate": f"segpipe evaluate {manifest} PREDICTIONS --out METRICS {part}{tolerance}",
        "evaluate_stock": f"{stock}/evaluate.json --bundle_root {name} --dataset_dir DATA --output_dir OUT",
        "train": f"{stock}/train.json --bundle_root {name} --dataset_dir DATA",
        "check": f"cd {name} && sha256sum --check SHA256SUMS",
        "verify": f"segpipe bundle verify {name}",
        "reproduce": f"segpipe reproduce {name} --data DATA",
    }


def _short(network: Mapping[str, Any]) -> str:
    return str(network["_target_"]).rsplit(".", 1)[-1]
