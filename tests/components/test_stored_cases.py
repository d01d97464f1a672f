"""Cases from a store: the patches, the draws and the weights of the same cases in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, Dataset
from monai.transforms import (
    DeleteItemsd,
    Lambdad,
    MapTransform,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandSpatialCropd,
    SpatialPadd,
)

from segpipe.components import (
    AnnotatedToIndicesd,
    BatchAugmentation,
    CaseTransforms,
    EpochSeed,
    MarkUnannotatedd,
    ValidateCased,
    prepared_cases,
    stored_cases,
)
from segpipe.components.stored_cases import StoredCases
from segpipe.data.phantom import make_phantom
from segpipe.errors import DataError, UsageError
from segpipe.store import store_facts
from segpipe.training.fragments import read_fragment

LABELS = ["background", "liver", "kidney", "lesion"]
PATCH = [32, 24, 16]  # as the phantom, larger and smaller


class AsStored(MapTransform):
    """Rounds the image by the formula that `segpipe.store.case_file` states."""

    def __call__(self, data: Any) -> Any:
        given = dict(data)
        for channel in given["image"]:
            low, high, deviation = channel.double().min(), channel.double().max(), channel.double().std(correction=0)
            step = max((high - low) / 65535, deviation / 2048).float()
            channel[:] = torch.round((channel.double() - low) / step.double()).float() * step + low.float()
        return given


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Four phantoms: one smaller than a patch, one without a label."""
    folder = tmp_path_factory.mktemp("data")
    items = []
    for number, shape in enumerate([(40, 36, 34), (20, 18, 16), (34, 41, 33), (33, 30, 40)]):
        image, label = folder / f"{number}.nii.gz", folder / f"{number}_label.nii.gz"
        made = make_phantom(number, shape=shape, spacing_mm=(3.0, 3.0, 3.5))
        if number == 3:
            made.label[:] = 0
        made.write(image, label)
        items.append({"case_id": f"case{number}", "image": str(image), "label": str(label)})
    return items


def transforms(fragment: str, *more: Any, rounds: bool = False) -> tuple[CaseTransforms, BatchAugmentation]:
    """Return the transforms of a training with an augmentation fragment, and what it does to batches."""
    augment, _ = read_fragment("augment", fragment)
    both: dict[str, Any] = {"keys": ["image", "label"], "allow_missing_keys": True}
    deterministic: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", **both, "reader": "NibabelReader", "image_only": True},
        {"_target_": "EnsureChannelFirstd", **both},
        {"_target_": "Orientationd", **both, "axcodes": "RAS", "labels": [["L", "R"], ["P", "A"], ["I", "S"]]},
        {"_target_": "Spacingd", **both, "pixdim": [3.2, 3.0, 3.5], "mode": ["bilinear", "nearest"]},
        {"_target_": "NormalizeIntensityd", "keys": ["image"], "channel_wise": True},
        {"_target_": "EnsureTyped", **both},
    ]
    parser = ConfigParser({"labels": LABELS, "patch_size": PATCH, "first": deterministic, **augment})
    steps = [*parser.get_parsed_content("first"), ValidateCased(1, len(LABELS))]
    rounding = [AsStored(keys="image")] if rounds else []
    transform = CaseTransforms([*steps, *rounding, *more, *parser.get_parsed_content("random_transforms")])
    return transform, BatchAugmentation(parser.get_parsed_content("batch_transforms"), seed=3)


def weights(dataset: Dataset, augmentation: BatchAugmentation, workers: int = 0) -> list[torch.Tensor]:
    """Return the weights of a small network after two epochs of two steps, and all batches that it saw."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 4, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    seed, seen = EpochSeed(5, dataset.transform), []
    loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=workers)
    for epoch in (1, 2):
        seed(type("Engine", (), {"state": type("State", (), {"epoch": epoch})}))
        for batch in loader:
            given = augmentation(batch, device="cpu")
            seen += [torch.as_tensor(given["image"]).clone(), torch.as_tensor(given["label"]).clone()]
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                network(torch.as_tensor(given["image"])), torch.as_tensor(given["label"])[:, 0].long()
            )
            loss.backward()
            optimizer.step()
    return [*seen, *(parameter.detach().clone() for parameter in network.parameters())]


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("fragment", ["mirror", "nnunet", "by_class"])
def test_weights_are_those_of_the_rounded_cases_in_memory(
    fragment: str, cases: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform, augmentation = transforms(fragment, rounds=True)
    memory = CacheDataset(cases, transform, progress=False)
    expected = weights(memory, augmentation)
    transform, augmentation = transforms(fragment)
    stored = prepared_cases(cases, transform, store=str(tmp_path / "store"))
    assert isinstance(stored, StoredCases)
    monkeypatch.setattr(stored_cases, "_whole", None)  # patches alone are read
    assert same(weights(stored, augmentation), expected)
    transform, augmentation = transforms(fragment)
    unrounded = weights(prepared_cases(cases, transform), augmentation)
    assert not same(unrounded, expected)
    assert all(torch.allclose(a, b, atol=2e-2) for a, b in zip(unrounded, expected, strict=True))


@pytest.mark.slow
def test_loader_processes_draw_the_same(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    transform, augmentation = transforms("by_class", rounds=True)
    expected = weights(CacheDataset(cases, transform, progress=False), augmentation, workers=2)
    transform, augmentation = transforms("by_class")
    stored = prepared_cases(cases, transform, store=str(tmp_path / "store"))
    assert same(weights(stored, augmentation, workers=2), expected)


def test_a_patch_knows_where_it_lies(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    one, _ = transforms("none", rounds=True)
    other, _ = transforms("none")
    memory, stored = CacheDataset(cases, one, progress=False), prepared_cases(cases, other, store=str(tmp_path / "s"))
    for index in range(4):
        for transform in (one, other):
            transform.set_random_state(seed=index)
        (expected,), (patch,) = memory[index], stored[index]
        assert patch["case_id"] == expected["case_id"] == f"case{index}"
        for key in ("image", "label"):
            assert torch.equal(patch[key], expected[key]) and patch[key].dtype == expected[key].dtype
            assert torch.allclose(patch[key].affine, expected[key].affine, atol=1e-9)


OTHER = {
    "another crop": [RandSpatialCropd(keys=["image", "label"], roi_size=[8, 8, 8])],
    "a random step before the crop": [RandFlipd(keys=["image", "label"], prob=0.5, spatial_axis=0)],
    "padding with a value": [SpatialPadd(keys=["image", "label"], spatial_size=[44, 44, 44], value=1)],
    "padding of the image alone": [SpatialPadd(keys=["image"], spatial_size=[20, 20, 20])],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHER)
def test_transforms_of_other_kinds_get_the_whole_case(kind: str, cases: list[dict[str, Any]], tmp_path: Path) -> None:
    big = [case for case in cases if case["case_id"] != "case1"]
    fragment = "none" if kind != "another crop" else "light"
    one, augmentation = transforms(fragment, *OTHER[kind], rounds=True)
    expected = weights(CacheDataset(big, one, progress=False), augmentation)
    other, augmentation = transforms(fragment, *OTHER[kind])
    assert same(weights(prepared_cases(big, other, store=str(tmp_path / "store")), augmentation), expected)


def test_training_and_validation_share_a_case_and_validation_has_it_whole(
    cases: list[dict[str, Any]], tmp_path: Path
) -> None:
    train, _ = transforms("by_class")
    rounded, _ = transforms("by_class", rounds=True)
    length = next(index for index, step in enumerate(train.transforms) if isinstance(step, ValidateCased)) + 1
    validate = CaseTransforms(train.transforms[:length])
    prepared_cases(cases, train, store=str(tmp_path / "store"))
    stored = prepared_cases(cases, validate, store=str(tmp_path / "store"))
    assert store_facts(tmp_path / "store").cases == 4
    expected = CaseTransforms(rounded.transforms[: length + 1])
    for index, item in enumerate(cases):
        case, other = stored[index], expected(item)
        assert all(torch.equal(case[key], other[key]) for key in ("image", "label"))
        assert torch.equal(case["image"].affine, other["image"].affine)


def test_another_spacing_or_value_is_another_case(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    for _ in range(2):
        prepared_cases(cases[:1], transforms("light")[0], store=store)
    assert store_facts(store).cases == 1
    changed, _ = transforms("light")
    changed.transforms[3].spacing_transform.pixdim = np.array([3.2, 3.0, 3.4])
    prepared_cases(cases[:1], changed, store=store)
    assert store_facts(store).cases == 2


def test_transforms_that_were_used_are_the_same(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    transform, _ = transforms("light")
    transform.set_random_state(seed=0)
    transform(cases[0])
    for one in (transform, transforms("light")[0]):
        prepared_cases(cases[:1], one, store=str(tmp_path / "store"))
    assert store_facts(tmp_path / "store").cases == 1


def test_what_cannot_be_kept_is_refused(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be told from others") as caught:
        prepared_cases(cases, transforms("light", Lambdad(keys="image", func=lambda x: x + 1))[0], store=str(tmp_path))
    assert "--store none" in str(caught.value.hint)


def test_a_case_that_cannot_be_prepared_is_named(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    wrong = [{**cases[0], "case_id": "odd", "label": cases[2]["label"]}]
    with pytest.raises(DataError) as caught:
        prepared_cases(wrong, transforms("light")[0], store=str(tmp_path / "store"))
    assert caught.value.case_id == "odd"


def test_without_a_store_it_is_monais_own(cases: list[dict[str, Any]]) -> None:
    dataset = prepared_cases(cases, transforms("light")[0], cache_rate=0.5)
    assert type(dataset) is CacheDataset and dataset.cache_num == 2
    assert len(prepared_cases([], transforms("light")[0], store=None)) == 0


def test_ignored_voxels_and_cases_in_part_are_those_of_memory(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    items = [{**item, **({"annotated": [1]} if number == 0 else {})} for number, item in enumerate(cases)]

    def chain() -> CaseTransforms:
        transform, _ = transforms("none", rounds=False)
        *steps, pad, _crop = transform.transforms
        both, drawn = ["image", "label"], ["label_fg_indices", "label_bg_indices"]
        crop = RandCropByPosNegLabeld(both, "label", PATCH, 2, 1, 1, fg_indices_key=drawn[0], bg_indices_key=drawn[1])
        known = [ValidateCased(1, 3, 3) if isinstance(step, ValidateCased) else step for step in steps]
        return CaseTransforms(
            [*known, pad, AnnotatedToIndicesd(3), crop, DeleteItemsd(drawn), MarkUnannotatedd(3, 3, [[1]])]
        )

    memory = CacheDataset(items, chain(), progress=False)
    stored = prepared_cases(items, chain(), store=str(tmp_path / "store"))
    for dataset in (memory, stored):
        dataset.transform.set_random_state(4)
    for index in range(len(items)):
        (one,), (other,) = memory[index], stored[index]
        assert set(one) == set(other) == {"case_id", "image", "label"}
        assert torch.equal(torch.as_tensor(one["label"]).float(), torch.as_tensor(other["label"]).float())
        assert torch.allclose(torch.as_tensor(one["image"]), torch.as_tensor(other["image"]), atol=1e-2)
    (first,) = memory[0]
    assert 0 not in first["label"] and 4 in first["label"]
