"""What is counted from shapes is what real steps need."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segpipe.errors import UsageError
from segpipe.training.fragments import read_fragment
from segpipe.training.network_cost import build_network, cost_of_step, output_shapes, shapes_of_network

VOXELS = 2 * 6 * 5 * 4
SHAPE = (2, 1, 6, 5, 4)


def two_convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 1))


def config(name: str, **arguments: object) -> dict[str, object]:
    fragment, _ = read_fragment("network", name)
    definition = {**fragment["network_def"], **arguments}
    return {**fragment, "network_def": definition, "in_channels": 1, "out_channels": 3}


def test_two_convolutions_by_hand() -> None:
    found = cost_of_step(two_convolutions(), SHAPE)
    parameters = 27 * 4 + 4 + 4 * 3 + 3
    assert found.parameters == parameters
    assert found.weight_bytes == 4 * parameters
    forward, to_image, to_weights = 27 * 4 + 4 * 3, 4 * 3, 27 * 4 + 4 * 3
    assert found.multiply_adds == VOXELS * (forward + to_image + to_weights)  # none to the image itself
    assert found.activation_bytes == 4 * VOXELS * (1 + 4)  # the image and the second convolution's input
    at_least = 4 * VOXELS * (1 + 4 + 3) + 4 * parameters  # all of the forward pass, and gradients
    assert at_least + 3 * 4 * parameters <= found.step_bytes <= 3 * at_least
    assert found.heads == 1


@pytest.mark.parametrize("name", ["unet", "segresnet", "dynunet"])
def test_kept_bytes_are_those_of_a_real_forward_pass(name: str) -> None:
    network = build_network(config(name)).train()
    shape = (1, 1, 24, 16, 16)
    owned = {tensor.data_ptr() for tensor in [*network.parameters(), *network.buffers()]}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(torch.randn(shape))
    real = sum(size for size, _ in kept.values())
    assert len(outputs) and cost_of_step(network, shape).activation_bytes == pytest.approx(real, rel=0.05)


def test_patches_weigh_alike_and_weights_once() -> None:
    one, four = (cost_of_step(build_network(config("unet")), (batch, 1, 32, 32, 32)) for batch in (1, 4))
    assert one.parameters == four.parameters and one.weight_bytes == four.weight_bytes
    assert four.multiply_adds == 4 * one.multiply_adds
    assert four.activation_bytes == pytest.approx(4 * one.activation_bytes, rel=0.01)
    assert four.step_bytes < 4 * one.step_bytes


def test_building_leaves_the_random_state_and_the_config_alone(capsys: pytest.CaptureFixture[str]) -> None:
    given = config("basic_unet")
    before = torch.random.get_rng_state()
    build_network(given)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert given == config("basic_unet")
    assert capsys.readouterr().out == ""  # MONAI's class prints its features


@pytest.mark.parametrize("name", ["unet", "dynunet", "swin_unetr"])
def test_shapes_are_those_of_the_network_whose_weights_are_drawn(name: str) -> None:
    drawn, shapes = build_network(config(name)).state_dict(), shapes_of_network(config(name)).state_dict()
    assert {key: (value.shape, value.dtype) for key, value in drawn.items()} == {
        key: (value.shape, value.dtype) for key, value in shapes.items()
    }
    assert all(value.is_meta for value in shapes.values()) and not any(value.is_meta for value in drawn.values())


def test_a_network_that_computes_with_values_has_its_shapes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rates(nn.Conv3d):
        def __init__(self) -> None:
            super().__init__(1, round(float(torch.linspace(0, 4, 2)[1])), 1)

    monkeypatch.setattr("monai.networks.nets.Rates", Rates, raising=False)
    network = shapes_of_network({"network_def": {"_target_": "monai.networks.nets.Rates"}})
    assert output_shapes(network, (1, 1, 2, 2, 2)) == [(1, 4, 2, 2, 2)]


def test_a_network_that_refuses_its_arguments_is_quoted() -> None:
    with pytest.raises(UsageError, match="cannot be built") as caught:
        build_network(config("swin_unetr", feature_size=13))
    assert "divisible by 12" in str(caught.value)
    with pytest.raises(UsageError, match="no network"):
        build_network({"network_def": {"_target_": "SpatialPad", "spatial_size": [1, 1, 1]}})


def test_heads_are_counted_one_by_one_whether_listed_or_stacked() -> None:
    class Stacked(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.stack([image, image], dim=1)

    class Listed(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [image, image[..., ::2]]

    assert output_shapes(Stacked(), SHAPE) == [SHAPE, SHAPE]
    assert output_shapes(Listed(), SHAPE) == [SHAPE, (2, 1, 6, 5, 2)]


def test_what_cannot_run_on_shapes_alone_is_not_judged() -> None:
    class Looks(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image if float(image.sum()) > 0 else -image

    assert output_shapes(Looks(), SHAPE) is None


def test_a_wrong_number_of_channels_is_said() -> None:
    with pytest.raises(UsageError, match="does not take") as caught:
        output_shapes(two_convolutions().to("meta"), (1, 2, 6, 5, 4))
    assert "6x5x4 voxels, 2 channels" in str(caught.value)
