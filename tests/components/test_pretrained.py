"""Weights that a network begins with, and modules that no step and no average changes, bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine

from segpipe.components import WeightAveraging, averaged_network, in_precision, pretrained_network
from segpipe.errors import DataError


def network() -> torch.nn.Sequential:
    """Two blocks with batch normalisation and dropout."""
    torch.manual_seed(3)
    blocks = [
        torch.nn.Sequential(torch.nn.Conv3d(a, b, 3, padding=1), torch.nn.BatchNorm3d(b), torch.nn.Dropout(0.5))
        for a, b in ((1, 4), (4, 2))
    ]
    return torch.nn.Sequential(*blocks)


def bits(module: torch.nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_frozen_modules_stay_bit_for_bit_and_so_does_their_average(optimizer: type[torch.optim.Optimizer]) -> None:
    frozen = pretrained_network(network(), "", ["0"])
    trained = in_precision(frozen, "float32")
    averaged = averaged_network(trained, 0.9)
    before = bits(copy.deepcopy(trained))
    chosen = optimizer(trained.parameters(), lr=0.1, weight_decay=0.1)

    def step(engine: Engine, batch: int) -> None:
        trained.train()
        chosen.zero_grad()
        trained(torch.randn(2, 1, 6, 6, 6)).square().sum().backward()
        chosen.step()

    trainer = Engine(step)
    WeightAveraging(trained, averaged, 0.9).attach(trainer)
    trainer.run(range(7))
    for after in (bits(trained), bits(averaged)):
        kept = {name for name in before if after[name] == before[name]}
        assert {name for name in before if name.startswith("0.")} <= kept
        assert not {name for name in before if name.startswith("1.") and "batches" not in name} & kept


def test_a_frozen_module_evaluates_whatever_the_network_does_and_the_rest_trains() -> None:
    frozen = pretrained_network(network(), "", ["0"])
    frozen.train()
    assert [block.training for block in frozen] == [False, True]
    image = torch.randn(1, 1, 6, 6, 6)
    assert torch.equal(frozen[0](image), frozen[0](image))  # dropout is off
    assert not torch.equal(frozen[1](frozen[0](image)), frozen[1](frozen[0](image)))
    assert [parameter.requires_grad for parameter in frozen[0].parameters()] == [False] * 4
    assert all(parameter.requires_grad for parameter in frozen[1].parameters())
    assert list(frozen.state_dict()) == list(network().state_dict())


def test_it_begins_with_the_weights_of_the_file(tmp_path: Path) -> None:
    theirs = network()
    torch.manual_seed(8)
    torch.nn.init.normal_(theirs[1][0].weight)
    torch.save(theirs.state_dict(), tmp_path / "initial.pt")
    ours = pretrained_network(network(), str(tmp_path / "initial.pt"))
    assert bits(ours) == bits(theirs) != bits(network())
    assert type(ours) is torch.nn.Sequential


def test_weights_that_are_not_there_or_not_of_it_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not there") as absent:
        pretrained_network(network(), str(tmp_path / "initial.pt"))
    assert "--parent" in str(absent.value.hint)
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "initial.pt")
    with pytest.raises(DataError, match="cannot be loaded"):
        pretrained_network(network(), str(tmp_path / "initial.pt"))
    (tmp_path / "initial.pt").write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
    with pytest.raises(DataError, match="cannot be loaded"):
        pretrained_network(network(), str(tmp_path / "initial.pt"))
