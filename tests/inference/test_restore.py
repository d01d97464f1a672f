"""Labels block by block are those of the stock path: activation, Invertd (linear), argmax or threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from monai.data import decollate_batch
from monai.data.utils import list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from scipy.special import entr

from segpipe.common.nifti import Header
from segpipe.errors import DataError
from segpipe.inference.averaging import average, mirrored
from segpipe.inference.engine import segment_source
from segpipe.inference.output import ProbabilityMaps, describe
from segpipe.inference.prepare import prepare
from segpipe.inference.runtimes import torch_runtime
from segpipe.inference.sliding_window import Windowing
from segpipe.inference.source import Source, read_source
from segpipe.inference.transforms import Preprocessing, build_step

CPU = torch.device("cpu")
TIE = 1e-5
Steps = list[dict[str, Any]]


def tilted(angles: tuple[float, float, float], spacing: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = 3, -4, 9
    return affine


AFFINES = {
    "plain": np.diag([1.0, 1.0, 2.5, 1.0]),
    "turned": np.array([[0, -2.1, 0, 12], [1.8, 0, 0, -7], [0, 0, 2.9, 3], [0, 0, 0, 1.0]]),
    "mirrored": np.array([[0, 0, -1.2, 12], [-1.8, 0, 0, -7], [0, 1.4, 0, 3], [0, 0, 0, 1.0]]),
    "oblique": tilted((20, -13, 31), (1.1, 1.9, 2.4)),
    "sheared": np.array([[0, -2.1, 0.3, 12], [1.8, 0, 0, -7], [0, 0.4, 2.9, 3], [0, 0, 0, 1.0]]),
}
RAS = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}
SCALE = {
    "_target_": "ScaleIntensityRanged",
    "keys": "image",
    "a_min": -500,
    "a_max": 500,
    "b_min": 0.0,
    "b_max": 1.0,
    "clip": True,
}
NORMALISE = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
CROP = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image"}
PAD = {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [30, 24, 26]}
DIVISIBLE = {"_target_": "DivisiblePadd", "keys": "image", "k": 8}
MIDDLES: dict[str, Steps] = {
    "turned only": [RAS, NORMALISE],
    "spaced only": [{"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, 2.0]}, SCALE],
    "finer": [RAS, {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.2, 1.0]}, NORMALISE],
    "hardly spaced": [RAS, {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 2.5]}, CROP, SCALE],
    "cut": [RAS, {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 1.6, 2.2]}, CROP, SCALE],
    "cut and padded": [
        RAS,
        {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 1.6, 2.2]},
        {**CROP, "margin": 3, "k_divisible": 4},
        PAD,
        DIVISIBLE,
        NORMALISE,
    ],
    "cut, not spaced": [{**CROP, "allow_smaller": True}, PAD, SCALE],
}


def steps(middle: Steps) -> Steps:
    return [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        *middle,
        {"_target_": "EnsureTyped", "keys": "image"},
    ]


class Blurred(torch.nn.Module):
    """Random weights; its scores are smooth if asked for, so that most cells have one argmax."""

    def __init__(self, channels: int, classes: int, smooth: bool, seed: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(classes, channels, 3, 3, 3, generator=generator) * 0.7
        self.bias = torch.randn(classes, generator=generator) * 0.3
        self.smooth = smooth

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        scores = torch.nn.functional.conv3d(windows, self.weight, self.bias, padding=1)
        return torch.nn.functional.avg_pool3d(scores, 5, 1, 2) * 4 if self.smooth else scores


def write_images(folder: Path, affine: np.ndarray, shape: tuple[int, ...], channels: int, seed: int) -> list[str]:
    """Blurred noise with an empty rim, so that a crop cuts."""
    rng, paths = np.random.default_rng(seed), []
    for channel in range(channels):
        noise = gaussian_filter(rng.normal(size=shape), 1.5) * 4000
        rim = tuple(slice(min(2, n - 1), None if n < 6 else -2) for n in shape)
        voxels = np.full(shape, -800, np.int16)
        voxels[rim] = noise[rim]
        voxels.flat[0] += 1  # never constant
        path = folder / f"scan_{seed}_{channel:04}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, affine), path)
        paths.append(str(path))
    return paths


def stock(paths: list[str], config: Steps, windowing: Windowing, network: Any) -> tuple[np.ndarray, torch.Tensor, Any]:
    """Labels (X, Y, Z), probabilities (K, X, Y, Z) and the network's input, all by MONAI."""
    before = Compose([build_step(step) for step in Preprocessing.parse(config).steps])
    item = before({"image": paths if len(paths) > 1 else paths[0]})
    batch = list_data_collate([item])
    inferer = SlidingWindowInferer(windowing.roi_size, windowing.batch, windowing.overlap, windowing.mode)
    item = decollate_batch({**batch, "pred": inferer(batch["image"], network)})[0]
    invert = Invertd("pred", transform=before, orig_keys="image", nearest_interp=False)
    item = invert(Activationsd("pred", **{windowing.activation: True})(item))
    probabilities = item["pred"].as_tensor().clone()
    final = {"argmax": True} if windowing.activation == "softmax" else {"threshold": 0.5}
    masks = AsDiscreted("pred", **final)(item)["pred"].as_tensor().numpy().astype(np.uint8)
    labels = sum((mask << region for region, mask in enumerate(masks[1:], 1)), masks[0])
    return labels, probabilities, batch["image"][0].as_tensor()


def entropy_of(probabilities: np.ndarray, activation: str) -> np.ndarray:
    """In nats, of classes or of independent decisions, by scipy."""
    from scipy.stats import entropy

    values = probabilities.astype(float).clip(0, 1)
    if activation == "softmax":  # at the edge of a crop the sum is below 1, which `entropy` would make 1
        rest = 1 - values.sum(0).clip(0, 1)
        return entropy([*values, rest], axis=0) - entr(rest)
    return sum(entropy([p, 1 - p], axis=0) for p in values)


def compare(paths: list[str], config: Steps, windowing: Windowing, network: Any) -> None:
    """Labels differ from the stock ones only at ties; probabilities and the network's input are equal."""
    typed, channels = Preprocessing.parse(config), len(paths)
    with torch.inference_mode():
        expected, probabilities, image = stock(paths, config, windowing, network)
        got_image, _ = prepare(read_source(paths, channels), typed)
        assert torch.allclose(got_image, image, rtol=1e-5, atol=1e-5)
        labels = segment_source(read_source(paths, channels), typed, windowing, network, CPU, {})
        whole = np.full((len(probabilities), *expected.shape), np.nan, np.float32)
        last = np.full(expected.shape, np.nan, np.float32)
        entropy = np.zeros(expected.shape, np.float32)
        also = [
            segment_source(read_source(paths, channels), typed, windowing, network, CPU, {}, maps)
            for maps in (
                ProbabilityMaps(windowing.activation, dict(enumerate(whole))),
                ProbabilityMaps(windowing.activation, {len(whole) - 1: last}),
                ProbabilityMaps(windowing.activation, {}, entropy),
            )
        ]
    np.testing.assert_allclose(whole, probabilities, atol=TIE)
    np.testing.assert_allclose(last, probabilities[-1], atol=TIE)
    np.testing.assert_allclose(entropy, entropy_of(probabilities.numpy(), windowing.activation), atol=1e-4)
    for found in (labels, *also):
        best = probabilities.topk(min(2, len(probabilities)), 0).values.numpy()
        if windowing.activation == "softmax":
            margin = best[0] - best[1]
        else:
            margin = (probabilities - 0.5).abs().min(0).values.numpy()
        assert (margin[found != expected] < TIE).all()
        assert (found != expected).sum() <= max(16, 1e-3 * expected.size)  # a small volume may have a few ties


@pytest.mark.parametrize("smooth", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize(
    "affine", [pytest.param(name, marks=pytest.mark.slow if name in ("plain", "mirrored") else ()) for name in AFFINES]
)
def test_labels_are_those_of_the_stock_path(affine: str, middle: str, smooth: bool, tmp_path: Path) -> None:
    paths = write_images(tmp_path, AFFINES[affine], (22, 19, 17), 1, seed=3)
    config = steps(MIDDLES[middle])
    compare(paths, config, Windowing((12, 14, 10), 0.5, 3, "gaussian", "softmax"), Blurred(1, 5, smooth))
    regions = 3 if "cut" in middle else 1
    compare(paths, config, Windowing((12, 14, 10), 0.5, 3, "gaussian", "sigmoid"), Blurred(1, regions, smooth))


def test_a_byte_holds_eight_regions(tmp_path: Path) -> None:
    paths = write_images(tmp_path, AFFINES["oblique"], (20, 18, 15), 1, seed=4)
    windowing = Windowing((12, 14, 10), 0.5, 3, "gaussian", "sigmoid")
    compare(paths, steps(MIDDLES["cut"]), windowing, Blurred(1, 8, True))
    bits = np.random.default_rng(0).integers(0, 256, (6, 7, 8), np.uint8)
    facts = describe(bits, np.diag([1.0, 2.0, 3.0, 1.0]), {c + 1: f"r{c}" for c in range(8)}, regions=8)
    for region in range(8):
        mask = np.unpackbits(bits.reshape(-1, 1), axis=1, bitorder="little")[:, region]
        assert facts["voxels"][f"r{region}"] == mask.sum()
        assert facts["volumes_ml"][f"r{region}"] == pytest.approx(mask.sum() * 6 / 1000)


@pytest.mark.slow
@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(
    shape=st.tuples(st.integers(2, 24), st.integers(2, 24), st.integers(2, 24)),
    roi=st.tuples(*[st.integers(5, 14)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    mode=st.sampled_from(["gaussian", "constant"]),
    middle=st.sampled_from(sorted(MIDDLES)),
    channels=st.sampled_from([1, 4]),
    angles=st.tuples(*[st.sampled_from([0.0, 90.0, 7.0, -33.0])] * 3),
    spacing=st.tuples(*[st.floats(0.6, 3.5)] * 3),
    seed=st.integers(0, 1000),
    strips=st.integers(1, 3),
)
def test_any_geometry(
    tmp_path: Path,
    shape: Any,
    roi: Any,
    overlap: float,
    mode: Any,
    middle: str,
    channels: int,
    angles: Any,
    spacing: Any,
    seed: int,
    strips: int,
) -> None:
    paths = write_images(tmp_path, tilted(angles, spacing), shape, channels, seed)
    compare(paths, steps(MIDDLES[middle]), Windowing(roi, overlap, 4, mode), Blurred(channels, 3, seed % 2 == 0, seed))


@pytest.mark.parametrize("axis", range(3))
def test_a_volume_of_one_voxel_across(axis: int) -> None:
    shape = [9, 8, 7]
    shape[axis] = 1
    voxels = gaussian_filter(np.random.default_rng(0).normal(size=shape), 1).astype(np.float32)
    header = Header(Path("thin"), tuple(shape), np.diag([1.0, 2.0, 3.0, 1.0]), (1.0, 2.0, 3.0), "float32")
    config = steps(MIDDLES["turned only"])[2:-1]
    before = Compose([build_step(step) for step in Preprocessing.parse(config).steps])
    network, windowing = Blurred(1, 3, False), Windowing((6, 6, 6), 0.5, 2, "gaussian")
    with torch.inference_mode():
        item = before({"image": Source(header, voxels[None]).tensor()})
        scores = SlidingWindowInferer((6, 6, 6), 2, 0.5, "gaussian")(item["image"][None], network)
        expected = scores[0].as_tensor().softmax(0).argmax(0).numpy()
        way = Preprocessing.parse(config)
        labels = segment_source(Source(header, voxels[None]), way, windowing, network, CPU, {})
    np.testing.assert_array_equal(labels, expected)


def test_the_source_is_what_monai_reads(tmp_path: Path) -> None:
    first = steps([])[:2]
    scaled = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), AFFINES["oblique"])
    scaled.header.set_slope_inter(0.3, -7)
    stacked = nib.Nifti1Image(np.random.default_rng(0).normal(size=(4, 5, 6, 3)), AFFINES["turned"])
    big_endian = nib.Nifti1Image(np.arange(60).reshape(3, 4, 5).astype(">u2"), np.eye(4))
    for name, image, channels in (("a", scaled, 1), ("b", stacked, 3), ("c", big_endian, 1)):
        for ending in (".nii", ".nii.gz"):
            path = tmp_path / f"{name}{ending}"
            nib.save(image, path)
            expected = Compose([build_step(step) for step in Preprocessing.parse(first).steps])({"image": str(path)})[
                "image"
            ]
            source = read_source([path], channels)
            got = source.tensor()
            assert torch.equal(got.as_tensor(), expected.as_tensor())
            assert torch.equal(got.affine, expected.affine)
            assert got.meta["space"] == expected.meta["space"]
    files = write_images(tmp_path, AFFINES["sheared"], (5, 6, 7), 2, 0)
    expected = Compose([build_step(step) for step in Preprocessing.parse(first).steps])({"image": files})["image"]
    assert torch.equal(read_source(files, 2).tensor().as_tensor(), expected.as_tensor())
    assert read_source(files, 2).array.dtype == np.int16


def test_few_cells_of_a_smooth_network_are_interpolated(tmp_path: Path) -> None:
    from segpipe.inference import engine as streaming

    (path,) = write_images(tmp_path, AFFINES["plain"], (40, 40, 20), 1, 0)
    made: list[Any] = []

    class Watched(streaming.Restorer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "Restorer", Watched)
        config = Preprocessing.parse(steps(MIDDLES["spaced only"]))
        segment_source(
            read_source([path], 1),
            config,
            Windowing((16, 16, 16), 0.5),
            lambda x: torch.cat([x - 0.5, 0.5 - x], 1),
            CPU,
            {},
        )
    assert 0 < made[0].undecided < 0.5 * made[0].labels.size


def test_ensembles_and_mirrored_windows_are_means() -> None:
    one, other = Blurred(1, 3, False, 1), Blurred(1, 3, False, 2)
    windows = torch.randn(2, 1, 6, 7, 8)
    assert torch.allclose(average([one, other])(windows), (one(windows) + other(windows)) / 2, atol=1e-6)
    turned = [one(windows.flip(dims)).flip(dims) for dims in ([], [2], [3], [2, 3])]
    got = mirrored(one, (0, 1))(windows)
    assert torch.allclose(got, sum(turned) / 4, atol=1e-6)
    assert torch.equal(torch_runtime(lambda x: [one(x)])(windows), one(windows))  # type: ignore[arg-type]


def test_what_is_no_label_map_is_said(tmp_path: Path) -> None:
    paths = write_images(tmp_path, np.eye(4), (8, 8, 8), 1, 0)
    config = Preprocessing.parse(steps([]))
    for activation, classes in (("sigmoid", 9), ("softmax", 300)):
        windowing = Windowing((8, 8, 8), activation=activation)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="too many labels"):
            segment_source(read_source(paths, 1), config, windowing, Blurred(1, classes, False), CPU, {})


@pytest.mark.parametrize(
    "step",
    [
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0], "mode": "nearest"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0], "padding_mode": "zeros"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0], "dtype": "float32"},
        {"_target_": "Orientationd", "keys": "label", "axcodes": "RAS", "allow_missing_keys": True},
    ],
)
def test_what_only_monai_does_is_said(step: dict[str, Any]) -> None:
    assert Preprocessing.parse(steps([step])).why_not_streamed() is not None
    assert Preprocessing.parse(steps([RAS])).why_not_streamed() is None
