"""The average of the weights by a formula written another way, and the learning rate of a warm-up."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from ignite.engine import Engine

from segpipe.components import WeightAveraging, averaged_network, warmed_up


def trainer_of(network: torch.nn.Module, seen: list[dict[str, torch.Tensor]]) -> Engine:
    """A trainer whose steps add noise to the weights, and keep what they were."""

    def step(engine: Engine, batch: int) -> None:
        generator = torch.Generator().manual_seed(batch)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        seen.append(copy.deepcopy(network.state_dict()))

    return Engine(step)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_is_the_weighted_sum_of_all_weights(decay: float) -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    first = copy.deepcopy(network.state_dict())
    averaged = averaged_network(network, decay)
    seen: list[dict[str, torch.Tensor]] = []
    trainer = trainer_of(network, seen)
    WeightAveraging(network, averaged, decay).attach(trainer)
    steps = 40
    trainer.run(range(steps))
    shares = [max(1 - decay, 9 / (10 + t)) for t in range(1, steps + 1)]
    left = [1.0]  # what is left of a step's share at the end, from the last backwards
    for share in reversed(shares):
        left.append(left[-1] * (1 - share))
    weights = [share * rest for share, rest in zip(shares, reversed(left[:-1]), strict=True)]
    assert sum(weights) + left[-1] == pytest.approx(1)
    for name, value in averaged.state_dict().items():
        expected = left[-1] * first[name] + sum(w * s[name] for w, s in zip(weights, seen, strict=True))
        assert torch.allclose(value, expected, atol=1e-5)
        assert not torch.equal(value, network.state_dict()[name])


def test_without_a_decay_there_is_one_network() -> None:
    network = torch.nn.Linear(3, 2)
    averaged = averaged_network(network)
    assert averaged is network
    trainer = trainer_of(network, [])
    WeightAveraging(network, averaged).attach(trainer)
    trainer.run(range(2))
    assert not hasattr(trainer.state, "ema_momentum")


def test_running_statistics_are_averaged_and_counts_copied() -> None:
    network = torch.nn.BatchNorm1d(2)
    averaged = averaged_network(network, 0.5)

    def step(engine: Engine, batch: int) -> None:
        network.train()(torch.full((4, 2), float(batch)))

    trainer = Engine(step)
    WeightAveraging(network, averaged, 0.5).attach(trainer)
    trainer.run(range(6))
    assert averaged.num_batches_tracked == network.num_batches_tracked == 6
    assert 0 < float(averaged.running_mean[0]) < float(network.running_mean[0])


def test_the_rate_rises_and_then_is_that_of_the_schedule() -> None:
    def rates(epochs: int, warm: int) -> list[float]:
        optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.5)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs - warm)
        schedule, found = warmed_up(optimizer, cosine, warm), []
        for _ in range(epochs):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own SequentialLR calls step(epoch)
                schedule.step()
        return found

    assert rates(10, 3) == pytest.approx([0.125, 0.25, 0.375, *rates(7, 0)])
    assert rates(7, 0)[0] == 0.5
