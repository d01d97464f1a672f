"""Weights that fit, and those that must not pass for a network that finds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segpipe.common.files import sha256_of
from segpipe.errors import DataError, RefusedError
from segpipe.inference.weights import load_weights


def weights(path: Path, **changed: torch.Tensor) -> str:
    torch.save({**torch.nn.Conv3d(1, 2, 1).state_dict(), **changed}, path)
    return str(path)


def test_weights_are_loaded_as_they_are_and_from_under_the_key_that_zoo_bundles_use(tmp_path: Path) -> None:
    path = weights(tmp_path / "model.pt", bias=torch.tensor([3.0, 4.0]))
    torch.save({"model": torch.load(path, weights_only=True)}, tmp_path / "nested.pt")
    for each in (path, str(tmp_path / "nested.pt")):
        network = load_weights(torch.nn.Conv3d(1, 2, 1), each, torch.device("cpu"))
        assert network.state_dict()["bias"].tolist() == [3.0, 4.0] and not network.training


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    path = weights(tmp_path / "model.pt", bias=torch.tensor([0.0, value]))
    with pytest.raises(DataError, match="not finite") as caught:
        load_weights(torch.nn.Conv3d(1, 2, 1), path, torch.device("cpu"))
    assert "bias" in str(caught.value.found)


def test_weights_that_are_not_those_that_were_vetted_are_not_loaded(tmp_path: Path) -> None:
    path = weights(tmp_path / "model.pt")
    vetted = sha256_of(path)
    load_weights(torch.nn.Conv3d(1, 2, 1), path, torch.device("cpu"), vetted)
    weights(tmp_path / "model.pt", bias=torch.tensor([3.0, 4.0]))
    with pytest.raises(RefusedError, match="changed after") as caught:
        load_weights(torch.nn.Conv3d(1, 2, 1), path, torch.device("cpu"), vetted)
    assert caught.value.expected == vetted


def test_weights_of_another_network_and_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not fit"):
        load_weights(torch.nn.Conv3d(1, 3, 1), weights(tmp_path / "model.pt"), torch.device("cpu"))
    with pytest.raises(DataError, match="cannot be read"):
        load_weights(torch.nn.Conv3d(1, 2, 1), str(tmp_path / "none.pt"), torch.device("cpu"))
