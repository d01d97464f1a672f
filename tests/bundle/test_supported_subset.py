"""What takes a config out of the supported subset although its ids have it: then its own evaluator decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segpipe.bundle import Bundle, open_bundle
from segpipe.bundle.supported_subset import unsupported_features
from tiny_bundle import write_bundle

Keys = tuple[str | int, ...]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = write_bundle(tmp_path_factory.mktemp("closed") / "tiny")
    found: dict[str, Any] = json.loads((root / "configs/inference.json").read_text())
    return found


def test_our_own_configs_are_of_the_closed_form(plain: dict[str, Any], bundle: Bundle) -> None:
    assert list(unsupported_features(plain)) == [] and list(unsupported_features(bundle.inference)) == []


STEPS = ("postprocessing", "transforms")


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (("+inferer",), {"overlap": 0.7}, "+inferer"),
        (("inferer::overlap",), 0.7, "inferer::overlap"),
        (("evaluator", "_target_"), "scripts.engine.Evaluator", "SupervisedEvaluator"),
        (("evaluator", "inferer"), "@other", "evaluator: inferer"),
        (("evaluator", "postprocessing"), {"_target_": "Compose", "transforms": []}, "evaluator: postprocessing"),
        (("evaluator", "iteration_update"), "$@own", "evaluator: iteration_update"),
        (("evaluator", "amp"), True, "evaluator: amp"),
        (("evaluator", "_target_"), "scripts.SupervisedEvaluator", "SupervisedEvaluator"),
        (("network_def", "_target_"), "scripts.net.Net", "network_def"),
        (("dataset", "transform"), "@other", "dataset"),
        (("checkpoint", "load_path"), "$@bundle_root + '/models/best.pt'", "models/model.pt"),
        (("checkpoint", "load_dict"), {"net": "@network"}, "one model"),
        (("checkpoint", "strict"), False, "strict"),
        (("second",), {"_target_": "CheckpointLoader", "load_path": "x", "load_dict": {}}, "one model"),
        ((*STEPS, 0, "other"), True, "Activationsd: other"),
        ((*STEPS, 0, "_disabled_"), True, "Activationsd: _disabled_"),
        ((*STEPS, 2, "to_onehot"), 2, "AsDiscreted: to_onehot"),
        ((*STEPS, 2, "keys"), "label", "AsDiscreted: keys"),
    ],
)
def test_each_deviation_is_named(plain: dict[str, Any], place: Keys, value: Any, reason: str) -> None:
    config = json.loads(json.dumps(plain))
    owner: Any = config
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = value
    found = list(unsupported_features(config))
    assert found and all(reason in words or "one model" in words for words in found)


def test_a_state_dict_within_a_checkpoint_and_one_of_another_name(tmp_path: Path) -> None:
    import torch

    root = write_bundle(tmp_path / "tiny")
    assert open_bundle(root).unsupported == ()
    state = torch.load(root / "models/model.pt", weights_only=True)
    torch.save({"model": state}, root / "models/model_final.pt")
    (root / "models/model.pt").unlink()
    opened = open_bundle(root)
    assert opened.weights.name == "model_final.pt" and opened.unsupported == ("weights: not models/model.pt",)
