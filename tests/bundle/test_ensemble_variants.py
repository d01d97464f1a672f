"""Ensembles of every kind of network and post-processing: our engines against MONAI's evaluator, and their figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny_ensemble import write_folds
from tiny_run import TASK, MakeRun, affines, with_test_cases, write_predictions, write_truth

from segpipe.bundle import Bundle
from segpipe.bundle.exporting.write import export
from segpipe.bundle.segmentation import LoadedBundle
from segpipe.bundle.verify import verify_bundle
from segpipe.bundle.vet import TrustPolicy
from segpipe.common.files import write_json
from segpipe.data.phantom import write_nifti
from segpipe.errors import REFUSED, RefusedError
from segpipe.evaluation import evaluate
from segpipe.inference import ModelOptions

UNETPP = {
    "network_name": "unetpp",
    "patch_divisor": 16,
    "network_def": {
        "_target_": "segpipe.components.UNetPlusPlus",
        "spatial_dims": 3,
        "in_channels": "@in_channels",
        "out_channels": "@out_channels",
        "features": [4, 4, 4, 4, 4, 4],
        "deep_supervision": True,
    },
}
NEAREST = [
    {**step, "mode": ["nearest", "nearest"]} if step["_target_"] == "Spacingd" else step
    for step in TASK["deterministic_transforms"]  # type: ignore[attr-defined]
]
RULES = {"schema_version": 1, "rules": {"1": {"keep_largest": True, "min_volume_ml": 0.001}}}
VARIANTS: dict[str, dict[str, Any]] = {
    "one sigmoid channel": {"task": {"labels": ["background", "all"], "out_channels": 1, "activation": "sigmoid"}},
    "a list as output": {"network": UNETPP, "task": {"patch_size": [32, 32, 32]}},
    "not streamed": {"task": {"deterministic_transforms": NEAREST}},
    "post-processing": {},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "a list as output" else name for name in VARIANTS]
)
def test_our_engine_gives_what_monai_gives(
    make_run: MakeRun, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import monai.bundle

    # it would be searched for half a minute, and another test looks at it
    monkeypatch.setattr("segpipe.bundle.exporting.write.write_golden", lambda *_: {"reason": "a test"})
    options = {}
    if name == "post-processing":
        write_json(tmp_path / "rules.json", RULES)
        options = {"postprocessing": tmp_path / "rules.json"}
    bundle = export(write_folds(make_run(**VARIANTS[name]), tmp_path / "cv"), tmp_path / "bundle", **options)
    assert bundle.unsupported == () and len(bundle.members) == 2
    (tmp_path / "in").mkdir()
    voxels = np.random.default_rng(1).integers(1, 400, (20, 18, 17)).astype(np.int16)
    write_nifti(tmp_path / "in/a.nii.gz", voxels, affines()["tilted"])
    monai.bundle.run(
        config_file=str(bundle.root / "configs/inference.json"),
        bundle_root=str(bundle.root),
        dataset_dir=str(tmp_path / "in"),
        output_dir=str(tmp_path / "out"),
    )
    theirs = np.asarray(nib.load(tmp_path / "out/a_seg.nii.gz").dataobj)
    loaded = LoadedBundle(bundle.recipe(ModelOptions(device="cpu")), TrustPolicy(), is_foreign=False)
    ours = loaded.segment([str(tmp_path / "in/a.nii.gz")]).array
    assert loaded.segmenter.engine == ("monai" if name == "not streamed" else "streaming")
    assert len(np.unique(theirs)) > 1 and (ours == theirs).mean() > 0.9995


def test_another_ensemble_runs_by_monais_evaluator_as_it_is(make_run: MakeRun, tmp_path: Path) -> None:
    """A vote is not of the closed form: its label map is not that of the mean."""
    mean = export(write_folds(make_run(), tmp_path / "cv"), tmp_path / "bundle")
    root = Path(shutil.copytree(mean.root, tmp_path / "vote"))
    config = json.loads((root / "configs/inference.json").read_text())
    steps = config["postprocessing"]["transforms"]
    steps[0] = {"_target_": "AsDiscreted", "keys": ["member_0", "member_1"], "argmax": True, "to_onehot": 3}
    steps[1] = {
        "_target_": "MeanEnsembled",
        "keys": ["member_0", "member_1"],
        "output_key": "pred",
        "weights": [3.0, 1.0],
    }
    (root / "configs/inference.json").write_text(json.dumps(config))
    (root / "SHA256SUMS").unlink()
    vote = _opened(root)
    assert vote.unsupported and not vote.members[2:]
    image = tmp_path / "a.nii.gz"
    write_nifti(image, np.random.default_rng(1).integers(1, 400, (16, 16, 16)).astype(np.int16), np.eye(4))
    found = vote.segment(str(image), device="cpu").array
    first = export(tmp_path / "cv/fold_0", tmp_path / "first").segment(str(image), device="cpu").array
    assert (found == first).mean() > 0.999  # three votes against one
    assert (found != mean.segment(str(image), device="cpu").array).mean() > 0.001


def _opened(root: Path) -> Bundle:
    from segpipe.bundle.open import open_bundle

    return open_bundle(root, allow_unisolated=True)


def test_figures_are_of_all_members(run_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    with_test_cases(run)
    write_truth(run, tmp_path / "data")
    folds = write_folds(run, tmp_path / "cv")
    bundle = export(folds, tmp_path / "bundle")
    predictions = write_predictions(tmp_path / "predictions", bundle, run, tmp_path / "data")
    evaluate(run / "manifest.json", predictions, data=tmp_path / "data", out=tmp_path / "metrics", figures=False)
    carded = export(folds, tmp_path / "carded", evaluation=tmp_path / "metrics")
    text = (carded.root / "docs/README.md").read_text()
    assert "held out of the training" in text and "No validation figure of this model" in text
    verification = verify_bundle(carded.root)
    assert verification.exit_code == 0
    assert next(check for check in verification.checks if check.name == "figures").status == "passed"
    made_by = json.loads((carded.root / "provenance.json").read_text())["evaluation"]["made_by"]
    assert {"models/member_0.pt", "models/member_1.pt"} <= set(made_by["files"])
    _give_other_weights(folds / "fold_1")
    with pytest.raises(RefusedError, match="of other weights"):
        export(folds, tmp_path / "other", evaluation=tmp_path / "metrics")
    with pytest.raises(RefusedError, match="of other weights"):  # one member alone is not the ensemble
        export(folds / "fold_0", tmp_path / "other", evaluation=tmp_path / "metrics")
    assert RefusedError.exit_code == REFUSED


def _give_other_weights(fold: Path) -> None:
    import torch

    state = torch.load(fold / "best.pt", weights_only=True)
    torch.save(
        {name: tensor * 1.5 if tensor.is_floating_point() else tensor for name, tensor in state.items()},
        fold / "best.pt",
    )
