"""UNet++: heads in training, one tensor in evaluation, MONAI's own weights."""

from __future__ import annotations

import torch
from monai.networks.nets import BasicUNetPlusPlus

from pipeline.components import UNetPlusPlus

OPTIONS = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "features": (4, 4, 8, 8, 8, 4)}


def test_heads_are_finest_first_in_training_and_one_tensor_in_evaluation() -> None:
    torch.manual_seed(0)
    network = UNetPlusPlus(**OPTIONS, deep_supervision=True)
    stock = BasicUNetPlusPlus(**OPTIONS, deep_supervision=False)
    stock.load_state_dict(network.state_dict())
    image = torch.randn(1, 1, 32, 40, 32)
    with torch.no_grad():
        heads = network(image)
        assert isinstance(heads, list)
        assert [tuple(head.shape) for head in heads] == [(1, 2, 32, 40, 32)] * 4
        network.eval()
        stock.eval()
        single = network(image)
        assert isinstance(single, torch.Tensor)
        assert torch.equal(single, stock(image)[0])


def test_without_deep_supervision_training_gives_a_tensor() -> None:
    network = UNetPlusPlus(**OPTIONS, deep_supervision=False)
    assert isinstance(network(torch.randn(1, 1, 32, 32, 32)), torch.Tensor)
