"""The segmenter gives what stock MONAI gives, by both routes; its input is judged; its output is plain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segpipe.common.nifti import Header, read_header
from segpipe.errors import DataError, UsageError
from segpipe.inference.output import ExtraOutputs, describe, write_labels
from segpipe.inference.recipe import ModelOptions, Recipe
from segpipe.inference.segmenter import Segmenter
from segpipe.inference.source import read_source
from tiny_bundle import DETERMINISTIC, THRESHOLD, write_bundle, write_scan

UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8],
    "strides": [2],
    "norm": "instance",
}
FULL = [
    *DETERMINISTIC[:2],
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, 2.5], "mode": "bilinear"},
    {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "allow_smaller": True},
    {"_target_": "NormalizeIntensityd", "keys": "image"},
    DETERMINISTIC[2],
]
FLIPPED = np.array([[0, -2.1, 0.3, 12], [1.8, 0, 0, -7], [0, 0.4, 2.9, 3], [0, 0, 0, 1.0]])


WINDOWS = {"roi_size": (16, 16, 16), "overlap": 0.5, "batch": 2, "mode": "gaussian", "activation": "softmax"}


def recipe(bundle: Path, typed: bool, channels: int = 1, **changes: Any) -> Recipe:
    inference = json.loads((bundle / "configs/inference.json").read_text())
    plain: dict[str, Any] = {
        "root": str(bundle),
        "inference": inference,
        "weights": str(bundle / "models/model.pt"),
        "channels": channels,
        "labels": {0: "background", 1: "a", 2: "b"},
        "preprocessing": inference["deterministic_transforms"] if typed else None,
        "options": ModelOptions(device="cpu", runtime="torch"),
    }
    return Recipe(**{**plain, **changes})


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from monai.networks.nets import UNet

    torch.manual_seed(3)
    arguments = {name: value for name, value in UNET.items() if name != "_target_"}
    state = UNet(**arguments).state_dict()
    return write_bundle(
        tmp_path_factory.mktemp("unet") / "b",
        network=UNET,
        state=state,
        deterministic=FULL,
        labels=("background", "a", "b"),
    )


def smooth_scan(path: Path, seed: int) -> Path:
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(22, 19, 17))
    voxels = np.zeros(noise.shape, np.int16)  # an empty rim, so that the crop cuts
    voxels[2:-3, 1:-1, 3:] = (gaussian_filter(noise, 1.5) * 2000 + 900)[2:-3, 1:-1, 3:]
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, FLIPPED), path)
    return path


def test_both_routes_give_what_the_stock_bundle_run_gives(unet: Path, tmp_path: Path) -> None:
    from monai.bundle import ConfigWorkflow

    scans = [smooth_scan(tmp_path / f"in/s{seed}.nii.gz", seed) for seed in range(2)]
    workflow = ConfigWorkflow(
        config_file=str(unet / "configs/inference.json"),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(unet),
        dataset_dir=str(tmp_path / "in"),
        output_dir=str(tmp_path / "stock"),
    )
    workflow.initialize()
    workflow.run()
    typed, stock = Segmenter(recipe(unet, typed=True)), Segmenter(recipe(unet, typed=False))
    streaming = Segmenter(recipe(unet, typed=True, windowing=WINDOWS))
    assert (typed.recipe.route, stock.recipe.route) == ("typed", "stock")
    assert [segmenter.engine for segmenter in (streaming, typed, stock)] == ["streaming", "monai", "monai"]
    assert all(segmenter.engine_reasons for segmenter in (typed, stock))
    for scan in scans:
        expected = nib.load(tmp_path / "stock" / scan.name.replace(".nii", "_seg.nii"))
        labels = np.asarray(expected.dataobj)
        assert len(np.unique(labels)) > 1  # the comparison says something
        for segmenter in (streaming, typed, stock):
            result = segmenter.segment([str(scan)])
            assert result.labels.dtype == np.uint8
            np.testing.assert_array_equal(result.labels, labels)
            np.testing.assert_allclose(result.grid.affine, expected.affine, atol=1e-5)
            assert set(result.seconds) == {"check", "preprocess", "network", "postprocess"}
    assert not (unet / "eval").exists()


def test_probabilities_are_written_beside_the_labels(unet: Path, tmp_path: Path) -> None:
    scan, out = smooth_scan(tmp_path / "s.nii.gz", 0), tmp_path / "p.nii.gz"
    result = Segmenter(recipe(unet, typed=True, windowing=WINDOWS)).segment([str(scan)], ExtraOutputs(str(out)))
    image = nib.load(out)
    values = np.asarray(image.dataobj)
    assert values.shape == (22, 19, 17, 3)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.affine, result.grid.affine, atol=1e-5)
    np.testing.assert_array_equal(values.argmax(-1), result.labels)
    assert [path.name for path in tmp_path.iterdir()] == ["s.nii.gz", "p.nii.gz"] or len(list(tmp_path.iterdir())) == 2
    with pytest.raises(UsageError, match="probabilities"):
        Segmenter(recipe(unet, typed=True)).segment([str(scan)], ExtraOutputs(str(out)))


def test_cleaned_labels_are_the_stock_ones(unet: Path, tmp_path: Path) -> None:
    rules = [
        {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1, 2], "is_onehot": False}
    ]
    config = recipe(unet, typed=True).inference
    steps = config["postprocessing"]["transforms"]
    cleaned = {**config, "postprocessing": {"_target_": "Compose", "transforms": [*steps[:3], *rules, *steps[3:]]}}
    scan = str(smooth_scan(tmp_path / "s.nii.gz", 1))
    expected = Segmenter(recipe(unet, typed=True, inference=cleaned)).segment([scan]).labels
    got = Segmenter(recipe(unet, typed=True, windowing=WINDOWS, cleanup=tuple(rules))).segment([scan]).labels
    assert (expected != Segmenter(recipe(unet, typed=True)).segment([scan]).labels).any()
    np.testing.assert_array_equal(got, expected)


def test_several_channels_from_files_or_from_one_file(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "two", channels=("T1", "T2"))
    segmenter = Segmenter(recipe(bundle, typed=True, channels=2))
    files = [write_scan(tmp_path / f"p_000{index}.nii.gz", index) for index in (0, 1)]
    first, second = (np.asarray(nib.load(path).dataobj) for path in files)
    expected = first + second > THRESHOLD
    np.testing.assert_array_equal(segmenter.segment([str(path) for path in files]).labels, expected)
    stacked = tmp_path / "stacked.nii.gz"
    nib.save(nib.Nifti1Image(np.stack([first, second], -1), nib.load(files[0]).affine), stacked)
    np.testing.assert_array_equal(segmenter.segment([str(stacked)]).labels, expected)


def test_what_cannot_be_loaded_is_said(unet: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"none")
    with pytest.raises(DataError, match="weights do not fit"):
        Segmenter(recipe(unet, typed=True, weights=str(tmp_path / "weights")))
    with pytest.raises(DataError, match="weights cannot be read"):
        Segmenter(recipe(unet, typed=True, weights=str(tmp_path / "gone")))
    with pytest.raises(UsageError, match="device"):
        Segmenter(recipe(unet, typed=True, options=ModelOptions(device="cuda:7")))
    config = recipe(unet, typed=True).inference
    with pytest.raises(DataError, match="no 'inferer'"):
        Segmenter(recipe(unet, True, inference={k: v for k, v in config.items() if k != "inferer"}))
    with pytest.raises(DataError, match="'inferer' cannot be built"):
        Segmenter(recipe(unet, True, inference={**config, "inferer": {"_target_": "NoSuchInferer"}}))


def test_a_bundle_without_one_label_map_is_said(unet: Path, tmp_path: Path) -> None:
    config = recipe(unet, typed=True).inference
    steps = config["postprocessing"]["transforms"]
    scan = str(smooth_scan(tmp_path / "s.nii.gz", 0))
    scores = {**config, "postprocessing": {"_target_": "Compose", "transforms": steps[:2]}}
    with pytest.raises(DataError, match="one label map"):
        Segmenter(recipe(unet, True, inference=scores)).segment([scan])
    not_inverted = {**config, "postprocessing": {"_target_": "Compose", "transforms": [steps[0], steps[2]]}}
    with pytest.raises(DataError, match="one label map"):
        Segmenter(recipe(unet, True, inference=not_inverted)).segment([scan])


def test_the_input_is_judged(tmp_path: Path) -> None:
    one, other = write_scan(tmp_path / "a.nii.gz"), write_scan(tmp_path / "b.nii.gz", shape=(12, 10, 8))
    assert read_source([one], 1).array.shape == (1, 12, 10, 9)
    with pytest.raises(DataError, match="wrong number of channels"):
        read_source([one], 2)
    with pytest.raises(DataError, match="different grids"):
        read_source([one, other], 2)
    with pytest.raises(DataError, match="more than three dimensions"):
        read_source([write_scan(tmp_path / "c.nii.gz", shape=(5, 5, 5, 2))], 1)
    half = np.stack([np.ones((5, 5, 5)), np.arange(125.0).reshape(5, 5, 5)], -1)
    nib.save(nib.Nifti1Image(half, np.eye(4)), tmp_path / "d.nii.gz")
    with pytest.raises(DataError, match="constant"):
        read_source([tmp_path / "d.nii.gz"], 2)


@settings(max_examples=30)
@given(
    arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 4)),
    arrays(np.float64, (3, 3), elements=st.floats(-3, 3).map(lambda value: round(value, 2))),
)
def test_description_counts_voxels_and_faces(labels: Any, matrix: Any) -> None:
    affine = np.eye(4)
    affine[:3, :3] = matrix
    facts = describe(labels, affine, {0: "background", 1: "one", 2: "two", 3: "three"})
    voxel_ml = abs(np.dot(matrix[:, 0], np.cross(matrix[:, 1], matrix[:, 2]))) / 1000
    inner = labels[1:-1, 1:-1, 1:-1]
    for value, name in {1: "one", 2: "two", 3: "three"}.items():
        count = sum(int(voxel) == value for voxel in labels.flat)
        assert facts["voxels"][name] == count
        assert facts["volumes_ml"][name] == pytest.approx(count * voxel_ml, abs=1e-6)
        on_a_face = count > np.count_nonzero(inner == value)
        assert (name in facts["flags"]["touches_border"]) == on_a_face
    assert ("label 4" in facts["voxels"]) == bool((labels == 4).any())
    assert facts["flags"]["empty"] == (not labels.any())


@pytest.mark.parametrize("shear", [0.0, 0.5])
def test_a_sheared_grid_is_kept_in_the_sform(tmp_path: Path, shear: float) -> None:
    affine = FLIPPED.copy()
    affine[0, 0] += shear
    source = nib.Nifti1Image(np.random.default_rng(0).random((4, 5, 6), np.float32), None)
    source.set_sform(affine, code=2)
    nib.save(source, tmp_path / "a.nii.gz")
    header = read_header(tmp_path / "a.nii.gz")
    write_labels(tmp_path / "l.nii.gz", np.ones((4, 5, 6), np.uint8), header)
    again = read_header(tmp_path / "l.nii.gz")
    np.testing.assert_allclose(again.affine, affine, atol=1e-5)
    assert again.dtype == "uint8" and int(nib.load(tmp_path / "l.nii.gz").header["sform_code"]) == 2


def slightly_sheared() -> Any:
    affine = np.diag([0.9, 0.8, 2.5, 1.0])
    affine[0, 1] = 0.0008  # a scanner's rounding; half a millimetre off at the far corner of a large image
    return affine


ROTATED = np.array([[-0.8, -0.6, 0, 30], [-0.6, 0.8, 0, -41.5], [0, 0, 2.5, 700], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("affine", "s_code", "q_code", "expected"),
    [
        (ROTATED, 1, 1, (1, 1)),
        (ROTATED, 2, 0, (2, 2)),
        (ROTATED, 0, 1, (1, 1)),
        (ROTATED, 4, 1, (4, 1)),
        (slightly_sheared(), 1, 1, (1, 1)),
        (None, 0, 0, (0, 0)),
    ],
)
def test_every_reader_finds_the_label_map_on_the_grid_of_its_source(
    tmp_path: Path, affine: Any, s_code: int, q_code: int, expected: tuple[int, int]
) -> None:
    import SimpleITK as sitk  # noqa: N813

    shape, source, out = (60, 50, 7), tmp_path / "a.nii", tmp_path / "l.nii"
    image = nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int32).reshape(shape), affine)
    if affine is None:
        image.header.set_zooms((0.7, 0.8, 3.0))
    else:
        image.set_sform(affine, code=s_code)
        image.set_qform(affine, code=q_code)
    nib.save(image, source)
    header = read_header(source)
    assert header.is_oriented == (affine is not None)
    write_labels(out, np.ones(shape, np.uint8), header)
    labels = nib.load(out)
    assert (int(labels.header["sform_code"]), int(labels.header["qform_code"])) == expected
    np.testing.assert_allclose(read_header(out).affine, header.affine, atol=1e-5)
    one, other = sitk.ReadImage(str(source)), sitk.ReadImage(str(out))
    for corner in [(0, 0, 0), (59, 0, 0), (0, 49, 0), (59, 49, 6)]:
        place = one.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose(other.TransformIndexToPhysicalPoint(corner), place, atol=1e-3)


def test_a_grid_without_a_file_of_its_own_is_written(tmp_path: Path) -> None:
    grid = Header(Path("series"), (4, 5, 6), FLIPPED, (1.0, 1.0, 1.0), "int16")
    write_labels(tmp_path / "l.nii.gz", np.ones((4, 5, 6), np.uint8), grid)
    np.testing.assert_allclose(read_header(tmp_path / "l.nii.gz").affine, FLIPPED, atol=1e-5)


def test_labels_that_are_not_turned_back_are_refused(tmp_path: Path) -> None:
    turned = [*DETERMINISTIC[:2], {"_target_": "Orientationd", "keys": "image", "axcodes": "LAS"}, DETERMINISTIC[2]]
    bundle = write_bundle(tmp_path / "b", deterministic=turned)
    config = recipe(bundle, typed=False).inference
    steps = [step for step in config["postprocessing"]["transforms"] if step["_target_"] != "Invertd"]
    stock = {**config, "postprocessing": {"_target_": "Compose", "transforms": steps}}
    scan = str(write_scan(tmp_path / "s.nii.gz"))  # the shape stays, left and right change places
    with pytest.raises(DataError, match="does not lie on the image's grid"):
        Segmenter(recipe(bundle, False, inference=stock)).segment([scan])
    assert Segmenter(recipe(bundle, False)).segment([scan]).labels.any()


@pytest.mark.parametrize(("channels", "window"), [(("A", "B", "C"), [16, 16, 16]), (("A",), [4, 4, 4])])
def test_a_network_that_does_not_take_the_bundles_windows_is_said(
    tmp_path: Path, channels: tuple[str, ...], window: list[int]
) -> None:
    import torch

    import segpipe
    import tiny_bundle

    kernel = 1 if len(channels) > 1 else 5
    network = {**tiny_bundle.BRIGHT, "in_channels": 1, "kernel_size": kernel}
    state = {"weight": torch.zeros(2, 1, kernel, kernel, kernel), "bias": torch.zeros(2)}
    root = tiny_bundle.write_bundle(tmp_path / "b", network=network, state=state, channels=channels)
    config = root / "configs/inference.json"
    config.write_text(config.read_text().replace("[16, 16, 16]", str(window)))
    image = np.arange(512.0).reshape(8, 8, 8)
    with pytest.raises(DataError, match="cannot compute a window") as caught:
        segpipe.open_bundle(root).segment([image] * len(channels), affine_ras=np.eye(4), device="cpu", runtime="torch")
    assert caught.value.expected == f"{len(channels)} channels of {' x '.join(map(str, window))} voxels"
