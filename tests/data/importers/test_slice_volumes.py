"""From TIFF and PNG slices to NIfTI volumes, through the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name

from segpipe.cli.app import run
from segpipe.common.files import read_yaml
from segpipe.data.manifest import load_manifest, shipped_manifest
from segpipe.errors import BAD_DATA, INTERRUPTED, OK, USAGE
from segpipe.training.fragments import configs_folder
from tiny_slices import write_image, write_lgg


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_lgg(tmp_path / "kaggle_3m", patients=3)


def imported(*words: object, code: int = OK) -> int:
    assert run(["import", *map(str, words)]) == code
    return code


def test_every_pixel_lands_at_its_place(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "lgg" / "manifest.json"
    imported(tree, "-o", out)
    manifest = load_manifest(out)
    assert (manifest.name, manifest.licence) == ("lgg_mri", "CC BY-NC-SA 4.0")
    assert manifest.channels == ["pre-contrast", "FLAIR", "post-contrast"]
    assert manifest.labels == {"0": "background", "1": "tumour"}
    assert "1x1x1 mm: assumed" in manifest.description
    case = manifest.training[0]
    image = nib.load(out.parent / case.images[0])
    label = nib.load(out.parent / case.label)
    assert image.shape == (40, 32, 12, 3)
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert np.array_equal(image.affine, label.affine)
    folder = tree / "TCGA_CS_4900_20000101"
    for k in (0, 8, 11):  # slices 2, 10, 13
        pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{folder.name}_{k + 2}.tif")))
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{folder.name}_{k + 2}_mask.tif")))
        for row, column in ((0, 0), (31, 0), (14, 18), (5, 39)):
            assert np.array_equal(np.asarray(image.dataobj)[column, row, k], pixels[row, column])
            assert np.asarray(label.dataobj)[column, row, k] == (mask[row, column] > 0)
    assert image.header["descrip"].item() == b""


def test_what_is_converted_already_is_kept_and_a_changed_slice_is_not(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    imported(tree, "-o", out, "--spacing", 0.9, 0.9, 5)
    images = sorted((tmp_path / "m_nifti" / "images").iterdir())
    assert np.allclose(nib.load(images[0]).header.get_zooms()[:3], (0.9, 0.9, 5))
    assert "as told at import" in load_manifest(out).description
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in images]
    imported(tree, "-o", out, "--spacing", 0.9, 0.9, 5, "--overwrite")
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in images] == before
    listed = [case.images[0] for case in load_manifest(out).training]
    changed = next(tree.glob("TCGA_CS_4900_*/*_5.tif"))
    write_image(changed, pixels_of(changed)[::-1])
    imported(tree, "-o", out, "--spacing", 0.9, 0.9, 5, "--overwrite")
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in images] == before
    now = [case.images[0] for case in load_manifest(out).training]
    assert (now[0] != listed[0], now[1:] == listed[1:]) == (True, True)
    first, second = (np.asarray(nib.load(tmp_path / paths[0]).dataobj) for paths in (listed, now))
    assert np.array_equal(np.argwhere((first != second).any(axis=(0, 1, 3))), [[3]])  # slice 5 of 2, 3, ...
    imported(tree, "-o", out, code=USAGE)  # a manifest that is there already


def edges_of(manifest: Path) -> list[tuple[float, ...]]:
    root = manifest.parent
    cases = load_manifest(manifest).training
    return [tuple(nib.load(root / path).header.get_zooms()[:3]) for case in cases for path in case.paths]


def test_no_import_changes_the_files_of_another(tree: Path, tmp_path: Path) -> None:
    thin, thick, again = (tmp_path / f"{name}.json" for name in ("thin", "thick", "again"))
    imported(tree, "-o", thin, "--converted", tmp_path / "made", "--spacing", 1, 1, 1)
    imported(tree, "-o", thick, "--converted", tmp_path / "made", "--spacing", 1, 1, 5)
    assert (set(edges_of(thin)), set(edges_of(thick))) == ({(1, 1, 1)}, {(1, 1, 5)})
    imported(tree, "-o", again, "--converted", tmp_path / "made", "--spacing", 1, 1, 1)
    assert [case.paths for case in load_manifest(again).training] == [
        case.paths for case in load_manifest(thin).training
    ]


def test_volumes_of_an_import_that_was_killed_are_not_taken_for_others(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.json"
    imported(tree, "-o", out, "--spacing", 1, 1, 1)

    def killed(path: Path, document: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # between the volume and what is noted of it
        patch.setattr("segpipe.data.importers.slice_volumes.write_json", killed)
        patch.setattr("segpipe.data.importers.slice_volumes.workers_to_read", lambda paths: 1)
        assert run(["import", str(tree), "-o", str(out), "--overwrite", "--spacing", "1", "1", "5"]) == INTERRUPTED
    imported(tree, "-o", out, "--overwrite", "--spacing", 1, 1, 1)
    assert set(edges_of(out)) == {(1, 1, 1)}


def pixels_of(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def damage(kind: str, folder: Path) -> None:
    slice_5, mask_5 = folder / f"{folder.name}_5.tif", folder / f"{folder.name}_5_mask.tif"
    if kind == "shape":
        write_image(slice_5, pixels_of(slice_5)[:-1])
    elif kind == "mask shape":
        for path in folder.glob("*_mask.tif"):
            write_image(path, pixels_of(path)[:-1])
    elif kind == "odd":
        mask = pixels_of(mask_5)
        mask[3, 4] = 128
        write_image(mask_5, mask)
    elif kind == "colours":
        for path in folder.glob("*_mask.tif"):
            mask = pixels_of(path)
            write_image(path, np.stack([mask, mask, mask // 255 if path == mask_5 else mask], axis=-1))
    elif kind == "depth":
        write_image(slice_5, pixels_of(slice_5).astype(np.uint16))
    elif kind == "corrupt":
        slice_5.write_bytes(slice_5.read_bytes()[:200])
    elif kind == "not an image":
        slice_5.write_text("hello")
    elif kind == "pages":
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 32, 40), np.uint8)), str(slice_5))
    elif kind == "ones":
        for path in folder.glob("*_mask.tif"):
            write_image(path, pixels_of(path) // 255)
    elif kind == "grey":
        for path in folder.glob("*[0-9].tif"):
            write_image(path, pixels_of(path)[..., 0])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("shape", ["_5.tif", "(31, 40, 3)", "(32, 40, 3)"]),
        ("mask shape", ["differ in shape"]),
        ("odd", ["_5_mask.tif", "128", "0 and 255"]),
        ("colours", ["_5_mask.tif", "colours"]),
        ("depth", ["_5.tif", "uint16"]),
        ("corrupt", ["_5.tif"]),
        ("not an image", ["_5.tif", "not a readable"]),
        ("pages", ["_5.tif", "2 pages"]),
        ("ones", ["up to 1", "to 255"]),
        ("grey", ["1 channels", "have 3"]),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tree: Path, tmp_path: Path, capfd, kind: str, words) -> None:
    damage(kind, tree / "TCGA_CS_4901_20000102")
    out = tmp_path / "m.json"
    imported(tree, "-o", out, "--json", code=BAD_DATA)
    seen = capfd.readouterr()
    assert seen.err == ""
    error = json.loads(seen.out)["error"]
    assert "1 volumes cannot be used, 2 can" in error["message"]
    assert "TCGA_CS_4901" in error["found"]
    assert all(word in error["found"] for word in words), error["found"]
    assert not out.exists()
    imported(tree, "-o", out, "--skip-bad")
    assert "left out: TCGA_CS_4901" in capfd.readouterr().err
    assert [case.id for case in load_manifest(out).training] == ["TCGA_CS_4900", "TCGA_CS_4902"]


def test_png_slices_of_several_labels_by_patterns(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    for patient in ("a", "b"):
        for number in range(1, 6):
            grey = np.full((12, 10), 1000 * number, np.uint16)
            mask = np.zeros((12, 10), np.uint8)
            mask[2:5, 3:6], mask[7:9, 1:4] = 1, 2
            write_image(root / patient / f"{number}.png", grey)
            opaque = np.stack([mask, mask, mask, np.full_like(mask, 255)], axis=-1)
            write_image(root / "masks" / patient / f"{number}.png", opaque)
    patterns = ["--slices", "{patient}/{slice}.png", "--masks", "masks/{patient}/{slice}.png"]
    names = ["--label-name", "liver", "--label-name", "lesion", "--modality", "MRI"]
    imported(root, *patterns, *names)
    out = tmp_path / "scans_nifti" / "manifest.json"
    manifest = load_manifest(out)
    assert [case.patient_id for case in manifest.training] == ["a", "b"]
    assert manifest.labels == {"0": "background", "1": "liver", "2": "lesion"}
    image = nib.load(out.parent / manifest.training[0].images[0])
    assert image.get_data_dtype() == np.uint16
    assert np.asarray(image.dataobj)[0, 0].tolist() == [1000, 2000, 3000, 4000, 5000]
    assert np.bincount(np.asarray(nib.load(out.parent / manifest.training[0].label).dataobj).ravel()).tolist() == [
        120 * 5 - 15 * 5,
        9 * 5,
        6 * 5,
    ]
    imported(root, *patterns, "--overwrite", code=BAD_DATA)  # values 1 and 2 without two names


def test_usage(tree: Path, tmp_path: Path) -> None:
    imported(tree, "--slices", "{patient}/{slice}.tif", code=USAGE)
    imported(tree, "--spacing", 0, 1, 1, code=USAGE)
    imported(tree, "--layout", "decathlon", "--skip-bad", code=USAGE)
    imported(tmp_path, "--layout", "slices", "-o", tmp_path / "kaggle_3m" / "x.json")
    shutil.rmtree(tree)
    imported(tmp_path, "--layout", "slices", code=BAD_DATA)


def test_the_task_fragment_fits_the_manifest_that_comes_along() -> None:
    path = shipped_manifest("lgg_mri")
    assert path is not None
    listed, task = load_manifest(path), read_yaml(configs_folder() / "task" / "lgg_mri.yaml")
    assert (task["task_name"], task["channels"]) == (listed.name, listed.channels)
    assert task["labels"] == list(listed.labels.values())
