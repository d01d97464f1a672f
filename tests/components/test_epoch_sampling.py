"""What an epoch draws: by seed, epoch and place, whatever prepares it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, RandomizableTransform

from segpipe.components import BatchAugmentation, BatchGamma, BatchNoise, DrawnCases, EpochSampler


class Number(RandomizableTransform):
    """Replaces a case by a random image; defined here, so that loader processes find it."""

    def __call__(self, data: int) -> dict[str, Any]:
        image = torch.from_numpy(self.R.random((1, 4, 4, 4))).float()
        return {"case": data, "image": image, "label": torch.zeros(1, 4, 4, 4)}


class Twice(Number):
    """Two patches of a case."""

    def __call__(self, data: int) -> list[dict[str, Any]]:  # type: ignore[override]
        return [super(Twice, self).__call__(data) for _ in range(2)]


def epoch(number: int, workers: int = 0, batch_size: int = 2, transform: Any = None, steps: int = 0) -> list[Any]:
    data = Dataset(range(5), Compose([transform or Number()]))
    sampler = EpochSampler(data, batch_size, steps, seed=7)
    sampler.set_epoch(number)
    batches = [*DataLoader(DrawnCases(data), batch_size=batch_size, sampler=sampler, num_workers=workers)]
    keys = ("case", "image", "draw")
    return [[batch[key][index] for key in keys] for batch in batches for index in range(len(batch["case"]))]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def test_an_epoch_has_each_case_once_and_the_next_one_is_another() -> None:
    first, again, second = epoch(1), epoch(1), epoch(2)
    assert sorted(int(case) for case, *_ in first) == [0, 1, 2, 3, 4]
    assert same(first, again) and not same(first, second)
    assert len({float(image.sum()) for _, image, _ in first + second}) == 10


def test_neither_the_size_of_batches_nor_workers_change_what_is_drawn() -> None:
    assert same(epoch(1), epoch(1, batch_size=3))
    assert same(epoch(1), epoch(1, workers=2))


def test_steps_draw_cases_again_as_often_as_others() -> None:
    drawn = epoch(1, steps=5)
    assert Counter(int(case) for case, *_ in drawn) == dict.fromkeys(range(5), 2)
    assert len({float(image.sum()) for _, image, _ in drawn}) == 10, "a case that comes twice is drawn twice"


def test_patches_of_a_case_have_seeds_of_their_own() -> None:
    patches = epoch(1, transform=Twice())
    assert len(patches) == 10 and len({int(seed) for *_, seed in patches}) == 10


def test_a_patch_is_transformed_as_its_seed_says_whatever_is_beside_it() -> None:
    augment = BatchAugmentation([BatchNoise(0.7, (0.1, 0.2)), BatchGamma(0.7)], seed=3)
    image, seeds = torch.rand(4, 2, 5, 6, 7), torch.tensor([4, 9, 2, 7])
    batch = {"image": image, "label": torch.zeros(4, 1, 5, 6, 7), "draw": seeds}
    whole = augment(batch, 1)["image"]
    assert not torch.equal(whole, image)
    for here in (slice(0, 1), slice(1, 4), slice(2, 4)):
        part = {key: value[here] for key, value in batch.items()}
        assert torch.equal(augment(part, 99)["image"], whole[here])
    other = augment({**batch, "draw": seeds + 1}, 1)["image"]
    assert not torch.equal(other, whole)
    assert not torch.equal(BatchAugmentation(augment.transforms, seed=4)(batch, 1)["image"], whole)
