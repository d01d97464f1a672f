"""Bundles in the manner of the model zoo: vetted with reasons, refused, and run as stock MONAI does once allowed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import yaml
from scipy.ndimage import gaussian_filter

from segpipe.bundle.open import open_bundle
from segpipe.bundle.verify import verify_bundle
from segpipe.cli.app import run
from segpipe.errors import OK, REFUSED, SegpipeError
from segpipe.prediction import worker
from segpipe.prediction.client import CannotGoOnError, Worker
from segpipe.prediction.protocol import Loaded, Segment, Segmented, from_json, to_json
from tiny_bundle import THRESHOLD, write_bundle
from zoo_bundles import LABELS, NEEDED, glob_and_handlers, own_scripts

Make = Callable[[Path], Path]
SCHEMAS = Path(__file__).parents[2] / "docs/schemas"
TURNED = np.array([[0, -2.1, 0.3, 12], [1.8, 0, 0, -7], [0, 0.4, 2.9, 3], [0, 0, 0, 1.0]])


class NearWorker(Worker):
    """The worker within this process."""

    def start(self) -> Loaded:
        if self.loaded is None:
            try:
                self.segmenter, self.loaded = worker.load(from_json(to_json(self.load)))
            except SegpipeError as error:
                raise CannotGoOnError(error) from error
        return self.loaded

    def segment(self, request: Segment, *_: Any, **__: Any) -> Segmented:
        try:
            answer: Segmented = from_json(to_json(worker.segment(self.segmenter, from_json(to_json(request)))))
        except SegpipeError:
            raise
        except Exception as error:
            raise worker.unexpected(error, may_quote=True) from error
        return answer


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers in this process, and nothing of a bundle left in it."""
    monkeypatch.setattr("segpipe.prediction.batch.Worker", NearWorker)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(2):
        noise = np.random.default_rng(seed).normal(size=(22, 19, 17 + seed))
        voxels = (gaussian_filter(noise, 1.2) * 600 + 50).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, TURNED), folder / f"s{seed}.nii.gz")
    return folder


def allowing(make: Make) -> list[str]:
    return [word for name in NEEDED[make] for word in ("--allow", name)]


def stock_labels(root: Path, scans: Path, out: Path) -> dict[str, Any]:
    """What MONAI's own workflow makes of the scans."""
    from monai.bundle import ConfigWorkflow

    config = next(root.glob("configs/inference.*"))
    sys.path.insert(1, str(root))
    workflow = ConfigWorkflow(
        config_file=str(config),
        meta_file=str(root / "configs/metadata.json"),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(root),
        dataset_dir=str(scans),
        output_dir=str(out),
    )
    workflow.initialize()
    workflow.run()
    return by_case(out)


def by_case(out: Path) -> dict[str, Any]:
    return {path.name[:2]: nib.load(path) for path in out.rglob("*.nii.gz")}


@pytest.mark.parametrize("make", NEEDED)
def test_reasons_are_given_and_its_names_are_enough(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path / "zoo")
    command = ["bundle", "verify", str(root), "--no-replay", "--json"]
    assert run(command) == REFUSED
    found = json.loads(capsys.readouterr().out)["findings"]
    assert {each["name"] for each in found} == set(NEEDED[make])
    assert all(each["reason"] and each["file"] for each in found)
    assert run([*command, *allowing(make)]) == OK
    document = json.loads(capsys.readouterr().out)
    assert document["allowed"] == sorted(NEEDED[make]) and document["trusted"] is False
    for missing in NEEDED[make]:
        names = [name for name in NEEDED[make] if name != missing]
        assert {each.name for each in verify_bundle(root, names).findings} == {missing}


@pytest.mark.parametrize("make", NEEDED)
@pytest.mark.usefixtures("near")
def test_predict_refuses_it_and_with_its_names_gives_what_stock_monai_gives(
    make: Make, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make(tmp_path / "zoo"), tmp_path / "out"
    command = ["predict", str(root), str(scans), str(out), "--device", "cpu", "--json"]
    assert run(command) == REFUSED
    error = json.loads(capsys.readouterr().out)
    jsonschema.validate(error, json.loads((SCHEMAS / "error.schema.json").read_text()))
    assert {each["name"] for each in error["error"]["findings"]} == set(NEEDED[make])
    assert not any(name.split(".")[0] == "scripts" for name in sys.modules)
    assert not any(path.read_text() for path in out.rglob("*") if path.is_file())
    assert run([*command, *allowing(make)]) == OK
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json.loads((SCHEMAS / "predict.schema.json").read_text()))
    assert document["counts"]["done"] == 2
    assert document["vetting"] == {"passed": True, "findings": 0, "allowed": sorted(NEEDED[make]), "intact": None}
    expected = stock_labels(root, scans, tmp_path / "stock")
    for case, labels in expected.items():
        result = json.loads((out / case / "result.json").read_text())
        jsonschema.validate(result, json.loads((SCHEMAS / "result.schema.json").read_text()))
        assert (result["route"], result["engine"]) == ("stock", "monai") and result["route_reasons"]
        assert result["vetting"]["allowed"] == sorted(NEEDED[make])
        assert set(result["voxels"]) == {"spleen", "tumour"}
        ours = nib.load(out / case / "segmentation.nii.gz")
        values = np.asarray(ours.dataobj)
        assert len(np.unique(values)) == 3  # the comparison says something
        np.testing.assert_array_equal(values, np.asarray(labels.dataobj))
        np.testing.assert_allclose(ours.affine, labels.affine, atol=1e-4)
    assert not (root / "eval").exists()


@pytest.mark.parametrize("make", NEEDED)
def test_labels_and_channels_are_those_of_the_metadata(make: Make, tmp_path: Path) -> None:
    bundle = open_bundle(make(tmp_path / "zoo"))
    assert bundle.labels == {int(value): name for value, name in LABELS.items()}
    assert bundle.channels == ["image"] and bundle.unsupported and bundle.intact is None


@pytest.mark.usefixtures("near")
def test_one_bad_case_does_not_stop_a_foreign_bundle(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = own_scripts(tmp_path / "zoo")
    code = root / "scripts/transforms.py"
    refusing = "        if data['image'].max() > 5000:\n            raise ValueError('too bright')\n        return"
    code.write_text(code.read_text().replace("        return", refusing))
    shutil.copytree(scans, tmp_path / "in")
    nib.save(nib.Nifti1Image(np.arange(8000.0).reshape(20, 20, 20), np.eye(4)), tmp_path / "in/s00.nii.gz")
    command = ["predict", str(root), str(tmp_path / "in"), str(tmp_path / "out"), *allowing(own_scripts)]
    assert run([*command, "--device", "cpu", "--json"]) == 4
    cases = {case["id"]: case for case in json.loads(capsys.readouterr().out)["cases"]}
    assert cases["s00"]["status"] == "failed" and "too bright" in cases["s00"]["detail"]
    assert cases["s0"]["status"] == cases["s1"]["status"] == "done"


@pytest.mark.usefixtures("near")
def test_weights_within_a_checkpoint_take_the_fast_route_too(scans: Path, tmp_path: Path) -> None:
    import torch

    root = write_bundle(tmp_path / "tiny")
    state = torch.load(root / "models/model.pt", weights_only=True)
    torch.save({"model": state, "epoch": 7}, root / "models/model.pt")
    assert run(["predict", str(root), str(scans), str(tmp_path / "out"), "--device", "cpu"]) == OK
    result = json.loads((tmp_path / "out/s0/result.json").read_text())
    assert (result["route"], result["engine"]) == ("typed", "streaming")
    bright = np.asarray(nib.load(scans / "s0.nii.gz").dataobj) > THRESHOLD
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out/s0/segmentation.nii.gz").dataobj), bright)


def change(root: Path, **ids: Any) -> Path:
    file = next(root.glob("configs/inference.*"))
    config = {**yaml.safe_load(file.read_text()), **ids}
    file.write_text(json.dumps(config) if file.suffix == ".json" else yaml.safe_dump(config, sort_keys=False))
    return root


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ({"run": ["$len(@datalist)"]}, "'run'"),
        ({"run": ["$@evaluator.run()", "$@evaluator.run()"]}, "'run'"),
        ({"dataloader": "$DataLoader(@dataset)"}, "val_data_loader"),
        ({"dataset": {"_target_": "ZipDataset", "datasets": []}}, "dataset"),
        ({"evaluator": {"_target_": "Compose"}}, "val_data_loader"),
        ({"network_def": {"_target_": "UNet"}}, "built"),
    ],
)
@pytest.mark.usefixtures("near")
def test_what_cannot_go_case_by_case_is_refused_with_the_stock_command(
    ids: dict[str, Any], words: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = change(glob_and_handlers(tmp_path / "zoo"), **ids)
    command = ["predict", str(root), str(scans), str(tmp_path / "out"), "--device", "cpu", "--run-unvetted-code"]
    assert run([*command, "--json"]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert words in error["message"] and "python -m monai.bundle run" in error["hint"]


@pytest.mark.slow
@pytest.mark.parametrize("make", NEEDED)
def test_verify_builds_it_once_its_names_are_allowed(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bundle", "verify", str(make(tmp_path / "zoo")), *allowing(make), "--json"]) == OK
    checks = {each["name"]: each["status"] for each in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["configs"] == checks["files"] == checks["network"] == "passed"


@pytest.mark.slow
@pytest.mark.parametrize("make", [glob_and_handlers, own_scripts])
def test_the_commands_themselves(make: Make, scans: Path, tmp_path: Path) -> None:
    root = make(tmp_path / "zoo")
    config = next(root.glob("configs/inference.*"))
    stock = ["-m", "monai.bundle", "run", "--config_file", str(config), "--bundle_root", str(root)]
    stock += ["--dataset_dir", str(scans), "--output_dir", str(tmp_path / "stock")]
    plain = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # as most have it: Python leaves what it compiled
    subprocess.run([sys.executable, *stock], check=True, capture_output=True, cwd=root, env=plain, timeout=250)
    ours = [sys.executable, "-m", "segpipe", "predict", str(root), str(scans), str(tmp_path / "out"), "--device", "cpu"]
    refused = subprocess.run(ours, capture_output=True, text=True, cwd=tmp_path, timeout=250)
    assert refused.returncode == REFUSED and NEEDED[make][0] in refused.stderr
    for compiled in root.rglob("__pycache__"):
        assert "delete the folder" in refused.stderr
        shutil.rmtree(compiled)
    done = subprocess.run([*ours, *allowing(make)], capture_output=True, text=True, cwd=tmp_path, timeout=250)
    assert (done.returncode, done.stderr) == (OK, "")
    for case, labels in by_case(tmp_path / "stock").items():
        values = np.asarray(nib.load(tmp_path / f"out/{case}/segmentation.nii.gz").dataobj)
        np.testing.assert_array_equal(values, np.asarray(labels.dataobj))
