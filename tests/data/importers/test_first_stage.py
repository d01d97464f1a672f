"""The label maps of a cross-validation as channels of a second stage's manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from segpipe.cli.app import run
from segpipe.data import import_first_stage, load_manifest, manifest_sha256
from segpipe.data.check.case_check import examine
from segpipe.errors import DataError, RefusedError, SegpipeError, UsageError
from segpipe.inference import read_source
from tiny_data import write_data
from tiny_stages import LOST, write_first_stage


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny data set, with a first stage in ``run``."""
    root = tmp_path_factory.mktemp("stages")
    write_first_stage(write_data(root / "data", cases=4), root / "run")
    return root


@pytest.fixture
def there(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "there")


def test_masks_of_the_label_maps_are_the_last_channels(there: Path, capsys: pytest.CaptureFixture[str]):
    manifest = there / "data" / "manifest.json"
    code = run(["import", str(manifest), "--first-stage", str(there / "run"), "--json"])
    assert code == 0
    written = json.loads(capsys.readouterr().out)
    assert written["manifest"] == str(there / "data" / "manifest_second_stage.json")
    second = load_manifest(written["manifest"])
    assert second.channels == ["MRI", "mask of liver", "mask of kidney", "mask of lesion"]
    assert second.first_stage is not None and second.first_stage.weights_sha256 == ["a" * 64, "b" * 64]
    assert [case.fold for case in second.training] == [case.fold for case in load_manifest(manifest).training]
    for case in second.training:
        label_map = nib.load(there / "run" / "out_of_fold" / case.id / "segmentation.nii.gz")
        for value, name in enumerate(case.images[1:], 1):
            mask = nib.load(there / "data" / name)
            np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(label_map.dataobj) == value)
            np.testing.assert_array_equal(mask.affine, label_map.affine)


def test_empty_masks_of_two_cases_are_two_images(there: Path):
    manifest, stage = there / "data" / "manifest.json", there / "run"
    document = json.loads(manifest.read_text())
    for case in document["training"]:
        case["sha256"] = {case["image"]: "0" * 64}
        path = stage / "out_of_fold" / case["id"] / "segmentation.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros((20, 18, 16), np.uint8), np.eye(4)), path)
        for folder in ("images", "labels"):
            nib.save(nib.Nifti1Image(np.ones((20, 18, 16), np.uint8), np.eye(4)), there / "data" / case[folder[:-1]])
    manifest.write_text(json.dumps(document))
    figures = json.loads((stage / "out_of_fold.json").read_text())
    (stage / "out_of_fold.json").write_text(json.dumps({**figures, "manifest_sha256": manifest_sha256(manifest)}))
    second = import_first_stage(manifest, stage).manifest
    hashes = [(case.sha256 or {})[name] for case in second.training for name in case.images[1:]]
    assert len(set(hashes)) == len(hashes) == 12


def test_a_plan_leaves_masks_as_they_are(there: Path):
    second = import_first_stage(there / "data" / "manifest.json", there / "run").path
    assert run(["plan", str(second), "-o", str(there / "second.yaml")]) == 0
    task = yaml.safe_load((there / "second.yaml").read_text())
    scaled = [each["keys"] for each in task["deterministic_transforms"] if "Intensity" in each["_target_"]]
    assert scaled == [["image_0"]] and task["in_channels"] == 4


def test_an_empty_mask_is_no_fault_of_a_case_and_an_empty_scan_is(there: Path):
    second = load_manifest(import_first_stage(there / "data" / "manifest.json", there / "run").path)
    case = next(case for case in second.training if case.id == LOST)
    assert examine(case, there / "data", second).findings == []
    source = read_source([there / "data" / image for image in case.images], 4, masks=3)
    assert not source.array[1:].any() and source.array[0].any()
    mask = nib.load(there / "data" / case.images[1])
    empty = nib.Nifti1Image(np.zeros(mask.shape, np.int16), mask.affine)
    empty.header.set_intent("label")  # whatever a file says of itself
    nib.save(empty, there / "data" / case.images[0])
    assert [finding.kind for finding in examine(case, there / "data", second).findings] == ["constant_image"]
    with pytest.raises(DataError, match="the image is constant"):
        read_source([there / "data" / image for image in case.images], 4, masks=3)


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        ("grid", DataError, "lie on different grids"),
        ("missing", RefusedError, "no label map of some cases"),
        ("manifest", RefusedError, "another manifest"),
        ("value", DataError, "values that are no label"),
        ("unmeasured", UsageError, "out-of-fold figures"),
        ("taken", UsageError, "a manifest already"),
        ("twice", RefusedError, "one label map"),
    ],
)
def test_what_does_not_fit_is_refused(there: Path, spoil: str, kind: type[SegpipeError], words: str):
    manifest, stage = there / "data" / "manifest.json", there / "run"
    label_map = stage / "out_of_fold" / "case_2" / "segmentation.nii.gz"
    image = nib.load(label_map)
    voxels = np.asarray(image.dataobj)
    if spoil == "grid":
        moved = image.affine.copy()
        moved[0, 3] += 1
        nib.save(nib.Nifti1Image(voxels, moved), label_map)
    elif spoil == "value":
        nib.save(nib.Nifti1Image(np.full_like(voxels, 9), image.affine), label_map)
    elif spoil == "missing":
        label_map.unlink()
    elif spoil == "manifest":
        manifest.write_text(manifest.read_text().replace('"tiny"', '"other"'))
    elif spoil == "unmeasured":
        (stage / "out_of_fold.json").unlink()
    elif spoil == "taken":
        (there / "data" / "manifest_second_stage.json").write_text("{}")
    else:
        manifest = import_first_stage(manifest, stage).path
        document = json.loads((stage / "out_of_fold.json").read_text())
        (stage / "out_of_fold.json").write_text(json.dumps({**document, "manifest_sha256": manifest_sha256(manifest)}))
    with pytest.raises(kind, match=words):
        import_first_stage(manifest, stage)


@pytest.mark.parametrize("option", [["--name", "x"], ["--region", "all=1,2"], ["--hash"], ["--skip-bad"]])
def test_options_of_other_imports_do_not_go_with_it(there: Path, option: list[str], capsys: pytest.CaptureFixture[str]):
    words = ["import", str(there / "data" / "manifest.json"), "--first-stage", str(there / "run")]
    assert run([*words, *option]) == 2
    said = capsys.readouterr().err
    assert "--first-stage goes with a manifest" in said and f"found: {option[0]}\n" in said
