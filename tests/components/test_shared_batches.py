"""Processes that share a batch: losses, gradients, weights and order of cases are those of one process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from ignite.engine import Engine
from monai.losses import GeneralizedDiceLoss as MonaiGeneralizedDice
from torch import Tensor, nn

from segpipe.components import (
    ComboLoss,
    DeepSupervision,
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    EpochSampler,
    FocalLoss,
    FocalTverskyLoss,
    GeneralisedDiceLoss,
    HausdorffLoss,
    JaccardLoss,
    LovaszHinge,
    LovaszSoftmax,
    TverskyLoss,
    data_parallel,
    shared_cases,
)
from segpipe.components.epoch_sampling import part_of, require_parts
from segpipe.components.handlers import EpochSeed
from segpipe.components.processes import leave_processes, mean_of_all, of_all_cases, total, whole_batch
from segpipe.errors import UsageError

CASES, SIDE, CLASSES = 3, 6, 3
SMALL = {"include_background": True}


def losses() -> Iterator[tuple[str, Callable[[], nn.Module], str]]:
    """Name, loss and activation of each way in which a batch is summed over."""
    both = [{"batch": False}, {"batch": True}]
    for kind in (DiceLoss, TverskyLoss, FocalTverskyLoss, JaccardLoss, DiceCELoss, DiceFocalLoss, ComboLoss):
        for options in both:
            yield f"{kind.__name__} {options}", lambda kind=kind, options=options: kind(**options), "softmax"
    for kind in (GeneralisedDiceLoss, LovaszSoftmax):
        for options in both:
            yield f"{kind.__name__} {options}", lambda kind=kind, options=options: kind(**options), "softmax"
    weights = {"class_weights": [1.0, 2.0, 0.5], "batch": True, "ignore_index": 2}
    yield "weighed, with ignored voxels", lambda: DiceCELoss(**weights), "softmax"
    yield "per case, weighed", lambda: DiceLoss(**{**weights, "batch": False}), "softmax"
    yield "squared", lambda: DiceLoss(squared=True, batch=True, smooth=1.0, smooth_above=0.5), "softmax"
    yield "focal", lambda: FocalLoss(alpha=0.7), "softmax"
    yield "binary", lambda: DiceCELoss(activation="sigmoid", batch=True), "sigmoid"
    yield "hinge", lambda: LovaszHinge(activation="sigmoid", batch=True), "sigmoid"
    yield "distances", lambda: HausdorffLoss(batch=True), "softmax"
    yield "distances beside ignored voxels", lambda: HausdorffLoss(ignore_index=2), "softmax"
    yield "of MONAI", lambda: MonaiGeneralizedDice(softmax=True, to_onehot_y=True, batch=True), "softmax"


def network() -> nn.Module:
    torch.manual_seed(1)
    layers = nn.Conv3d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, CLASSES, 1)
    return nn.Sequential(*layers).double()


def batch(activation: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(CASES, 1, SIDE, SIDE, SIDE, generator=generator, dtype=torch.float64)
    limit, channels = (CLASSES, 1) if activation == "softmax" else (2, CLASSES)
    truth = torch.randint(limit, (CASES, channels, SIDE, SIDE, SIDE), generator=generator)
    truth[0, :, :3] = 0  # the parts are not alike
    return image, truth


def value_and_gradients(net: nn.Module, loss: nn.Module, image: Tensor, truth: Tensor) -> tuple[Tensor, list[Tensor]]:
    net.zero_grad()
    value = DeepSupervision(loss)(net(image), truth)
    value.backward()
    return value.detach(), [parameter.grad.clone() for parameter in net.parameters()]


def trained(net: nn.Module, image: Tensor, truth: Tensor) -> list[Tensor]:
    wrapped = data_parallel(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        DeepSupervision(DiceCELoss(batch=True))([wrapped(image), wrapped(image)[:, :, ::2, ::2, ::2]], truth).backward()
        optimizer.step()
    return [parameter.detach() for parameter in net.parameters()]


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    here = slice(0, 1) if rank == 0 else slice(1, CASES)  # a last batch, whose parts differ
    found: dict[str, Any] = {}
    for name, loss, activation in losses():
        image, truth = batch(activation)
        found[name] = value_and_gradients(data_parallel(network()), loss(), image[here], truth[here])
    image, truth = batch("softmax")
    found["trained"] = trained(network(), image[here], truth[here])
    part = torch.arange(6.0).view(3, 2)[here].requires_grad_()
    whole = whole_batch(part)
    (whole * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    found["whole"], found["whole gradient"] = whole.detach(), part.grad
    found["mean"] = mean_of_all(part.detach())
    with torch.no_grad():
        found["alone"] = total(part)
    found["in order"] = of_all_cases(["0", "2", "4"] if rank == 0 else ["1", "3"])
    sampler = EpochSampler(range(5), 4, 2, seed=3)
    found["places"] = [*sampler]
    found["validation"] = [*shared_cases(range(5))]
    seed = EpochSeed(3, sampler=sampler)
    engine = Engine(lambda *_: None)
    engine.state.epoch = 2
    seed(engine)
    found["second epoch"], found["chance"] = [*sampler], torch.rand(1)
    for name, refused in (("few", lambda: shared_cases(range(1))), ("odd", lambda: EpochSampler(range(9), 3))):
        try:
            refused()
        except UsageError as error:
            found[name] = str(error)
    try:
        value_and_gradients(data_parallel(nn.Sequential(network(), nn.Softmax(1))), DiceCELoss(), image, truth)
    except UsageError as error:
        found["activated"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    leave_processes()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(_process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
def test_a_loss_and_its_gradient_are_those_of_the_whole_batch(both: list[dict[str, Any]]) -> None:
    for name, loss, activation in losses():
        value, gradients = value_and_gradients(network(), loss(), *batch(activation))
        assert float(value) > 0 and any(bool(each.any()) for each in gradients), name
        # a loss that is summed goes through the same numbers in each process; the mean of two would be another
        exact = 1e-6 if name.startswith("distances") else 1e-12  # MONAI's are float32
        for found in both:
            assert float(found[name][0]) == pytest.approx(float(value), abs=exact), name
            for here, one in zip(found[name][1], gradients, strict=True):
                assert torch.allclose(here, one, rtol=0, atol=exact), name


@pytest.mark.slow
def test_a_loss_of_a_part_alone_would_be_another(both: list[dict[str, Any]]) -> None:
    image, truth = batch("softmax")
    part, _ = value_and_gradients(network(), DiceCELoss(batch=True), image[:1], truth[:1])
    rest, _ = value_and_gradients(network(), DiceCELoss(batch=True), image[1:], truth[1:])
    value = float(both[0]["DiceCELoss {'batch': True}"][0])
    assert abs(float(part + rest) / 2 - value) > 1e-3 and abs(float(part + 2 * rest) / 3 - value) > 1e-4


@pytest.mark.slow
def test_steps_with_several_heads_lead_to_the_same_weights(both: list[dict[str, Any]]) -> None:
    net = network()
    before = copy.deepcopy([*net.parameters()])
    expected = trained(net, *batch("softmax"))
    assert all(bool((one - other).abs().max() > 0.01) for one, other in zip(before, expected, strict=True))
    for found in both:
        for here, one in zip(found["trained"], expected, strict=True):
            assert torch.allclose(here, one, rtol=0, atol=1e-11)
    assert all(torch.equal(one, other) for one, other in zip(both[0]["trained"], both[1]["trained"], strict=True))


@pytest.mark.slow
def test_sums_are_of_all_and_gradients_of_both_processes_are_summed(both: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(both):
        here = slice(0, 1) if rank == 0 else slice(1, 3)
        assert torch.equal(found["whole"], torch.arange(6.0).view(3, 2))
        factors = 2 * torch.tensor([[1.0], [10.0], [100.0]])[here]  # of two losses, whose mean is taken afterwards
        assert torch.equal(found["whole gradient"], factors.expand(-1, 2))
        assert float(found["mean"]) == 2.5
        assert torch.equal(found["alone"], torch.arange(6.0).view(3, 2)[here]), "nothing is summed in validation"
        assert found["in order"] == ["0", "1", "2", "3", "4"]


@pytest.mark.slow
def test_two_processes_have_the_batches_of_one(both: list[dict[str, Any]]) -> None:
    sampler = EpochSampler(range(5), 4, 2, seed=3)
    for name, epoch in (("places", 1), ("second epoch", 2)):
        sampler.set_epoch(epoch)
        places, (one, other) = [*sampler], (found[name] for found in both)
        assert [*one[:2], *other[:2], *one[2:], *other[2:]] == places
    assert both[0]["places"] != both[0]["second epoch"]
    assert [found["validation"] for found in both] == [[0, 2, 4], [1, 3]]
    assert not torch.equal(both[0]["chance"], both[1]["chance"]), "dropout is not the same in each"


@pytest.mark.slow
def test_what_processes_cannot_share_is_refused_in_each(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert "fewer validation cases" in found["few"] and "dealt out evenly" in found["odd"]
        assert "activated already" in found["activated"]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_parts_of_a_batch_are_all_of_it(count: int) -> None:
    for size in range(count, 9):
        parts = [part_of(range(size), number, count) for number in range(count)]
        assert [place for part in parts for place in part] == [*range(size)]
        assert {len(part) for part in parts} <= {size // count, -(-size // count)} and all(map(len, parts))


def test_batches_that_leave_a_process_without_a_case_are_refused_with_what_helps() -> None:
    require_parts(4, 10, 2)
    with pytest.raises(UsageError) as odd:
        require_parts(4, 12, 3)
    assert "batch_size=6" in str(odd.value.hint)
    require_parts(6, 12, 3)
    with pytest.raises(UsageError) as last:
        require_parts(4, 9, 2)
    assert "1 of 9 cases are left for 2 processes" in str(last.value.found)
    assert "steps_per_epoch=3" in str(last.value.hint)
    require_parts(4, 3 * 4, 2)


def test_batch_normalisation_is_refused_on_a_cpu() -> None:
    from segpipe.components.processes import require_no_batch_norm

    require_no_batch_norm(nn.Sequential(nn.Conv3d(1, 1, 1), nn.InstanceNorm3d(1)))
    with pytest.raises(UsageError) as error:
        require_no_batch_norm(nn.Sequential(nn.Conv3d(1, 1, 1), nn.BatchNorm3d(1)))
    assert error.value.found == "BatchNorm3d at 1"


def test_one_process_is_left_as_it_is(tmp_path: Path) -> None:
    net, values = network(), torch.arange(3.0)
    assert data_parallel(net) is net and shared_cases(range(3)) is None
    assert total(values) is values and whole_batch(values) is values and of_all_cases([1, 2]) == [1, 2]
