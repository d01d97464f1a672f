"""The golden case that export writes: an input that shows every label, and what stock MONAI makes of it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tiny_run import AXES, KEYS, TASK, MakeRun, record_as_trained

from segpipe.bundle import Bundle
from segpipe.bundle.exporting.write import export
from segpipe.bundle.golden.golden_case import LEAST, array_sha256, read_golden
from segpipe.bundle.golden.golden_input import Goal, grids, search_image
from segpipe.bundle.golden.golden_recording import POINTS, points
from segpipe.cli.app import run as segpipe
from segpipe.common.files import sha256_of, write_json
from segpipe.data.phantom import write_nifti
from segpipe.errors import DataError, UsageError
from segpipe.inference.transforms import Preprocessing, build_step

ROOT = Path(__file__).resolve().parents[2]
CT = [
    {"_target_": "LoadImaged", **KEYS, "reader": "NibabelReader", "image_only": True},
    {"_target_": "EnsureChannelFirstd", **KEYS},
    {"_target_": "Orientationd", **KEYS, "axcodes": "LPS", "labels": AXES},
    {"_target_": "Spacingd", **KEYS, "pixdim": [1.5, 1.5, 2.0], "mode": ["bilinear", "nearest"]},
    {"_target_": "CropForegroundd", **KEYS, "source_key": "image", "allow_smaller": False},
    {"_target_": "SpatialPadd", **KEYS, "spatial_size": "@patch_size"},
    {
        "_target_": "ScaleIntensityRanged",
        "keys": ["image"],
        "allow_missing_keys": True,
        "a_min": -160.0,
        "a_max": 240.0,
        "b_min": 0.0,
        "b_max": 1.0,
        "clip": True,
    },
    {"_target_": "EnsureTyped", **KEYS},
]


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "golden/golden.json").read_text())
    return found


def thresholds(make_run: MakeRun, weights: list[list[float]], bias: list[float], **task: Any) -> Path:
    """A run whose network is one voxel wide: logits are ``weights @ channels + bias``."""
    import torch

    channels, labels = len(weights[0]), len(weights)
    run = make_run(
        task={
            "channels": [f"M{i}" for i in range(channels)],
            "in_channels": channels,
            "out_channels": labels,
            "labels": ["background", *(f"part {i}" for i in range(1, max(2, labels)))],
            **task,
        },
        network={
            "network_def": {
                "_target_": "torch.nn.Conv3d",
                "in_channels": channels,
                "out_channels": labels,
                "kernel_size": 1,
            }
        },
    )
    state = {"weight": torch.tensor(weights).reshape(labels, channels, 1, 1, 1), "bias": torch.tensor(bias)}
    torch.save(state, run / "best.pt")
    record_as_trained(run)
    return run


def stock(bundle: Path, out: Path) -> np.ndarray:
    """The label map of `monai.bundle run` on the golden images, as any user has it."""
    import monai.bundle

    monai.bundle.run(
        config_file=str(bundle / "configs/inference.json"),
        bundle_root=str(bundle),
        dataset_dir=str(bundle / "golden/images"),
        output_dir=str(out),
    )
    (file,) = out.iterdir()
    return np.asarray(nib.load(file).dataobj)


def test_every_label_is_shown_and_stock_monai_gives_the_recorded_map(bundle: Bundle, tmp_path: Path) -> None:
    golden, findings = read_golden(bundle.root, promised=True)
    assert golden is not None and not findings
    assert np.array_equal(stock(bundle.root, tmp_path / "out"), golden.labels)
    counts = {name: int((golden.labels == value).sum()) for value, name in bundle.labels.items() if value}
    assert bundle.metadata["golden"]["voxels"] == counts and min(counts.values()) >= LEAST
    source = nib.load(bundle.root / "golden/images/image.nii.gz")
    labels = nib.load(bundle.root / "golden/labels.nii.gz")
    assert np.array_equal(source.affine, labels.affine) and source.shape == labels.shape
    assert (bundle.root / "golden/images/image.nii.gz").stat().st_size < 50_000


def test_scores_are_those_of_the_network_at_the_stated_voxels(bundle: Bundle) -> None:
    """Computed by hand, voxel for voxel, from MONAI's transforms and sliding window."""
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser(bundle.inference)
    preprocessing = parser.get_parsed_content("preprocessing")
    image = preprocessing({"image": str(bundle.root / "golden/images/image.nii.gz")})["image"]
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle.weights, weights_only=True))
    with torch.no_grad():
        logits = parser.get_parsed_content("inferer")(image[None], network)[0]
    expected = np.asarray(torch.softmax(torch.as_tensor(logits), 0))
    said = document(bundle.root)["scores"]
    assert said["grid"] == list(expected.shape[1:])
    n = math.prod(said["grid"])
    step = next(step for step in range(math.ceil(0.618 * n), n) if math.gcd(step, n) == 1)
    places = np.unravel_index([(said["seed"] + k * step) % n for k in range(min(n, 4096))], said["grid"])
    found = np.load(bundle.root / "golden/scores.npy", allow_pickle=False)
    assert found.dtype == np.float32
    assert np.allclose(found, expected[(slice(None), *places)], atol=1e-5)


def test_its_document_follows_the_schema_and_names_what_it_was_recorded_with(bundle: Bundle) -> None:
    found = document(bundle.root)
    for folder in ("docs", "pipeline/segpipe"):
        Draft202012Validator(json.loads((ROOT / folder / "schemas/golden.schema.json").read_text())).validate(found)
    assert found["recorded_with"]["threads"] == 1
    assert set(found["recorded_with"]["versions"]) == {"monai", "torch", "numpy", "nibabel"}
    assert set(found["recorded_with"]["hardware"]) == {"system", "processor", "cpu_capability"}
    assert found["inputs"] == [
        {"file": "images/image.nii.gz", "sha256": sha256_of(bundle.root / "golden/images/image.nii.gz")}
    ]


def test_the_same_weights_give_the_same_bytes(run_folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    again = export(run_folder, tmp_path / "tiny_mri")
    files = sorted(path.relative_to(again.root) for path in (again.root / "golden").rglob("*") if path.is_file())
    assert len(files) == 4
    for file in files:
        assert (again.root / file).read_bytes() == (bundle.root / file).read_bytes(), file


def test_a_search_by_gradient_where_the_phantom_shows_too_little(make_run: MakeRun, tmp_path: Path) -> None:
    """Label 1 wants the first channel bright and the second dark, label 2 the reverse: no scan of a body has that."""
    weights = [[0.0, 0.0], [20.0, -20.0], [-20.0, 20.0]]
    run = thresholds(make_run, weights, [0.0, -8.0, -8.0], deterministic_transforms=CT)
    first = export(run, tmp_path / "one" / "ct")
    found = document(first.root)
    assert found["made"]["steps"] > 0 and "gradient" in found["made"]["how"]
    assert [path["file"] for path in found["inputs"]] == ["images/image.nii.gz"]  # channels in one file
    image = nib.load(first.root / "golden/images/image.nii.gz")
    assert image.shape[3] == 2 and image.get_data_dtype() == np.int16
    values = np.asarray(image.dataobj)
    assert values.min() >= -160 and values.max() <= 240
    assert "".join(nib.aff2axcodes(image.affine)) == "RAS"  # turned twice against LPS
    golden, _ = read_golden(first.root, promised=True)
    assert golden is not None and np.array_equal(stock(first.root, tmp_path / "out"), golden.labels)
    assert min((golden.labels == value).sum() for value in (1, 2)) >= LEAST
    apart = np.abs(np.diff(values.astype(float), axis=0)).mean()
    assert apart < 0.1 * np.ptp(values)  # soft, not noise
    again = export(run, tmp_path / "two" / "ct")
    assert array_sha256(values) == array_sha256(np.asarray(nib.load(again.root / "golden/images/image.nii.gz").dataobj))


def test_one_sigmoid_channel(make_run: MakeRun, tmp_path: Path) -> None:
    run = thresholds(make_run, [[30.0]], [-24.0], activation="sigmoid", deterministic_transforms=CT)
    found = export(run, tmp_path / "sigmoid")
    assert found.metadata["golden"]["voxels"]["part 1"] >= LEAST
    scores = np.load(found.root / "golden/scores.npy")
    assert scores.shape[0] == 1 and (scores > 0.5).any()


@pytest.mark.slow
def test_regions_have_a_mask_each_which_stock_monai_gives_and_replay_compares(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three regions within each other: what is brighter than three values. No label map could hold them."""
    names = {"whole": [1, 2, 3], "core": [2, 3], "innermost": [3]}
    run = thresholds(
        make_run,
        [[30.0], [30.0], [30.0]],
        [-15.0, -18.0, -21.0],
        activation="sigmoid",
        deterministic_transforms=CT,
        labels=["background", "rim", "middle", "heart"],
        regions=names,
    )
    manifest = json.loads((run / "manifest.json").read_text())
    write_json(run / "manifest.json", {**manifest, "schema_version": 2, "regions": names})
    record_as_trained(run)
    made = export(run, tmp_path / "regions")
    golden, findings = read_golden(made.root, promised=True)
    assert golden is not None and not findings
    assert golden.labels.ndim == 4 and golden.labels.shape[3] == 3
    assert np.array_equal(stock(made.root, tmp_path / "out"), golden.labels)
    counts = [int(golden.labels[..., number].sum()) for number in range(3)]
    assert made.metadata["golden"]["voxels"] == dict(zip(names, counts, strict=True))
    assert counts[0] > counts[1] > counts[2] >= LEAST
    assert not (golden.labels[..., 2] & ~golden.labels[..., 1] & 1).any()
    for folder in ("docs", "pipeline/segpipe"):
        schema = json.loads((ROOT / folder / "schemas/golden.schema.json").read_text())
        Draft202012Validator(schema).validate(document(made.root))
    assert (made.root / "docs/example.png").is_file()
    capsys.readouterr()
    assert segpipe(["bundle", "verify", str(made.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replay"]["bit_equal"] is True
    shutil.copytree(made.root, tmp_path / "changed")
    image = nib.load(made.root / "golden/labels.nii.gz")
    write_nifti(tmp_path / "changed/golden/labels.nii.gz", np.asarray(image.dataobj) * 2, image.affine)
    (tmp_path / "changed/SHA256SUMS").unlink()
    assert any("is not the one" in finding.reason for finding in read_golden(tmp_path / "changed", promised=True)[1])


def test_a_network_that_cannot_see_a_label_has_no_golden_case_and_says_so(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = thresholds(make_run, [[0.0], [1.0], [0.0]], [0.0, 0.0, -99.0])
    assert segpipe(["export", str(run), str(tmp_path / "blind")]) == 0
    reason = "no generated image shows 100 voxels of each label; the last one: 0 voxels of part 2"
    assert reason in capsys.readouterr().err
    metadata = json.loads((tmp_path / "blind/configs/metadata.json").read_text())
    assert metadata["golden"] == {"reason": reason}
    assert not (tmp_path / "blind/golden").exists()


def test_a_given_image_is_copied_without_what_its_header_says(
    run_folder: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nib.load(bundle.root / "golden/images/image.nii.gz")
    image.header["descrip"] = b"Jane Doe"
    nib.save(image, tmp_path / "mine.nii")
    assert segpipe(["export", str(run_folder), str(tmp_path / "b"), "--golden", str(tmp_path / "mine.nii")]) == 0
    found = document(tmp_path / "b")
    assert found["made"] == {"how": "given by who exported the bundle", "seed": 0, "steps": None}
    assert nib.load(tmp_path / "b/golden/images/image.nii.gz").header["descrip"].item() == b""
    assert found["labels"]["sha256_of_array"] == document(bundle.root)["labels"]["sha256_of_array"]
    for words, text in ((["mine.nii", "mine.nii"], "another number of golden images"), (["gone.nii"], "no such file")):
        given = [word for name in words for word in ("--golden", str(tmp_path / name))]
        assert segpipe(["export", str(run_folder), str(tmp_path / "c"), *given]) == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_given_image_without_a_label_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = thresholds(make_run, [[0.0], [1.0]], [0.0, -1000.0])
    write_nifti(tmp_path / "dark.nii.gz", np.ones((16, 16, 16), np.int16), np.eye(4))
    with pytest.raises(DataError) as caught:
        export(run, tmp_path / "b", golden=[tmp_path / "dark.nii.gz"])
    assert caught.value.found == "0 voxels of part 1"
    with pytest.raises(UsageError):
        export(run, tmp_path / "b", golden=[tmp_path / "gone.nii.gz"])
    write_nifti(tmp_path / "two.nii.gz", np.ones((16, 16, 16, 2), np.int16), np.eye(4))
    with pytest.raises(DataError, match="fails on the golden case"):
        export(run, tmp_path / "b", golden=[tmp_path / "two.nii.gz"])
    assert not (tmp_path / "b").exists()


@given(st.integers(1, 200_000), st.integers(0, 10))
def test_points_are_different_and_inside(n: int, seed: int) -> None:
    found = points(n, seed)
    assert len(found) == min(n, POINTS) == len(set(found.tolist()))
    assert found.min() >= 0 and found.max() < n and found[0] == seed % n


@given(st.tuples(*[st.integers(2, 20)] * 3), st.integers(1, 8), st.tuples(*[st.integers(1, 30)] * 3))
def test_grids_need_no_padding(roi: tuple[int, int, int], k: int, least: tuple[int, int, int]) -> None:
    steps = [
        *CT[:4],
        {"_target_": "SpatialPadd", "keys": "image", "spatial_size": list(least)},
        {"_target_": "DivisiblePadd", "keys": "image", "k": k},
    ]
    inner, outer = grids(Goal(Preprocessing.parse(steps), roi, 1))
    assert all(size >= max(low, window) and size % k == 0 for size, low, window in zip(inner, least, roi, strict=True))
    assert outer[:2] == inner[:2] and 2 <= outer[2] <= max(2, inner[2])


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_the_search_knows_what_the_network_will_see(codes: str, tmp_path: Path) -> None:
    """What MONAI's own transforms make of the file is what the search fed the network with."""
    from monai.transforms import Compose

    steps = [dict(step) for step in TASK["deterministic_transforms"]]
    steps[2]["axcodes"], steps[3]["pixdim"] = codes, [1.1, 0.9, 2.0]
    steps[5]["spatial_size"] = [12, 16, 12]
    preprocessing = Preprocessing.parse(steps)
    seen: list[np.ndarray] = []

    def network(window: Any) -> Any:
        seen.append(np.asarray(window.detach()))
        return window.repeat(1, 2, 1, 1, 1) * 0 + window.new_tensor([0.0, 1.0]).reshape(1, 2, 1, 1, 1)

    found = search_image(Goal(preprocessing, (12, 16, 12), 1, voxels=100), network)
    write_nifti(tmp_path / "image.nii.gz", found.voxels[0], found.affine)
    made = np.asarray(
        Compose([build_step(step) for step in preprocessing.steps])({"image": str(tmp_path / "image.nii.gz")})["image"]
    )
    assert made.shape == (1, 15, 16, 12)
    assert np.allclose(made[:, :12], seen[0][0], atol=0.02)  # apart from whole numbers in the file


def tampered(bundle: Bundle, to: Path) -> Path:
    shutil.copytree(bundle.root, to)
    return to


def test_what_is_not_as_the_document_says_is_found(bundle: Bundle, tmp_path: Path) -> None:
    def findings(root: Path) -> list[str]:
        golden, found = read_golden(root, promised=True)
        assert golden is None
        return [each.reason for each in found]

    labels = nib.load(bundle.root / "golden/labels.nii.gz")
    other = np.asarray(labels.dataobj).copy()
    other[0, 0, 0] ^= 1
    root = tampered(bundle, tmp_path / "labels")
    write_nifti(root / "golden/labels.nii.gz", other, labels.affine)
    assert any("the array is not the one" in reason for reason in findings(root))
    root = tampered(bundle, tmp_path / "input")
    write_nifti(root / "golden/images/image.nii.gz", np.zeros((8, 8, 8), np.int16), np.eye(4))
    assert any("not the input that" in reason for reason in findings(root))
    root = tampered(bundle, tmp_path / "more")
    write_nifti(root / "golden/images/second.nii.gz", np.zeros((8, 8, 8), np.int16), np.eye(4))
    assert any("not both in" in reason for reason in findings(root))
    root = tampered(bundle, tmp_path / "gone")
    shutil.rmtree(root / "golden")
    assert findings(root) == ["the metadata tells of a golden case"]
    assert read_golden(root, promised=False) == (None, [])
    for change in (
        {"tolerance": {"score": 0.5, "labels": 0.5}},
        {"inputs": [{"file": "../configs/image.nii.gz", "sha256": "0" * 64}]},
        {"scores": {}},
    ):
        root = tampered(bundle, tmp_path / f"document {list(change)}")
        (root / "golden/golden.json").write_text(json.dumps({**document(root), **change}))
        assert findings(root)
    for file in ("golden/golden.json", "golden/labels.nii.gz", "golden/scores.npy"):
        root = tampered(bundle, tmp_path / Path(file).name)
        (root / file).write_bytes(b"\x1f\x8b nothing")
        assert findings(root)
