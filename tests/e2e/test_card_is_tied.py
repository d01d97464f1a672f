"""The documented way to figures on a card, with real commands, and the attack that it has to withstand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from segpipe.cli.app import run
from tiny_data import train_arguments, write_data


@pytest.mark.slow
def test_figures_of_what_the_bundle_predicted_and_of_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, out = write_data(tmp_path / "data"), tmp_path / "out"
    document = json.loads(manifest.read_text())
    document["test"] = [{key: case[key] for key in ("id", "image", "label")} for case in document["training"][4:]]
    document["training"] = document["training"][:4]
    manifest.write_text(json.dumps(document))
    bundle, predictions, metrics = out / "bundle", out / "predictions", out / "metrics"

    assert run(train_arguments(manifest, out / "run", "--epochs", "1")) == 0
    assert run(["export", str(out / "run"), str(bundle)]) == 0
    assert run(["predict", str(bundle), str(manifest), str(predictions), "--split", "test"]) == 0
    evaluate = ["evaluate", str(manifest), str(predictions), "--split", "test", "--no-figures", "--out"]
    assert run([*evaluate, str(metrics)]) == 0
    assert "All label maps are as bundle 0.1.0 made them" in capsys.readouterr().out.replace("\n", " ")
    again = ["export", str(out / "run"), str(bundle), "--overwrite", "--evaluation"]
    assert run([*again, str(metrics)]) == 0
    capsys.readouterr()
    assert run(["bundle", "verify", str(bundle), "--no-replay", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert next(check for check in checks if check["name"] == "figures")["status"] == "passed"
    assert "held out of the training" in (bundle / "docs/README.md").read_text()

    for case in document["test"]:  # the truth copied as predictions
        shutil.copy(tmp_path / "data" / case["label"], predictions / case["id"] / "segmentation.nii.gz")
    assert run([*evaluate, str(out / "copied")]) == 0
    assert run([*again, str(out / "copied")]) == 5
    assert "is not the file that `segpipe predict` wrote" in capsys.readouterr().err.replace("\n", " ")
