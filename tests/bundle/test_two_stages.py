"""One bundle of two stages: what export writes, what stock MONAI and our engine make of it, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
from tiny_ensemble import write_folds, write_out_of_fold
from tiny_run import KEYS, LABELS, TASK, MakeRun, affines, record_as_trained

import segpipe
from segpipe.bundle import Bundle, open_bundle
from segpipe.bundle.exporting.first_stage import read_stage
from segpipe.bundle.exporting.members import read_members
from segpipe.bundle.exporting.write import _Draft, export
from segpipe.bundle.verify import verify_bundle
from segpipe.bundle.vet import vet_bundle
from segpipe.common.files import sha256_of, write_json
from segpipe.errors import DataError, RefusedError, UsageError
from segpipe.inference import ModelOptions

pytestmark = pytest.mark.slow  # two exports, each with a golden case
DOCS = Path(__file__).parents[2] / "docs/schemas"
MASKS = [f"mask of {name}" for name in LABELS[1:]]
SINGLE = ["image_0", "image_1", "image_2"]
OF_THREE = [
    {"_target_": "SplitDimd", "keys": ["image"], "allow_missing_keys": True},
    {"_target_": "NormalizeIntensityd", "keys": ["image_0"], "channel_wise": True, "allow_missing_keys": True},
    {"_target_": "ConcatItemsd", "keys": SINGLE, "name": "image", "allow_missing_keys": True},
    {"_target_": "DeleteItemsd", "keys": SINGLE},
]


def steps(pixdim: float, intensity: list[dict[str, Any]]) -> list[dict[str, Any]]:
    before = TASK["deterministic_transforms"][:3]  # type: ignore[index]
    spacing = {"_target_": "Spacingd", **KEYS, "pixdim": [pixdim] * 3, "mode": ["bilinear", "nearest"]}
    return [*before, spacing, *intensity, {"_target_": "EnsureTyped", **KEYS}]


@pytest.fixture(scope="module")
def first(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation on a grid of 2 mm."""
    run = make_run(task={"deterministic_transforms": steps(2.0, [{**OF_THREE[1], "keys": ["image"]}])})
    folder = write_folds(run, tmp_path_factory.mktemp("first") / "cv")
    write_out_of_fold(folder)
    return folder


@pytest.fixture(scope="module")
def second(make_run: MakeRun, first: Path) -> Path:
    """A run of scans and masks on a grid of 1 mm."""
    task = {"channels": ["MRI", *MASKS], "in_channels": 3, "deterministic_transforms": steps(1.0, OF_THREE)}
    run = make_run(task=task)
    document = json.loads((run / "manifest.json").read_text())
    weights = [row["weights"]["sha256"] for row in json.loads((first / "out_of_fold.json").read_text())["folds"]]
    document["first_stage"] = {"labels": LABELS[1:], "weights_sha256": weights}
    for case in document["training"]:
        case["image"] = [case["image"], *(f"first_stage_0/{case['id']}_{value}.nii.gz" for value in (1, 2))]
    write_json(run / "manifest.json", document)
    record_as_trained(run)
    return run


@pytest.fixture(scope="module")
def both(first: Path, second: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(second, tmp_path_factory.mktemp("bundles") / "two_stages", first_stage=first)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans, tilted and flipped, as a case of several files is called."""
    folder = tmp_path_factory.mktemp("scans")
    for seed, name in enumerate(("tilted", "flipped")):
        voxels = np.random.default_rng(seed).integers(1, 400, (22, 18, 16)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, affines()[name]), folder / f"{name}_0000.nii.gz")
    return folder


def run_stock(bundle: Bundle, config: str, scans: Path, out: Path, **more: str) -> None:
    import monai.bundle

    monai.bundle.run(
        config_file=str(bundle.root / "configs" / config),
        bundle_root=str(bundle.root),
        dataset_dir=str(scans),
        output_dir=str(out),
        **more,
    )


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_it_is_one_bundle_with_the_other_in_it(both: Bundle, first: Path, second: Path):
    assert both.intact and both.unsupported == () and both.first_stage is not None
    assert both.channels == ["MRI", *MASKS] and both.of_scans.channels == ["MRI"]
    assert len(both.first_stage.members) == 2
    listed = (both.root / "SHA256SUMS").read_text()
    assert "first_stage/models/member_1.pt" in listed and "configs/first_stage.json" in listed
    deciding = both.model["files"]
    assert {"configs/inference.json", "first_stage/configs/inference.json", "first_stage/models/member_0.pt"} <= set(
        deciding
    )
    members = read_members(second)
    draft = _Draft.of(members, {}, None, read_stage(first, members.runs[0].manifest))
    assert draft.hashes() == deciding  # what ties figures to it
    record = json.loads((both.root / "provenance.json").read_text())
    jsonschema.validate(record, json.loads((DOCS / "provenance.schema.json").read_text()))
    assert record["first_stage"]["sha256"] == sha256_of(both.root / "first_stage" / "provenance.json")
    inside = json.loads((both.root / "configs" / "manifest.json").read_text())
    known = [sha256_of(first / f"fold_{fold}" / "best.pt") for fold in (0, 1)]
    assert inside["first_stage"]["weights_sha256"] == known
    cases = {case["id"] for case in json.loads((first / "fold_0" / "manifest.json").read_text())["training"]}
    recorded = set(json.loads((second / "run.json").read_text())["cases"]["training"])
    assert set(record["split"]["training"]) == cases | recorded  # by either stage, also what no manifest has any more
    assert "## Two stages" in (both.root / "docs" / "README.md").read_text()


def test_all_its_configs_pass_the_gate_and_are_replayed(both: Bundle):
    assert not vet_bundle(both.root).refused
    verified = verify_bundle(both.root, replay=True)
    assert not verified.refused, [str(finding) for finding in verified.findings]
    assert verified.outcome == "static checks and replay passed"


def test_what_a_config_of_the_first_stage_may_not_do_is_found(both: Bundle, tmp_path: Path):
    for file in ("first_stage/configs/inference.json", "configs/first_stage.json"):
        bad = Path(shutil.copytree(both.root, tmp_path / file.replace("/", "_")))
        for sums in (bad / "SHA256SUMS", bad / "first_stage" / "SHA256SUMS"):
            sums.unlink()
        document = json.loads((bad / file).read_text())
        document["postprocessing"]["transforms"][-1]["output_dir"] = "/etc"
        write_json(bad / file, document)
        assert vet_bundle(bad).refused
        if file.startswith("first_stage/"):  # that one is run here
            with pytest.raises(RefusedError, match="static checks"):
                open_bundle(bad).segment(np.arange(729, dtype=np.int16).reshape(9, 9, 9), affine_ras=np.eye(4))


def test_stock_monai_run_twice_gives_the_labels_of_one_predict(both: Bundle, scans: Path, tmp_path: Path):
    run_stock(both, "first_stage.json", scans, tmp_path / "masks")
    assert len(list((tmp_path / "masks").iterdir())) == 4
    run_stock(both, "inference.json", scans, tmp_path / "stock", first_stage_dir=str(tmp_path / "masks"))
    segpipe.predict(both.root, scans, tmp_path / "ours", threads=1, runtime="torch")
    alone = both.first_stage
    assert alone is not None
    for name in ("tilted", "flipped"):
        ours = voxels(tmp_path / "ours" / name / "segmentation.nii.gz")
        stock = voxels(tmp_path / "stock" / f"{name}_0000_seg.nii.gz")
        assert (ours == stock).mean() > 0.9999
        assert len(np.unique(ours)) > 1
        scan = scans / f"{name}_0000.nii.gz"
        coarse = alone.segment(scan, device="cpu").array
        masks = [tmp_path / "masks" / f"{name}_0000_first_stage_{value}.nii.gz" for value in (1, 2)]
        for value, mask in enumerate(masks, 1):
            assert ((coarse == value) == voxels(mask)).mean() > 0.9999
        np.testing.assert_array_equal(both.segment(scan, device="cpu", runtime="torch", threads=1).array, ours)
        # masks that somebody has are taken; without anything in them the labels are others
        np.testing.assert_array_equal(both.segment([scan, *masks], device="cpu").array, ours)
        empty = [nib.Nifti1Image(0 * voxels(mask), nib.load(mask).affine) for mask in masks]
        for image in empty:
            image.header.set_intent("label")
        assert (both.segment([scan, *empty], device="cpu").array != ours).mean() > 0.01
        result = json.loads((tmp_path / "ours" / name / "result.json").read_text())
        assert result["engine"] == "streaming" and result["seconds"]["first_stage"] > 0
        assert result["model"]["files"] == both.model["files"]


def test_masks_on_another_grid_are_refused(both: Bundle, scans: Path, tmp_path: Path):
    scan, moved = scans / "tilted_0000.nii.gz", affines()["tilted"].copy()
    moved[0, 3] += 1
    mask = nib.Nifti1Image(np.ones((22, 18, 16), np.uint8), moved)
    with pytest.raises(DataError, match="different grids"):
        both.segment([scan, mask, mask])


@pytest.mark.parametrize("which", ["a fold of it", "the second stage itself"])
def test_another_first_stage_is_refused(first: Path, second: Path, tmp_path: Path, which: str):
    with pytest.raises(RefusedError, match="another first stage"):
        export(second, tmp_path / "out", first_stage=first / "fold_0" if which == "a fold of it" else second)
    assert not (tmp_path / "out").exists()


def test_a_run_without_one_takes_none(run_folder: Path, first: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="without a first stage"):
        export(run_folder, tmp_path / "out", first_stage=first)


def test_stages_that_do_not_fit_and_further_bundles_are_refused(both: Bundle, bundle: Bundle, tmp_path: Path):
    with pytest.raises(UsageError, match="averaged with no other"):
        both.recipe(ModelOptions(), [bundle])
    odd = Path(shutil.copytree(bundle.root, tmp_path / "odd"))
    shutil.copytree(bundle.root, odd / "first_stage")
    (odd / "SHA256SUMS").unlink()
    with pytest.raises(DataError, match="two stages of the bundle do not fit"):
        open_bundle(odd)
