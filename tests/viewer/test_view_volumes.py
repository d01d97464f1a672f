"""What a browser is given of a case: the file's own values on the file's own grid, or a reason why not."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from tiny_results import LEFT, NAMES, SHAPE, ras_affine, save, write_results

from segpipe.common.result_folder import MAPPING, RESULT, SEGMENTATION
from segpipe.reporting import colour_of
from segpipe.viewer import ViewedCase, find_viewed
from segpipe.viewer.cases import LayerFile
from segpipe.viewer.volumes import MOST_VOXELS, ShownVolume, is_sheared, read_case


def sheared() -> np.ndarray:
    affine = ras_affine()
    affine[0, 2] += 1.0
    return affine


@settings(max_examples=30)
@given(
    st.sampled_from(["uint8", "int16", "int32", "float32"]),
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.3, 6)] * 3),
    st.tuples(*[st.booleans()] * 3),
    st.integers(0, 2**32 - 1),
)
def test_bytes_for_the_browser_hold_grid_and_voxels(
    dtype: str, degrees: Any, spacing: Any, mirrored: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    signs = np.where(mirrored, -1, 1)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * (signs * spacing)
    affine[:3, 3] = rng.normal(0, 100, 3)
    values = rng.integers(0, 255, (3, 4, 5)).astype(dtype)
    content = ShownVolume("image", "image", values, affine).nifti()
    image = nib.Nifti1Image.from_stream(io.BytesIO(content))
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 0)
    assert struct.unpack_from("<f", content, 108) == (352,) and len(content) == 352 + values.nbytes
    np.testing.assert_array_equal(np.asarray(image.dataobj), values)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert not is_sheared(affine, values.shape)
    text = bytes(image.header["descrip"]) + bytes(image.header["intent_name"]) + bytes(image.header["aux_file"])
    assert text.strip(b"\0") == b""


@pytest.mark.parametrize(("shift", "wrong"), [(0.0, False), (0.0005, False), (0.1, True), (-1.0, True)])
def test_a_shear_is_seen_by_what_it_moves(shift: float, wrong: bool) -> None:
    affine = ras_affine(turned=True)
    affine[:3, 2] += shift * affine[:3, 0]
    assert is_sheared(affine, SHAPE) == wrong


@pytest.mark.parametrize("stored", ["int8", "uint16", "float64", "uint8"])
def test_every_type_keeps_its_values(tmp_path: Path, stored: str) -> None:
    values = np.random.default_rng(0).integers(0, 120, (4, 5, 6)).astype(stored)
    nib.save(nib.Nifti1Image(values, np.eye(4), dtype=stored), tmp_path / "a.nii.gz")
    (volume,) = read_case(ViewedCase("a", (tmp_path / "a.nii.gz",))).volumes
    assert volume.values.dtype.name in ("uint8", "int16", "int32", "float32")
    np.testing.assert_array_equal(volume.values, values)


def test_scaled_values_are_those_that_are_meant(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, -7)
    nib.save(image, tmp_path / "a.nii.gz")
    (volume,) = read_case(ViewedCase("a", (tmp_path / "a.nii.gz",))).volumes
    np.testing.assert_array_equal(volume.values, nib.load(tmp_path / "a.nii.gz").get_fdata())


def test_a_result_shows_image_labels_and_doubt(tmp_path: Path) -> None:
    tiny = write_results(tmp_path)
    (case,) = find_viewed(tiny.out, truth=tiny.truth)
    shown = read_case(case)
    assert shown.pictures_only is None and shown.oriented
    assert [(volume.name, volume.kind, volume.unit) for volume in shown.volumes] == [
        ("image", "image", ""),
        ("prediction", "labels", ""),
        ("entropy", "map", "nat"),
        ("truth", "labels", ""),
    ]
    assert list(shown.notes) == ["a note of the batch"]
    image, prediction, entropy, _ = (volume.facts() for volume in shown.volumes)
    assert prediction["labels"] == [
        {"value": value, "name": name, "colour": list(colour_of(value)), "present": True}
        for value, name in NAMES.items()
    ]
    assert image["window"] == pytest.approx(np.percentile(tiny.image, (0.5, 99.5)), abs=3)
    assert entropy["window"] == pytest.approx([0.05 * 0.625, 0.625])
    json.dumps(shown.document(), allow_nan=False)
    assert str(tmp_path) not in json.dumps(shown.document())


def test_ct_has_hounsfield_units_and_windows(tmp_path: Path) -> None:
    tiny = write_results(tmp_path)
    (case,) = find_viewed(tiny.truth)
    image, truth = (volume.facts() for volume in read_case(case).volumes)
    assert (image["name"], image["unit"]) == ("CT", "HU")
    assert {"name": "soft tissue", "low": -160.0, "high": 240.0} in image["presets"]
    assert (truth["name"], truth["labels"][1]["present"]) == ("truth", False)


def test_regions_that_overlap_are_a_layer_each(tmp_path: Path) -> None:
    tiny = write_results(tmp_path)
    masks = np.zeros((*SHAPE, 2), np.uint8)
    masks[2:20, 2:20, 2:20, 0] = masks[5:10, 5:10, 5:10, 1] = 1
    nib.save(nib.Nifti1Image(masks, ras_affine()), tmp_path / "masks.nii.gz")
    save(tmp_path / "image.nii.gz", tiny.image, "RAS", ras_affine())
    layer = LayerFile("prediction", tmp_path / "masks.nii.gz", {1: "whole", 2: "core"})
    _, whole, core = read_case(ViewedCase("a", (tmp_path / "image.nii.gz",), (layer,))).volumes
    assert (whole.name, core.name) == ("prediction: whole", "prediction: core")
    np.testing.assert_array_equal(core.values, 2 * masks[..., 1])


def test_a_layer_on_another_grid_is_left_out_and_said(tmp_path: Path) -> None:
    tiny = write_results(tmp_path)
    moved = ras_affine()
    moved[0, 3] += 2
    save(tmp_path / "out" / "case_1" / SEGMENTATION, tiny.labels, "PSL", moved)
    shown = read_case(find_viewed(tiny.out)[0])
    assert [volume.name for volume in shown.volumes] == ["image", "entropy"]
    assert any("prediction is left out: it lies on another grid" in note for note in shown.notes)


def test_what_was_changed_since_is_said(tmp_path: Path) -> None:
    tiny = write_results(tmp_path)
    for path, voxels in (
        (tmp_path / "data" / "image.nii.gz", tiny.image + 1),
        (tmp_path / "out" / "case_1" / SEGMENTATION, tiny.labels * LEFT),
    ):
        save(path, voxels, "PSL", ras_affine())
    (tmp_path / "out" / "case_1" / SEGMENTATION).write_bytes((tmp_path / "out" / "case_1" / SEGMENTATION).read_bytes())
    notes = read_case(find_viewed(tiny.out)[0]).notes
    assert "the image has changed since it was segmented" in notes


def test_letters_are_left_out_where_the_file_says_no_side(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, tmp_path / "a.nii.gz")
    shown = read_case(ViewedCase("a", (tmp_path / "a.nii.gz",)))
    assert not shown.oriented and any("which side is which" in note for note in shown.notes)


@pytest.mark.parametrize("kind", ["sheared", "gone", "unknown", "large", "flat"])
def test_what_cannot_be_drawn_becomes_pictures_with_a_reason(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = write_results(tmp_path)
    file = tmp_path / "data" / "image.nii.gz"
    if kind == "sheared":
        image = nib.Nifti1Image(tiny.image, sheared())
        image.set_qform(None, code=0)
        nib.save(image, file)
    elif kind == "gone":
        file.unlink()
    elif kind == "unknown":
        (tmp_path / "out" / MAPPING).unlink()
    elif kind == "large":
        monkeypatch.setattr("segpipe.viewer.volumes.MOST_VOXELS", 1000)
    else:
        nib.save(nib.Nifti1Image(np.zeros((5, 5), np.int16), np.eye(4)), file)
    shown = read_case(find_viewed(tiny.out)[0])
    words = {
        "sheared": "sheared",
        "gone": "not where it was",
        "unknown": "not known",
        "large": "1,000",
        "flat": "not a volume",
    }
    assert shown.volumes == () and words[kind] in str(shown.pictures_only)
    assert str(tmp_path) not in json.dumps(shown.document())
    assert MOST_VOXELS >= 512 * 512 * 600


@pytest.mark.parametrize("value", [0.5, -1, np.inf, np.nan, 1e9])
def test_what_is_no_label_map_is_left_out(tmp_path: Path, value: float) -> None:
    tiny = write_results(tmp_path)
    odd = tiny.labels.astype(np.float32)
    odd[0, 0, 0] = value
    save(tmp_path / "out" / "case_1" / SEGMENTATION, odd, "PSL", ras_affine())
    shown = read_case(find_viewed(tiny.out)[0])
    assert [volume.name for volume in shown.volumes] == ["image", "entropy"]
    assert any("prediction is left out: it is no label map" in note for note in shown.notes)


def test_flags_of_a_result_are_told(tmp_path: Path) -> None:
    tiny = write_results(tmp_path)
    path = tmp_path / "out" / "case_1" / RESULT
    result = json.loads(path.read_text())
    path.write_text(
        json.dumps({**result, "flags": {"empty": True}, "not_written": {"overlay": "it was not asked for"}})
    )
    assert find_viewed(tiny.out)[0].remarks == ("empty", "a note of the batch")


def test_a_damaged_result_still_shows_its_image(tmp_path: Path) -> None:
    tiny = write_results(tmp_path)
    (tmp_path / "out" / "case_1" / RESULT).write_text("{")
    (tmp_path / "out" / "case_1" / SEGMENTATION).write_bytes(b"nothing")
    shown = read_case(find_viewed(tiny.out)[0])
    assert [volume.name for volume in shown.volumes] == ["image", "entropy"]
    assert any(note.startswith("prediction is left out") for note in shown.notes)
