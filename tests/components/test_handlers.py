"""Handlers on real Ignite engines: epochs that repeat, gradients that are bounded, runs that stop in time."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.transforms import Compose, RandShiftIntensity
from monai.utils import CommonKeys

from segpipe.components.handlers import EpochSeed, GradientClip, StopOnNonFinite
from segpipe.errors import DataError, SegpipeError, UsageError


def drawn(seed: int, epochs: range) -> list[tuple[float, ...]]:
    """What every source of chance gives in each of the epochs of a run."""
    transform = Compose([RandShiftIntensity(offsets=1.0, prob=1.0)])
    found: list[tuple[float, ...]] = []

    def step(_engine: Engine, _batch: int) -> None:
        shifted = float(transform(torch.zeros(1, 2, 2, 2))[0, 0, 0, 0])
        found.append((torch.rand(()).item(), float(np.random.rand()), random.random(), shifted))

    engine = Engine(step)
    EpochSeed(seed, transform).attach(engine)
    if epochs.start:  # resumed
        engine.load_state_dict({"epoch": epochs.start, "epoch_length": 2, "max_epochs": epochs.stop})
    engine.run([0, 1], max_epochs=epochs.stop, epoch_length=2)
    return found


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    whole = drawn(7, range(0, 4))
    assert len(whole) == 8
    assert drawn(7, range(2, 4)) == whole[4:]  # as a resumed run does
    for source in zip(*whole, strict=True):
        assert len(set(source)) == 8  # no epoch repeats another, nor a step its neighbour
    other = drawn(8, range(0, 1))
    assert all(a != b for a, b in zip(other[0], whole[0], strict=True))


def test_seeds_of_neighbouring_runs_do_not_overlap() -> None:
    """Epoch 2 of seed 1 is not epoch 1 of seed 2, as it would be with seed + epoch."""
    seen = {drawn(seed, range(0, 3))[2 * epoch] for seed in range(4) for epoch in range(3)}
    assert len(seen) == 12


def test_a_transform_without_chance_is_left_alone() -> None:
    EpochSeed(0, transform=object())(SimpleNamespace(state=SimpleNamespace(epoch=1)))  # type: ignore[arg-type]


def engine_with(network: torch.nn.Module, **state: Any) -> Any:
    batch = {CommonKeys.IMAGE: torch.zeros(2, 1, 2, 2, 2), "case_id": ["c1", "c2"]}
    known = SimpleNamespace(epoch=3, iteration=17, epoch_length=8, batch=batch, **state)
    return SimpleNamespace(network=network, state=known, amp=False, scaler=None, optimizer=None)


def with_gradient(values: list[float]) -> torch.nn.Module:
    network = torch.nn.Linear(len(values), 1, bias=False)
    network.weight.grad = torch.tensor([values])
    return network


def test_a_long_gradient_is_scaled_to_the_norm_and_a_short_one_kept() -> None:
    long, short = with_gradient([30.0, 40.0]), with_gradient([3.0, 4.0])
    for network in (long, short):
        GradientClip(max_norm=10.0)(engine_with(network))
    torch.testing.assert_close(long.weight.grad, torch.tensor([[6.0, 8.0]]), rtol=1e-5, atol=0)
    torch.testing.assert_close(short.weight.grad, torch.tensor([[3.0, 4.0]]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_ends_the_run(bad: float) -> None:
    with pytest.raises(UsageError, match="gradient is not finite") as caught:
        GradientClip()(engine_with(with_gradient([1.0, bad])))
    assert caught.value.case_id == "c1, c2"
    assert caught.value.found == "epoch 3, step 17"
    assert "learning_rate" in str(caught.value.hint)


def test_steps_that_may_be_left_out_change_no_weight_and_too_many_in_an_epoch_end_the_run() -> None:
    network = with_gradient([1.0, 2.0])
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    optimizer.step()
    before = network.weight.detach().clone()
    clip, engine = GradientClip(most_skipped=0.25), engine_with(network)

    def step(gradient: float) -> None:
        network.weight.grad = torch.tensor([[1.0, gradient]])
        clip(engine)
        optimizer.step()

    for _ in range(2):
        step(float("inf"))
        assert torch.equal(network.weight, before)  # neither momentum nor weight decay moves it
    step(1.0)
    assert not torch.equal(network.weight, before)
    engine.state.epoch += 1  # and the next epoch counts anew
    for _ in range(2):
        step(float("nan"))
    with pytest.raises(UsageError, match="gradient is not finite") as caught:
        step(float("inf"))
    assert "precision=float32" in str(caught.value.hint) and "learning_rate" in str(caught.value.hint)


def test_under_amp_the_scaler_comes_first_and_judges() -> None:
    network = with_gradient([300.0, float("inf")])
    engine = engine_with(network)
    asked: list[object] = []
    engine.amp, engine.scaler, engine.optimizer = (True, SimpleNamespace(unscale_=asked.append), "the optimiser")
    GradientClip(max_norm=10.0)(engine)  # the scaler will skip the step: no error
    assert asked == ["the optimiser"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run(bad: float) -> None:
    engine = engine_with(with_gradient([0.0]), output={CommonKeys.LOSS: torch.tensor(1.0)})
    StopOnNonFinite()(engine)
    engine.state.output[CommonKeys.LOSS] = torch.tensor(bad)
    with pytest.raises(UsageError, match="loss is not finite") as caught:
        StopOnNonFinite()(engine)
    assert caught.value.case_id == "c1, c2"


def test_an_image_that_is_not_finite_is_the_data_s_fault() -> None:
    engine = engine_with(with_gradient([0.0]), output={CommonKeys.LOSS: torch.tensor(float("nan"))})
    engine.state.batch[CommonKeys.IMAGE][1, 0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="NaN or infinite") as caught:
        StopOnNonFinite()(engine)
    assert caught.value.exit_code == 3


def test_patches_of_one_case_name_it_once() -> None:
    engine = engine_with(with_gradient([0.0]), output={CommonKeys.LOSS: torch.tensor(float("nan"))})
    engine.state.batch = [{**engine.state.batch, "case_id": ["c1", "c1"]}, "what else a loader may give"]
    with pytest.raises(SegpipeError) as caught:
        StopOnNonFinite()(engine)
    assert caught.value.case_id == "c1"


def test_a_run_stops_before_the_weights_take_harm() -> None:
    """The order of events in MONAI: loss, backward, optimiser step."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)

    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        optimiser.zero_grad()
        engine.state.output = {CommonKeys.LOSS: network(batch[CommonKeys.IMAGE]).mean()}
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        engine.state.output[CommonKeys.LOSS].backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        optimiser.step()
        return dict(engine.state.output)

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    engine.network = network
    StopOnNonFinite().attach(engine)
    GradientClip(max_norm=0.5).attach(engine)
    batches = [{CommonKeys.IMAGE: torch.full((1, 1), value), "case_id": [f"c{value}"]} for value in (4.0, float("nan"))]
    with pytest.raises(DataError) as caught:
        engine.run(batches, max_epochs=1)
    assert caught.value.case_id == "cnan"
    assert network.weight.item() == pytest.approx(0.5)  # one clipped step, then none
