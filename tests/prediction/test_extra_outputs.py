"""Overlapping regions as stock MONAI saves them; probabilities of chosen labels and entropy as extra outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator

from segpipe.bundle.open import open_bundle
from segpipe.cli.app import run
from segpipe.common.result_folder import ENTROPY, OVERLAY, PROBABILITIES, RESULT, SEGMENTATION, probability_name
from segpipe.errors import OK, USAGE
from segpipe.inference import ModelOptions
from segpipe.prediction.options import Outputs
from tiny_bundle import DETERMINISTIC, write_bundle, write_scan

pytestmark = pytest.mark.usefixtures("one_worker")
SCHEMA = Path(__file__).parents[2] / "docs/schemas/result.schema.json"
THRESHOLDS = (150.0, 100.0, 50.0)  # each region holds the ones before it
SPACED = [*DETERMINISTIC[:2], {"_target_": "Spacingd", "keys": "image", "pixdim": [2.5, 2.5, 2.5]}, DETERMINISTIC[2]]


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sigmoid channels: brighter than each threshold."""
    state = {"weight": torch.full((3, 1, 1, 1, 1), 0.05), "bias": -0.05 * torch.tensor(THRESHOLDS)}
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1}
    return write_bundle(
        tmp_path_factory.mktemp("bundle") / "regions",
        network=network,
        state=state,
        deterministic=SPACED,
        labels=("core", "tumour", "oedema"),
        activation="sigmoid",
    )


def predict(bundle: Path, tmp_path: Path, *options: str) -> tuple[Path, dict[str, Any]]:
    scan = write_scan(tmp_path / "in" / "a.nii.gz")
    assert run(["predict", str(bundle), str(scan), str(tmp_path / "out"), *options]) == OK
    folder = tmp_path / "out" / "a"
    result = json.loads((folder / RESULT).read_text())
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(result)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return folder, result


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.slow
def test_overlapping_regions_are_those_of_the_stock_bundle_run(regions: Path, tmp_path: Path) -> None:
    from monai.bundle import ConfigWorkflow

    folder, result = predict(regions, tmp_path, "--probabilities", "all", "--entropy")
    workflow = ConfigWorkflow(
        config_file=str(regions / "configs/inference.json"),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(regions),
        dataset_dir=str(tmp_path / "in"),
        output_dir=str(tmp_path / "stock"),
    )
    workflow.initialize()
    workflow.run()
    image, stock = nib.load(folder / SEGMENTATION), nib.load(tmp_path / "stock/a_seg.nii.gz")
    masks = np.asarray(image.dataobj)
    assert masks.shape == stock.shape == (12, 10, 9, 3) and image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(masks, np.asarray(stock.dataobj))
    np.testing.assert_allclose(image.affine, stock.affine, atol=1e-5)
    p = values(folder / PROBABILITIES)
    np.testing.assert_array_equal(p >= 0.5, masks == 1)
    expected = -(p * np.log(p) + (1 - p) * np.log1p(-p)).sum(-1)
    np.testing.assert_allclose(values(folder / ENTROPY), expected, atol=1e-4)
    assert result["engine"] == "streaming" and result["regions"] == 3
    assert result["voxels"] == dict(zip(("core", "tumour", "oedema"), masks.sum((0, 1, 2)), strict=True))
    assert 0 < result["voxels"]["core"] < result["voxels"]["tumour"] < result["voxels"]["oedema"]
    assert result["flags"]["touches_border"] == ["core", "tumour", "oedema"]
    assert result["beside"] == {"probabilities": PROBABILITIES, "entropy": ENTROPY}
    assert (folder / OVERLAY).is_file()


@pytest.mark.slow
def test_regions_by_the_engine_of_monai_are_the_same(regions: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "own"
    bundle.mkdir()
    for file in ("configs/metadata.json", "configs/inference.json", "models/model.pt"):
        (bundle / file).parent.mkdir(exist_ok=True)
        (bundle / file).write_bytes((regions / file).read_bytes())
    config = json.loads((bundle / "configs/inference.json").read_text())
    config["inferer"]["padding_mode"] = "constant"  # outside the supported subset
    (bundle / "configs/inference.json").write_text(json.dumps(config))
    (tmp_path / "ours").mkdir()
    ours, _ = predict(regions, tmp_path / "ours")
    folder, result = predict(bundle, tmp_path)
    assert result["engine"] == "monai" and result["regions"] == 3
    np.testing.assert_array_equal(values(folder / SEGMENTATION), values(ours / SEGMENTATION))


def test_probabilities_of_chosen_labels_and_the_entropy(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    every, _ = predict(tiny_bundle, tmp_path / "all", "--probabilities", "all")
    folder, result = predict(tiny_bundle, tmp_path, "--probabilities", "bright", "--entropy")
    assert result["beside"] == {"probability": {"bright": probability_name(1)}, "entropy": ENTROPY}
    assert not (folder / PROBABILITIES).exists()
    p = values(every / PROBABILITIES).astype(float)
    np.testing.assert_allclose(values(folder / probability_name(1)), p[..., 1], atol=1e-6)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = -np.nan_to_num(p * np.log(p)).sum(-1)
    np.testing.assert_allclose(values(folder / ENTROPY), expected, atol=1e-5)
    np.testing.assert_array_equal(values(folder / SEGMENTATION), values(every / SEGMENTATION))


def test_a_finished_case_is_computed_again_for_what_is_asked_for_beside_it(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = predict(tiny_bundle, tmp_path)
    assert not (folder / ENTROPY).exists()
    predict(tiny_bundle, tmp_path, "--entropy")
    assert (folder / ENTROPY).is_file()
    capsys.readouterr()
    predict(tiny_bundle, tmp_path, "--entropy", "--json")
    assert json.loads(capsys.readouterr().out)["counts"]["skipped"] == 1


def test_labels_are_named_or_counted(regions: Path, tiny_bundle: Path) -> None:
    bundle, plain = open_bundle(regions), open_bundle(tiny_bundle)
    assert bundle.labels == {0: "background", 1: "core", 2: "tumour", 3: "oedema"} and bundle.regions == 3
    outputs = Outputs(probabilities=("oedema", "1"))
    assert outputs.extra_paths(Path("out"), bundle.recipe(ModelOptions())) == {
        "single": {2: "out/probability_3.nii.gz", 0: "out/probability_1.nii.gz"}
    }
    outputs = Outputs(probabilities=("background",))
    assert outputs.extra_paths(Path("out"), plain.recipe(ModelOptions())) == {"single": {0: "out/probability_0.nii.gz"}}
    assert Outputs().extra_files(plain.labels, plain.activation) == {} and plain.regions == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--probabilities", "liver"],
        ["--probabilities", "background"],
        ["--probabilities", "core", "--probabilities", "all"],
    ],
)
def test_what_is_no_label_is_refused_before_anything_is_computed(
    regions: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    scan = write_scan(tmp_path / "in" / "a.nii.gz")
    assert run(["predict", str(regions), str(scan), str(tmp_path / "out"), *options]) == USAGE
    assert "found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
