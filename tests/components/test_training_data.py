"""Cases on their way from the manifest into training: named when something is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirstd, Lambdad, LoadImaged

from segpipe.common.files import sha256_of
from segpipe.components.training_data import CaseTransforms, ValidateCased, load_cases
from segpipe.data.manifest import Manifest, save_manifest
from segpipe.errors import DataError, UsageError

SHAPE = (4, 5, 6)


def save(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(values, np.float32), np.eye(4)), path)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three training cases in two folds, the last of two channels, and an unlabelled test case."""
    training: list[dict[str, Any]] = [
        {"id": name, "image": f"i/{name}.nii", "label": f"l/{name}.nii", "fold": fold}
        for name, fold in (("a", 0), ("b", 1), ("c", 1))
    ]
    training[2]["image"] = ["i/c_0.nii", "i/c_1.nii"]
    manifest = Manifest.model_validate(
        {
            "name": "d",
            "modality": {"0": "T1", "1": "T2"},
            "labels": {"0": "background", "1": "x"},
            "training": training,
            "test": [{"id": "t", "image": "i/t.nii"}],
        }
    )
    for case in manifest.cases():
        for path in case.paths:
            save(tmp_path / path, np.arange(120).reshape(SHAPE))
    save_manifest(manifest, tmp_path / "manifest.json")
    return tmp_path


def test_what_was_looked_for_comes_with_a_case(dataset: Path) -> None:
    document = json.loads((dataset / "manifest.json").read_text())
    document["labels"]["2"] = "y"
    document["training"][0]["annotated_labels"] = ["y"]
    document["training"][1]["annotated_labels"] = [1, 2]
    (dataset / "manifest.json").write_text(json.dumps(document))
    cases = load_cases(str(dataset / "manifest.json"), str(dataset), "training")
    assert [case.get("annotated") for case in cases] == [[2], None, None]


def test_ignored_voxels_are_known_to_the_check() -> None:
    image = MetaTensor(torch.rand(1, *SHAPE))
    label = MetaTensor(torch.zeros(1, *SHAPE))
    label[0, 0] = 9
    ValidateCased(1, 2, 9)({"image": image, "label": label})
    with pytest.raises(DataError, match="outside the manifest"):
        ValidateCased(1, 2)({"image": image, "label": label})
    with pytest.raises(DataError, match="no voxel is annotated"):
        ValidateCased(1, 2, 9)({"image": image, "label": torch.full_like(label, 9)})


def test_cases_of_a_split_have_id_paths_and_label(dataset: Path) -> None:
    manifest, data = str(dataset / "manifest.json"), str(dataset)
    one = {"case_id": "a", "image": f"{data}/i/a.nii", "label": f"{data}/l/a.nii"}
    assert load_cases(manifest, data, "validation", 0) == [one]
    channels = [f"{data}/i/c_0.nii", f"{data}/i/c_1.nii"]
    held = load_cases(manifest, data, "training", 0)
    assert [item["case_id"] for item in held] == ["b", "c"] and held[1]["image"] == channels
    assert load_cases(manifest, data, "test") == [{"case_id": "t", "image": f"{data}/i/t.nii"}]


def test_a_file_that_is_missing_names_case_and_file(dataset: Path) -> None:
    (dataset / "l" / "b.nii").unlink()
    with pytest.raises(UsageError, match="missing") as caught:
        load_cases(str(dataset / "manifest.json"), str(dataset), "training", 0)
    assert caught.value.case_id == "b" and caught.value.path == str(dataset / "l" / "b.nii")
    assert load_cases(str(dataset / "manifest.json"), str(dataset), "validation", 0)  # it is not of this fold


def test_a_file_that_is_not_the_one_of_the_manifest_is_refused_and_each_is_read_once(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, read = dataset / "manifest.json", list[Path]()
    document = json.loads(manifest.read_text())
    for case in [*document["training"], *document["test"]]:
        paths = [*([case["image"]] if isinstance(case["image"], str) else case["image"]), case.get("label")]
        case["sha256"] = {path: sha256_of(dataset / path) for path in paths if path}
    manifest.write_text(json.dumps(document))
    monkeypatch.setattr("segpipe.data.imported_files.sha256_of", lambda path: read.append(path) or sha256_of(path))
    for _ in range(2):
        for split in ("training", "validation", "test"):
            load_cases(str(manifest), str(dataset), split, 0)
    assert len(read) == 7 == len(set(read))  # three label maps, two images, an image of two files
    for path in ("i/b.nii", "i/a.nii", "i/t.nii"):
        save(dataset / path, np.arange(120).reshape(SHAPE) + 1)
    for split, id in (("training", "b"), ("validation", "a")):
        with pytest.raises(DataError, match="not those that the manifest was made of") as caught:
            load_cases(str(manifest), str(dataset), split, 0)
        assert caught.value.found == f"other bytes in 1 file of {id}"
    assert load_cases(str(manifest), str(dataset), "test")
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1")):  # the first of them refuses
        monkeypatch.setenv(name, value)
    assert load_cases(str(manifest), str(dataset), "training", 0)


@pytest.mark.parametrize(("split", "fold"), [("validation", 2), ("everything", 0)])
def test_a_split_that_is_not_there(split: str, fold: int | None, dataset: Path) -> None:
    with pytest.raises(UsageError):
        load_cases(str(dataset / "manifest.json"), str(dataset), split, fold)


def test_a_split_without_cases_is_not_an_empty_list(dataset: Path) -> None:
    manifest = dataset / "manifest.json"
    document = Manifest.model_validate({"name": "d", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "x"}})
    save_manifest(document, manifest)
    for split in ("training", "test"):
        with pytest.raises(UsageError, match=f"no {split} cases"):
            load_cases(str(manifest), str(dataset), split)


def loading(*more: Any) -> CaseTransforms:
    keys = ["image", "label"]
    return CaseTransforms(
        [LoadImaged(keys, reader="NibabelReader", allow_missing_keys=True), EnsureChannelFirstd(keys), *more]
    )


def test_transforms_do_what_compose_does(dataset: Path) -> None:
    item = load_cases(str(dataset / "manifest.json"), str(dataset), "validation", 0)[0]
    ready = loading()(item)
    assert ready["case_id"] == "a"
    assert tuple(ready["image"].shape) == (1, *SHAPE)
    np.testing.assert_array_equal(ready["image"][0].numpy(), np.arange(120).reshape(SHAPE))


@pytest.mark.parametrize("key", ["image", "label"])
def test_a_broken_file_names_case_and_file(key: str, dataset: Path) -> None:
    item = load_cases(str(dataset / "manifest.json"), str(dataset), "validation", 0)[0]
    path = Path(item[key])
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match="cannot read") as caught:
        loading()(item)
    assert caught.value.case_id == "a" and caught.value.path == str(path)


def test_a_broken_channel_is_told_from_the_others(dataset: Path) -> None:
    item = load_cases(str(dataset / "manifest.json"), str(dataset), "validation", 1)[1]
    path = Path(item["image"][1])
    path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        loading()(item)
    assert caught.value.case_id == "c" and caught.value.path == str(path)


def test_what_is_not_the_file_s_fault_names_the_case(dataset: Path) -> None:
    def fail(_image: Any) -> None:
        raise ArithmeticError("a transform's own trouble\nin many lines")

    item = load_cases(str(dataset / "manifest.json"), str(dataset), "validation", 0)[0]
    with pytest.raises(DataError, match="cannot be prepared") as caught:
        loading(Lambdad("image", fail))(item)
    assert caught.value.case_id == "a"
    assert "\n" not in str(caught.value.found)


def test_an_error_of_ours_comes_through_as_it_is(dataset: Path) -> None:
    item = load_cases(str(dataset / "manifest.json"), str(dataset), "validation", 0)[0]
    with pytest.raises(DataError, match="label values outside") as caught:
        loading(ValidateCased(1, 2))(item)
    assert caught.value.case_id == "a"


def ready(**changes: Any) -> dict[str, Any]:
    image = MetaTensor(torch.arange(120.0).reshape(1, *SHAPE), affine=torch.eye(4))
    label = MetaTensor((torch.arange(120) % 3).reshape(1, *SHAPE).float(), affine=torch.eye(4))
    return {"case_id": "k", "image": image, "label": label, **changes}


def test_a_good_case_passes_unchanged() -> None:
    data = ready()
    assert ValidateCased(in_channels=1, n_labels=3)(data) is data
    unlabelled = {name: value for name, value in data.items() if name != "label"}
    assert ValidateCased(1, 3)(unlabelled) is unlabelled


def moved(distance: float) -> MetaTensor:
    affine = torch.eye(4)
    affine[0, 3] = distance
    return MetaTensor(torch.zeros(1, *SHAPE), affine=affine)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": MetaTensor(torch.rand(2, *SHAPE))}, "number of image channels"),
        ({"image": MetaTensor(torch.rand(*SHAPE))}, "number of image channels"),
        ({"image": MetaTensor(torch.full((1, *SHAPE), 5.0))}, "constant"),
        ({"image": MetaTensor(torch.rand(1, *SHAPE).index_fill(3, torch.tensor([2]), torch.nan))}, "NaN"),
        ({"image": MetaTensor(torch.rand(1, *SHAPE).index_fill(3, torch.tensor([2]), torch.inf))}, "NaN"),
        ({"label": MetaTensor(torch.zeros(1, 4, 5, 7))}, "different grids"),
        ({"label": moved(0.1)}, "different grids"),
        ({"label": MetaTensor(torch.full((1, *SHAPE), 1.6))}, "label values"),
        ({"label": MetaTensor(torch.full((1, *SHAPE), 3.0))}, "label values"),
        ({"label": MetaTensor(torch.full((1, *SHAPE), -1.0))}, "label values"),
        ({"label": MetaTensor(torch.full((1, *SHAPE), torch.nan))}, "label values"),
    ],
)
def test_a_case_that_would_train_a_wrong_model_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        ValidateCased(in_channels=1, n_labels=3)(ready(**changes))
    assert caught.value.case_id == "k"


def test_a_hundredth_of_a_millimetre_is_no_other_grid() -> None:
    ValidateCased(1, 3)(ready(label=moved(0.005)))
