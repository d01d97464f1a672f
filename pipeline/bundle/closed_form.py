"""What keeps a config from meaning what its ids say in the closed form, where only its own evaluator tells the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pipeline.bundle.references import resolve

WEIGHTS = re.compile(r"\$\s*@bundle_root \+ ['\"]/models/model\.pt['\"]")
_EVALUATOR = {"_target_", "device", "val_data_loader", "network", "inferer", "postprocessing", "val_handlers"}
_STEPS = {
    "Activationsd": {"softmax", "sigmoid"},
    "Invertd": {"transform", "orig_keys", "nearest_interp", "to_tensor"},
    "AsDiscreted": {"argmax", "threshold"},
}


def deviations(config: dict[str, Any]) -> Iterator[str]:
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
