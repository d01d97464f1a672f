"""Which cases an epoch has, in which order, and what is drawn for each: the same for any number of processes.

What is random depends on seed, epoch and place in the epoch. So neither the process nor the loader's worker that
prepares a patch matters, and several processes train on the very batches of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import Dataset, DistributedSampler
from torch.utils.data import RandomSampler, Sampler

from segpipe.components.processes import process_count, process_number, require_no_batch_norm
from segpipe.errors import UsageError

DRAW = "draw"  # of a patch: the seed of what `BatchAugmentation` draws for it
Place = tuple[int, int]
"""Number of a case, and the seed of what is drawn for it."""


class EpochSampler(Sampler[Place]):
    """Draw the cases of an epoch, and give this process its part of each batch.

    >>> from segpipe.components import EpochSampler
    >>> sampler = EpochSampler(["one", "two", "three"], batch_size=2, steps=3)
    >>> sorted(case for case, _ in sampler), len(sampler)
    ([0, 0, 1, 1, 2, 2], 6)

    Args:
        data_source: the data set.
        batch_size: cases of a batch, over all processes.
        steps: batches of an epoch; 0 for each case once.
        seed: of the run.

    Raises:
        UsageError: a batch cannot be dealt out to the processes.
    """

    def __init__(self, data_source: Any, batch_size: int, steps: int = 0, seed: int = 0) -> None:
        self.data_source = data_source
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 1
        self._size = steps * batch_size or len(data_source)
        require_parts(batch_size, self._size, process_count())

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, from 1."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Place]:
        generator = torch.Generator().manual_seed(_seed(self.seed, self.epoch))
        order = [*RandomSampler(self.data_source, num_samples=self._size, generator=generator)]
        for place in self._places():
            yield order[place], _seed(self.seed, self.epoch, place)

    def __len__(self) -> int:
        return len(self._places())

    def _places(self) -> list[int]:
        """Return the places in the epoch that are of this process."""
        batches = (
            range(first, min(first + self.batch_size, self._size)) for first in range(0, self._size, self.batch_size)
        )
        return [place for batch in batches for place in part_of(batch, process_number(), process_count())]


def batch_of_process(batch_size: int) -> int:
    """Return how many cases of a batch one process has."""
    return batch_size // process_count()


def part_of(batch: Sequence[int], number: int, count: int) -> Sequence[int]:
    """Return the part of a batch that a process has; parts differ by one at most."""
    return batch[len(batch) * number // count : len(batch) * (number + 1) // count]


def require_shares(processes: int, batch_size: int, size: int, validated: int, network: torch.nn.Module | None) -> None:
    """Refuse a training that so many processes cannot share.

    Args:
        processes: that share it.
        batch_size: cases of a batch, over all processes.
        size: cases of an epoch.
        validated: cases of a validation; 0 for none.
        network: of processes on CPUs.

    Raises:
        UsageError: saying what they can share.
    """
    if processes == 1:
        return
    require_validation(validated, processes)
    require_parts(batch_size, size, processes)
    if network is not None:
        require_no_batch_norm(network)


def require_validation(cases: int, processes: int) -> None:
    """Refuse fewer validation cases than processes; none at all are fine.

    Raises:
        UsageError: naming both numbers.
    """
    if 0 < cases < processes:
        raise UsageError(
            "there are fewer validation cases than processes",
            found=f"{cases} cases, {processes} processes",
            hint=f"--processes {cases}, or --fold none, which validates none",
        )


def require_parts(batch_size: int, size: int, processes: int) -> None:
    """Refuse batches of which a process would have another share, or none.

    Args:
        batch_size: cases of a batch.
        size: cases of an epoch.
        processes: that share them.

    Raises:
        UsageError: saying what divides.
    """
    if batch_size % processes:
        raise UsageError(
            "the batch cannot be dealt out evenly",
            found=f"batch_size {batch_size}, {processes} processes",
            expected="a multiple of the processes",
            hint=f"--set batch_size={-(-batch_size // processes) * processes}, or --batch-rule scaled",
        )
    rest = size % batch_size
    if 0 < rest < processes:
        raise UsageError(
            "the last batch of an epoch has no case for some processes",
            found=f"{rest} of {size} cases are left for {processes} processes",
            expected=f"{processes} or more",
            hint=f"--set steps_per_epoch={-(-size // batch_size)} fills it with cases that are drawn again",
        )


class DrawnCases(Dataset):
    """A data set whose random transforms draw by the seed that comes with the number of a case.

    Args:
        dataset: with a ``transform``, as `prepared_cases` gives it.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)

    def __getitem__(self, place: Place) -> Any:
        number, seed = place
        transform = self.data.transform
        if hasattr(transform, "set_random_state"):
            transform.set_random_state(seed=seed)
        item = self.data[number]
        patches = item if isinstance(item, list) else [item]
        marked = [
            {**patch, DRAW: seed + index} if isinstance(patch, Mapping) else patch
            for index, patch in enumerate(patches)
        ]
        return marked if isinstance(item, list) else marked[0]


def shared_cases(dataset: Any) -> Sampler[int] | None:
    """Return a sampler that deals out the cases of a validation, none of them twice; None where one process has all.

    Raises:
        UsageError: there are fewer cases than processes.
    """
    count = process_count()
    if count == 1 or not len(dataset):
        return None
    require_validation(len(dataset), count)
    return DistributedSampler(dataset, False, count, process_number(), shuffle=False)


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
