"""Stock MONAI runs what was exported, and its label maps are right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny_run import MakeRun, affines, record_as_trained

from segpipe.bundle import Bundle
from segpipe.bundle.exporting.write import export
from segpipe.common.result_folder import find_segmentation
from segpipe.data.phantom import write_nifti


def stock(bundle: Bundle, images: Path, out: Path, config: str = "inference.json", **override: Any) -> None:
    import monai.bundle

    monai.bundle.run(
        config_file=str(bundle.root / "configs" / config),
        bundle_root=str(bundle.root),
        dataset_dir=str(images),
        output_dir=str(out),
        **override,
    )


def label_map(out: Path, name: str) -> Any:
    return nib.load(out / f"{name}_seg.nii.gz")


def network(bundle: Bundle) -> Any:
    import torch
    from monai.bundle import ConfigParser

    built = ConfigParser({"n": bundle.network_def}).get_parsed_content("n")
    built.load_state_dict(torch.load(bundle.weights, weights_only=True))
    return built.eval()


def scores(bundle: Bundle, volume: np.ndarray) -> np.ndarray:
    """Logits (C, X, Y, Z) of a volume (X, Y, Z) that is one window, computed by hand."""
    import torch

    values = torch.from_numpy((volume - volume.mean()) / volume.std()).float()
    with torch.no_grad():
        answer = network(bundle)(values[None, None])
    return np.asarray((answer[-1] if isinstance(answer, list) else answer)[0])


@pytest.fixture(scope="session")
def predicted(bundle: Bundle, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, here = tmp_path_factory.mktemp("predicted"), Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    try:
        stock(bundle, images, out)
    finally:
        os.chdir(here)
    return out


@pytest.mark.parametrize("name", affines())
def test_label_maps_lie_on_the_grid_of_the_source(predicted: Path, images: Path, name: str) -> None:
    source, found = nib.load(images / f"{name}.nii.gz"), label_map(predicted, name)
    assert found.shape == source.shape
    assert found.get_data_dtype() == np.uint8
    assert np.array_equal(found.affine, source.affine)
    assert np.allclose(found.get_qform(), source.affine, atol=1e-5)
    assert set(np.unique(found.dataobj)) <= {0, 1, 2}


@pytest.mark.parametrize("name", affines())
def test_simpleitk_and_nibabel_agree_where_the_label_map_lies(predicted: Path, images: Path, name: str) -> None:
    import SimpleITK as sitk  # noqa: N813

    source = sitk.ReadImage(str(images / f"{name}.nii.gz"))
    found = sitk.ReadImage(str(predicted / f"{name}_seg.nii.gz"))
    affine = label_map(predicted, name).affine
    assert int(label_map(predicted, name).header["sform_code"]) == 1
    assert int(label_map(predicted, name).header["qform_code"]) == 1
    for corner in [(0, 0, 0), (15, 0, 0), (0, 15, 0), (0, 0, 15), (15, 15, 15)]:
        place = np.array(found.TransformIndexToPhysicalPoint(corner))
        assert np.allclose(place, source.TransformIndexToPhysicalPoint(corner), atol=1e-3)
        assert np.allclose(place * (-1, -1, 1), (affine @ [*corner, 1])[:3], atol=1e-3)  # LPS to RAS


def test_a_folder_as_people_have_it_from_another_directory(
    bundle: Bundle, predicted: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = tmp_path / "scans"
    (scans / "deeper").mkdir(parents=True)
    content = (images / "plain.nii.gz").read_bytes()
    for name in ("v1.2_of.me.nii.gz", "UPPER.NII.GZ", "deeper/not_taken.nii.gz"):
        (scans / name).write_bytes(content)
    nib.save(nib.load(images / "plain.nii.gz"), scans / "plain.nii")
    for name in ("._v1.2_of.me.nii.gz", ".DS_Store", "notes.txt", "scan.dcm", "nii.gz.zip"):
        (scans / name).write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    stock(bundle, Path("scans"), Path("out/new"))
    found = sorted(path.name for path in (tmp_path / "out/new").iterdir())
    assert found == ["UPPER.NII_seg.nii.gz", "plain_seg.nii.gz", "v1.2_of.me_seg.nii.gz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scans"]
    for name in ("plain", "UPPER.NII", "v1.2_of.me"):
        expected = np.asarray(label_map(predicted, "plain").dataobj)
        assert np.array_equal(np.asarray(label_map(tmp_path / "out/new", name).dataobj), expected)


def test_an_empty_folder_is_said_and_a_missing_one_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning, match="is empty"):
        stock(bundle, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(RuntimeError):
        stock(bundle, tmp_path / "gone", tmp_path / "out")


def test_nothing_else_is_written(predicted: Path) -> None:
    assert sorted(path.name for path in predicted.rglob("*")) == sorted(f"{name}_seg.nii.gz" for name in affines())


@pytest.mark.parametrize("name", ["plain", "flipped"])
def test_one_window_is_the_argmax_of_the_network(bundle: Bundle, predicted: Path, images: Path, name: str) -> None:
    volume = np.asarray(nib.load(images / f"{name}.nii.gz").dataobj).astype(np.float64)
    flip = (slice(None, None, -1), slice(None, None, -1)) if name == "flipped" else ()
    expected = scores(bundle, volume[flip].copy()).argmax(0)[flip]
    found = np.asarray(label_map(predicted, name).dataobj)
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() >= 0.9999


def test_evaluate_config_measures_on_the_grid_of_the_files(
    bundle: Bundle, predicted: Path, images: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    (images.parent / "labels").mkdir(exist_ok=True)
    expected = []
    for name in sorted(affines()):
        found = label_map(predicted, name)
        truth = np.where(rng.random(found.shape) < 0.3, 1, np.asarray(found.dataobj)).astype(np.uint8)
        write_nifti(images.parent / "labels" / f"{name}.nii.gz", truth, found.affine)
        pairs = [(truth == value, np.asarray(found.dataobj) == value) for value in (1, 2)]
        expected.append([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs])
    stock(bundle, images.parent, tmp_path, "evaluate.json")
    rows = [line.split(",") for line in (tmp_path / "val_mean_dice_raw.csv").read_text().splitlines()[1:]]
    found = sorted((float(row[1]), float(row[2])) for row in rows)
    for one, other in zip(found, sorted(map(tuple, expected)), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_the_device_is_overridden_by_a_word(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        stock(bundle, images, tmp_path, device="cuda:0")
        return
    with pytest.raises(RuntimeError) as caught:
        stock(bundle, images, tmp_path, device="cuda:0")
    causes, error = [], caught.value
    while error is not None:
        causes.append(str(error).lower())
        error = error.__cause__  # type: ignore[assignment]
    assert any("cuda" in cause or "nvidia" in cause for cause in causes)


def test_unetpp_runs_as_monais_own(make_run: MakeRun, images: Path, tmp_path: Path) -> None:
    import torch

    from segpipe.components.networks import UNetPlusPlus

    definition = {
        "_target_": "segpipe.components.UNetPlusPlus",
        "spatial_dims": 3,
        "in_channels": "@in_channels",
        "out_channels": "@out_channels",
        "features": [4, 4, 4, 4, 4, 4],
        "deep_supervision": True,
    }
    run = make_run(
        network={"network_def": definition, "patch_divisor": 16, "network_name": "unetpp"},
        task={"patch_size": [32, 32, 32]},
    )
    bundle = export(run, tmp_path / "unetpp")
    assert bundle.network_def is not None
    assert bundle.network_def["_target_"] == "monai.networks.nets.BasicUNetPlusPlus"
    assert "verify_net_in_out" in bundle.metadata["exceptions"]
    ours = UNetPlusPlus(spatial_dims=3, out_channels=3, features=(4,) * 6, deep_supervision=True)
    ours.load_state_dict(torch.load(run / "best.pt", weights_only=True))
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(bundle)(image)[-1], ours.eval()(image))
    one = tmp_path / "one"
    one.mkdir()
    (one / "plain.nii.gz").write_bytes((images / "plain.nii.gz").read_bytes())
    stock(bundle, one, tmp_path / "out")
    assert label_map(tmp_path / "out", "plain").shape == (16, 16, 16)


def test_two_channel_files_make_one_case(make_run: MakeRun, images: Path, tmp_path: Path) -> None:
    run = make_run(task={"channels": ["T1", "T2"], "in_channels": 2})
    document = json.loads((run / "manifest.json").read_text())
    for case in document["training"]:
        case["image"] = [f"images/{case['id']}_0000.nii.gz", f"images/{case['id']}_0001.nii.gz"]
    (run / "manifest.json").write_text(json.dumps(document))
    record_as_trained(run)
    bundle = export(run, tmp_path / "two")
    assert bundle.channels == ["T1", "T2"]
    two = tmp_path / "a_0000.nii.gz_in_the_name"
    two.mkdir()
    for index, name in enumerate(["plain", "flipped"]):
        source = nib.load(images / f"{name}.nii.gz")
        write_nifti(two / f"case_{index:04}.nii.gz", np.asarray(source.dataobj), np.eye(4))
    stock(bundle, two, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case_0000_seg.nii.gz"]
    assert find_segmentation(tmp_path / "out", "case") == tmp_path / "out" / "case_0000_seg.nii.gz"
    assert "`OUT/<name>_0000_seg.nii.gz`" in (bundle.root / "docs" / "README.md").read_text()
    import torch

    channels = [np.asarray(nib.load(two / f"case_{i:04}.nii.gz").dataobj).astype(np.float64) for i in (0, 1)]
    stacked = torch.from_numpy(np.stack([(x - x.mean()) / x.std() for x in channels])).float()
    with torch.no_grad():
        expected = np.asarray(network(bundle)(stacked[None])[0].argmax(0))
    found = np.asarray(nib.load(tmp_path / "out" / "case_0000_seg.nii.gz").dataobj)
    assert (found == expected).mean() >= 0.9999


def test_one_sigmoid_channel_is_one_label(make_run: MakeRun, images: Path, tmp_path: Path) -> None:
    run = make_run(task={"labels": ["background", "all"], "out_channels": 1, "activation": "sigmoid"})
    bundle = export(run, tmp_path / "sigmoid")
    assert bundle.labels == {0: "background", 1: "all"} and bundle.activation == "sigmoid"
    stock(bundle, images, tmp_path / "out")
    volume = np.asarray(nib.load(images / "plain.nii.gz").dataobj).astype(np.float64)
    expected = scores(bundle, volume)[0] >= 0
    assert (np.asarray(label_map(tmp_path / "out", "plain").dataobj) == expected).mean() >= 0.9999


def test_rules_clean_the_label_map(run_folder: Path, predicted: Path, images: Path, tmp_path: Path) -> None:
    from scipy import ndimage

    rules = {"schema_version": 1, "rules": {"1": {"keep_largest": True, "min_volume_ml": 0.001}}}
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    bundle = export(run_folder, tmp_path / "clean", postprocessing=tmp_path / "rules.json")
    assert not bundle.unsupported and bundle.cleanup
    assert "scikit-image" in bundle.metadata["required_packages_version"]
    words = "only the largest connected component is kept, and components below 0.001 mL are removed"
    assert bundle.metadata["postprocessing"] == {"left | part": words}
    assert f"Of left | part, {words}." in (bundle.root / "docs" / "README.md").read_text()
    stock(bundle, images, tmp_path / "out")
    before = np.asarray(label_map(predicted, "plain").dataobj)
    after = np.asarray(label_map(tmp_path / "out", "plain").dataobj)
    components, count = ndimage.label(before == 1, np.ones((3, 3, 3)))
    largest = components == 1 + np.argmax(ndimage.sum(before == 1, components, range(1, count + 1)))
    assert np.array_equal(after == 1, largest)
    assert np.array_equal(after == 2, before == 2)


@pytest.mark.slow
def test_stock_run_never_imports_this_package(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'segpipe':\n"
        "            raise ImportError('the package must not be needed')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import runpy\n"
        "try:\n"
        "    runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        "    assert 'segpipe' not in sys.modules\n"
    )
    arguments = [
        "run",
        "--config_file",
        str(bundle.root / "configs" / "inference.json"),
        "--bundle_root",
        str(bundle.root),
        "--dataset_dir",
        str(images),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == len(affines())


def test_the_overlay_writes_what_the_stock_config_writes(
    bundle: Bundle, images: Path, predicted: Path, tmp_path: Path
) -> None:
    import monai.bundle

    configs = [str(bundle.root / "configs" / name) for name in ("inference.json", "inference_fast.json")]
    monai.bundle.run(
        config_file=configs, bundle_root=str(bundle.root), dataset_dir=str(images), output_dir=str(tmp_path)
    )
    names = sorted(path.name for path in predicted.glob("*_seg.nii.gz"))
    assert names and names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        one, other = nib.load(predicted / name), nib.load(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
        np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
