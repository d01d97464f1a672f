"""Fingerprints against nibabel and numpy, used another way than the code does."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import LoadImaged

from segpipe.components.training_data import CaseTransforms
from segpipe.data.check.dataset_check import check_manifest
from segpipe.data.fingerprint import (
    PERCENTILES,
    SAMPLES_PER_CASE,
    CaseFingerprint,
    Fingerprint,
    Job,
    intensity_of,
    measure_case,
    save_fingerprint,
    take_fingerprint,
)
from segpipe.data.manifest import Case, Manifest
from segpipe.data.phantom import write_nifti
from segpipe.errors import DataError, SegpipeError, UsageError
from segpipe.inference.source import read_source

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "fingerprint.schema.json"
LABELS = {"0": "background", "1": "liver", "2": "lesion"}


def write_case(root: Path, id: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> Case:
    write_nifti(root / f"{id}_image.nii.gz", image, affine)
    write_nifti(root / f"{id}_label.nii.gz", label, affine)
    return Case(id=id, image=f"{id}_image.nii.gz", label=f"{id}_label.nii.gz")


def random_case(root: Path, id: str, seed: int, spacing_mm: tuple[float, float, float] = (1.0, 1.5, 3.0)) -> Case:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(8, 14, 3))
    label = np.zeros(shape, np.uint8)
    label[2:5, 1:7, 3:6] = 1
    label[3, 2:4, 4] = 2
    image = rng.normal(100, 20, shape).astype(np.float32)
    image[0] = 0
    return write_case(root, id, image, label, np.diag([*spacing_mm, 1.0]))


def manifest_of(*training: Case, test: tuple[Case, ...] = (), channels: int = 1) -> Manifest:
    modality = {str(index): "MRI" for index in range(channels)}
    return Manifest(name="Made", modality=modality, labels=LABELS, training=list(training), test=list(test))


@pytest.fixture
def made(tmp_path: Path) -> Manifest:
    return manifest_of(*(random_case(tmp_path, f"case{seed}", seed) for seed in range(3)))


def test_a_case_is_measured_as_numpy_does(tmp_path: Path, made: Manifest) -> None:
    case = take_fingerprint(made, tmp_path).cases[1]
    image = nib.load(tmp_path / "case1_image.nii.gz").get_fdata()
    label = np.asarray(nib.load(tmp_path / "case1_label.nii.gz").dataobj)
    inside = np.sort(image[label > 0])
    channel = case.channels[0]
    assert case.shape == image.shape
    assert case.orientation == "RAS"
    assert channel.dtype == "float32"
    assert channel.overall.mean == pytest.approx(image.mean())
    assert channel.overall.std == pytest.approx(image.std())
    assert channel.foreground is not None
    assert channel.foreground.percentiles[2] == pytest.approx((inside[26] + inside[27]) / 2)  # 54 voxels
    assert channel.foreground.mean == pytest.approx(inside.mean())
    assert channel.nonzero_fraction == pytest.approx(1 - 1 / image.shape[0])
    assert {name: size.voxels for name, size in case.labels.items()} == {"liver": 52, "lesion": 2}
    assert case.labels["lesion"].volume_ml == pytest.approx(2 * 4.5 / 1000)
    assert case.foreground_box_mm == pytest.approx((3.0, 9.0, 9.0))


def test_the_summary_pools_the_foreground_of_all_cases(tmp_path: Path, made: Manifest) -> None:
    summary = take_fingerprint(made, tmp_path).summary
    pooled = np.concatenate(
        [
            nib.load(tmp_path / f"case{i}_image.nii.gz").get_fdata()[
                nib.load(tmp_path / f"case{i}_label.nii.gz").get_fdata() > 0
            ]
            for i in range(3)
        ]
    )
    assert summary.cases == 3
    assert summary.median_spacing_ras_mm == pytest.approx((1.0, 1.5, 3.0))
    assert summary.foreground[0] is not None
    assert summary.foreground[0].mean == pytest.approx(pooled.mean())
    assert summary.foreground[0].percentiles[4] == pytest.approx(np.quantile(pooled, 0.995))
    assert summary.median_volume_ml["liver"] == pytest.approx(52 * 4.5 / 1000)


def test_processes_give_what_one_process_gives(tmp_path: Path, made: Manifest) -> None:
    seen: list[tuple[int, int]] = []
    assert take_fingerprint(
        made, tmp_path, workers=2, progress=lambda *counts: seen.append(counts)
    ) == take_fingerprint(made, tmp_path, workers=1)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_test_cases_are_never_opened(tmp_path: Path, made: Manifest) -> None:
    absent = Case(id="held_out", image="absent.nii.gz", label="absent_label.nii.gz")
    manifest = made.model_copy(update={"test": [absent]})
    assert [case.id for case in take_fingerprint(manifest, tmp_path).cases] == ["case0", "case1", "case2"]


def test_the_file_names_ids_and_no_paths(tmp_path: Path, made: Manifest) -> None:
    fingerprint = take_fingerprint(made, tmp_path)
    save_fingerprint(fingerprint, tmp_path / "made.fingerprint.json")
    text = (tmp_path / "made.fingerprint.json").read_text()
    assert ".nii" not in text
    assert str(tmp_path) not in text
    assert json.loads(text)["schema_version"] == 1
    assert Fingerprint.model_validate_json(text) == fingerprint


def test_a_large_foreground_is_sampled_evenly(tmp_path: Path) -> None:
    image = np.arange(32**3, dtype=np.float32).reshape(32, 32, 32)
    case = write_case(tmp_path, "large", image, np.ones(image.shape, np.uint8), np.eye(4))
    _case, samples = measure_case(Job(LABELS, 1, str(tmp_path), case))
    assert SAMPLES_PER_CASE / 2 < samples[0].size <= SAMPLES_PER_CASE
    assert samples[0].mean() == pytest.approx(image.mean(), rel=1e-3)


def test_an_empty_label_map_has_no_foreground(tmp_path: Path) -> None:
    image = np.ones((4, 4, 4), np.int16)
    case = write_case(tmp_path, "empty", image, np.zeros((4, 4, 4), np.uint8), np.eye(4))
    fingerprint = take_fingerprint(manifest_of(case), tmp_path)
    assert fingerprint.cases[0].channels[0].foreground is None
    assert fingerprint.cases[0].foreground_box_mm is None
    assert fingerprint.summary.foreground == [None]


@pytest.mark.parametrize("stacked", [True, False])
def test_channels_in_one_file_or_in_several(tmp_path: Path, stacked: bool) -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(0, 1, (6, 5, 4, 2)).astype(np.float32)
    volume[..., 1] += 50
    label = np.zeros((6, 5, 4), np.uint8)
    label[1:3] = 1
    write_nifti(tmp_path / "label.nii.gz", label, np.eye(4))
    if stacked:
        write_nifti(tmp_path / "both.nii.gz", volume, np.eye(4))
        image: str | list[str] = "both.nii.gz"
    else:
        image = ["a.nii.gz", "b.nii.gz"]
        for index, name in enumerate(image):
            write_nifti(tmp_path / name, volume[..., index], np.eye(4))
    case = Case(id="two", image=image, label="label.nii.gz")
    channels = take_fingerprint(manifest_of(case, channels=2), tmp_path).cases[0].channels
    assert [channel.overall.mean for channel in channels] == pytest.approx(volume.mean(axis=(0, 1, 2)), rel=1e-4)


def test_no_training_cases(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no training cases"):
        take_fingerprint(manifest_of(), tmp_path)


def break_missing(root: Path) -> None:
    (root / "bad_image.nii.gz").unlink()


def break_truncated(root: Path) -> None:
    content = (root / "bad_image.nii.gz").read_bytes()
    (root / "bad_image.nii.gz").write_bytes(content[: len(content) // 2])


def break_label_value(root: Path) -> None:
    write_nifti(root / "bad_label.nii.gz", np.full((6, 6, 6), 7, np.uint8), np.eye(4))


def break_label_fraction(root: Path) -> None:
    write_nifti(root / "bad_label.nii.gz", np.full((6, 6, 6), 1.5, np.float32), np.eye(4))


def break_grid(root: Path) -> None:
    write_nifti(root / "bad_label.nii.gz", np.zeros((6, 6, 7), np.uint8), np.eye(4))


def break_finite(root: Path) -> None:
    write_nifti(root / "bad_image.nii.gz", np.full((6, 6, 6), np.nan, np.float32), np.eye(4))


def break_dimensions(root: Path) -> None:
    write_nifti(root / "bad_image.nii.gz", np.zeros((6, 6, 6, 3), np.float32), np.eye(4))


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (break_missing, UsageError, "no such file"),
        (break_truncated, DataError, "cannot read"),
        (break_label_value, DataError, "values that the manifest does not know"),
        (break_label_fraction, DataError, "values that the manifest does not know"),
        (break_grid, DataError, "different grids"),
        (break_finite, DataError, "not finite"),
        (break_dimensions, DataError, "more than three dimensions"),
    ],
)
def test_errors_name_the_case(tmp_path: Path, damage, kind: type[SegpipeError], words: str) -> None:
    good = write_case(tmp_path, "good", np.ones((6, 6, 6), np.int16), np.ones((6, 6, 6), np.uint8), np.eye(4))
    bad = write_case(tmp_path, "bad", np.ones((6, 6, 6), np.int16), np.ones((6, 6, 6), np.uint8), np.eye(4))
    damage(tmp_path)
    with pytest.raises(kind, match=words) as caught:
        take_fingerprint(manifest_of(good, bad), tmp_path)
    assert caught.value.case_id == "bad"


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("shape", [(6, 6, 7), (6, 6, 6)])
def test_two_channels_on_different_grids_are_called_channels(tmp_path: Path, odd: int, shape: tuple[int, ...]) -> None:
    """Whichever of them the label agrees with; the same words everywhere, and `check` blames no label."""
    affine = np.eye(4) if shape == (6, 6, 7) else np.diag([1.0, 1.0, 1.2, 1.0])
    for index in range(2):
        voxels = np.random.default_rng(index).integers(1, 99, shape if index == odd else (6, 6, 6)).astype(np.int16)
        write_nifti(tmp_path / f"c_{index}.nii.gz", voxels, affine if index == odd else np.eye(4))
    write_nifti(tmp_path / "label.nii.gz", np.ones((6, 6, 6), np.uint8), np.eye(4))
    case = {"id": "c", "image": ["c_0.nii.gz", "c_1.nii.gz"], "label": "label.nii.gz"}
    manifest = Manifest.model_validate(
        {
            "name": "two",
            "modality": {"0": "T1", "1": "T2"},
            "labels": {"0": "background", "1": "liver"},
            "training": [case],
        }
    )
    with pytest.raises(DataError, match="the channels lie on different grids") as caught:
        take_fingerprint(manifest, tmp_path)
    assert caught.value.case_id == "c" and "channel 0 against channel 1" in str(caught.value.found)
    with pytest.raises(DataError, match="the channels lie on different grids"):
        read_source([tmp_path / name for name in case["image"]], 2)
    item = {"case_id": "c", "image": [str(tmp_path / name) for name in case["image"]], "label": None}
    loading = CaseTransforms([LoadImaged("image", image_only=True)])
    with pytest.raises(DataError, match="the channels lie on different grids"):
        loading(item)
    kinds = {finding.kind for finding in check_manifest(manifest, tmp_path)}
    assert "channel_geometry_differs" in kinds and "label_geometry_differs" not in kinds


@settings(max_examples=60, deadline=None)
@given(st.permutations(["LR", "PA", "IS"]), st.tuples(*[st.sampled_from([0, 1])] * 3))
def test_ras_order_is_nibabels(pairs: list[str], ends: tuple[int, int, int]) -> None:
    codes = "".join(pair[end] for pair, end in zip(pairs, ends, strict=True))
    shape, spacing = (10, 20, 30), (0.5, 1.0, 4.0)
    transform = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(tuple("RAS")), nib.orientations.axcodes2ornt(tuple(codes))
    )
    ras = np.zeros((3, 4, 5))
    image = nib.orientations.apply_orientation(ras, transform)
    back = {size: axis for axis, size in enumerate(ras.shape)}
    expected = [0.0] * 3
    for axis, size in enumerate(image.shape):
        expected[back[size]] = shape[axis]
    case = CaseFingerprint(
        id="x", shape=shape, spacing_mm=spacing, orientation=codes, channels=[], labels={}, foreground_box_mm=None
    )
    assert list(case.shape_ras) == expected
    assert [shape[spacing.index(edge)] for edge in case.spacing_ras_mm] == expected


def test_the_schema_is_current() -> None:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Fingerprint.model_json_schema()}
    assert json.loads(SCHEMA.read_text()) == schema, "write the new one over it"


@given(st.integers(0, 2**32 - 1), st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "float32"]))
@settings(max_examples=40, deadline=None)
def test_intensities_of_every_type_are_those_of_numpy(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 120, rng.integers(1, 5, 3)) - (0 if dtype.startswith("u") else 60)
    found = intensity_of(values.astype(dtype))
    assert np.allclose(found.percentiles, np.percentile(values.astype(float), PERCENTILES), rtol=0, atol=1e-9)
    assert np.allclose([found.mean, found.std], [values.mean(), values.std()])


@pytest.mark.parametrize("axes", ["RAS", "PIL"])
def test_the_box_of_what_is_above_0_holds_all_channels_and_all_labels(tmp_path: Path, axes: str) -> None:
    first, second = np.full((10, 12, 14), -1000, np.int16), np.full((10, 12, 14), -5, np.int16)
    first[2:6, 3:9, 4:5], second[4:8, 3:9, 4:10] = 40, 7
    label = np.zeros(first.shape, np.uint8)
    label[3:5, 4:6, 4:5] = 1
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    files = []
    for name, values in (("ct", first), ("pet", second), ("label", label)):
        image = nib.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0])).as_reoriented(turn)
        nib.save(image, tmp_path / f"{name}.nii.gz")
        files.append(f"{name}.nii.gz")
    job = Job(LABELS, 2, str(tmp_path), Case(id="a", image=files[:2], label=files[2]))
    case = measure_case(job)[0]
    assert case.positive_box_ras_mm == (6.0, 12.0, 18.0), "2 to 8, 3 to 9, 4 to 10"
    label[0, 0, 0] = 1
    outside = nib.Nifti1Image(label, np.diag([1.0, 2.0, 3.0, 1.0])).as_reoriented(turn)
    nib.save(outside, tmp_path / "label.nii.gz")
    assert measure_case(job)[0].positive_box_mm is None, "a label lies in the air"


def test_there_is_no_box_of_what_is_above_0_in_an_image_without(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a", -np.ones((4, 5, 6), np.float32), np.zeros((4, 5, 6), np.uint8), np.eye(4))
    assert measure_case(Job(LABELS, 1, str(tmp_path), case))[0].positive_box_mm is None
