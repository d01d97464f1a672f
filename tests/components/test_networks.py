"""Every network fragment: any channels, any patch it allows, gradients everywhere, one tensor in evaluation."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNetPlusPlus
from torch import nn

from segpipe.components.losses import DeepSupervision, DiceCELoss
from segpipe.components.networks import UNetPlusPlus
from segpipe.training.config_checks import padded_patch
from segpipe.training.fragments import known_fragments, read_fragment
from segpipe.training.network_cost import build_network, output_shapes

NETWORKS = known_fragments("network")
COSTLY = ("unet_resnet18", "unet_resnet34", "swin_unetr")
EACH = [pytest.param(name, marks=pytest.mark.slow if name in COSTLY else ()) for name in NETWORKS]
OPTIONS = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "features": (4, 4, 8, 8, 8, 4)}
HEADS = {"unetpp": 4, "dynunet": 3, "dynunet_res": 3, "dynunet_2d": 3}
HIPPOCAMPUS = (40, 56, 40)


def build(name: str, in_channels: int, out_channels: int, **changes: object) -> nn.Module:
    fragment, _ = read_fragment("network", name)
    definition = {**fragment["network_def"], **changes}
    channels = {"in_channels": in_channels, "out_channels": out_channels}
    return build_network({**fragment, "network_def": definition, **channels})


def divisor_of(name: str) -> int:
    return int(read_fragment("network", name)[0]["patch_divisor"])


def seen_by(name: str, patch: list[int]) -> list[int]:
    """The patch as the network takes it: a slice of it where it is of two dimensions."""
    return [*patch[:2], 1] if name.endswith("_2d") else patch


def test_the_usual_names_are_there() -> None:
    usual = {"unet", "resunet", "unetpp", "attention_unet", "unet_resnet18", "unet_resnet34"}
    assert usual | {"dynunet", "dynunet_res", "segresnet", "swin_unetr"} <= set(NETWORKS)


@pytest.mark.parametrize("name", EACH)
def test_any_channels_and_any_patch_it_allows(name: str) -> None:
    """Shapes alone: scores have the size of the patch, in training each head, in evaluation the one."""
    divisor = divisor_of(name)
    patches = [padded_patch(HIPPOCAMPUS, divisor), [4 * divisor, 5 * divisor, 7 * divisor]]
    patches += [[32, 2 * divisor, 3 * divisor]]
    patches = [seen_by(name, patch) for patch in patches]
    for in_channels, out_channels in ((1, 2), (4, 5), (1, 5), (4, 2)):
        network = build(name, in_channels, out_channels).to("meta")
        for patch in patches if (in_channels, out_channels) == (4, 5) else patches[:1]:
            given, expected = (2, in_channels, *patch), (2, out_channels, *patch)
            assert output_shapes(network.train(), given) == [expected] * HEADS.get(name, 1)
            assert output_shapes(network.eval(), given) == [expected]


@pytest.mark.parametrize("name", EACH)
def test_a_step_moves_every_weight(name: str) -> None:
    """No head, branch or layer is left out of the loss, and evaluation repeats."""
    torch.manual_seed(0)
    network = build(name, 2, 3).train()
    patch = seen_by(name, padded_patch((32, 16, 16), divisor_of(name)))
    image, truth = torch.randn(2, 2, *patch), torch.randint(0, 3, (2, 1, *patch)).float()
    loss = DeepSupervision(DiceCELoss(activation="softmax"))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    first = loss(network(image), truth)
    first.backward()
    for which, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{which} has no gradient"
        assert parameter.grad.isfinite().all(), which
        if parameter.ndim > 1:
            assert parameter.grad.any(), f"{which} is moved by nothing"
    optimizer.step()
    with torch.no_grad():
        assert loss(network(image), truth) < first
        once, again = (network.eval()(image) for _ in range(2))
    assert isinstance(once, torch.Tensor)
    assert torch.equal(once, again) and once.isfinite().all()


@pytest.mark.parametrize("name", ["dynunet", "dynunet_res", "unetpp"])
def test_without_deep_supervision_there_is_one_head(name: str) -> None:
    network = build(name, 1, 2, deep_supervision=False).to("meta")
    for mode in (True, False):
        assert output_shapes(network.train(mode), (1, 1, 32, 32, 32)) == [(1, 2, 32, 32, 32)]


def test_the_residual_networks_are_residual() -> None:
    from monai.networks.blocks import ResidualUnit, UnetResBlock

    def blocks(name: str, kind: type) -> int:
        return sum(isinstance(module, kind) for module in build(name, 1, 2).modules())

    assert blocks("resunet", ResidualUnit) and not blocks("basic_unet", ResidualUnit)
    assert blocks("dynunet_res", UnetResBlock) and not blocks("dynunet", UnetResBlock)


@pytest.mark.parametrize(("name", "blocks"), [("unet_resnet18", 2 + 2 + 2 + 2), ("unet_resnet34", 3 + 4 + 6 + 3)])
def test_resnet_encoders_have_their_published_depth_and_width(name: str, blocks: int) -> None:
    from monai.networks.nets.resnet import ResNetBlock

    encoder = build(name, 1, 2).encoder
    assert sum(isinstance(module, ResNetBlock) for module in encoder.modules()) == blocks
    widest = max(module.out_channels for module in encoder.modules() if isinstance(module, nn.Conv3d))
    assert widest == 512


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
        assert torch.equal(heads[0], single)


def test_the_finest_head_of_dynunet_comes_first() -> None:
    torch.manual_seed(0)
    network = build("dynunet", 1, 2)
    image = torch.randn(1, 1, 16, 16, 24)
    with torch.no_grad():
        heads = network.train()(image).unbind(1)
        assert torch.equal(heads[0], network.eval()(image))
    for level, head in enumerate(heads[1:], start=1):  # coarser heads are repeated voxels
        step = 2**level
        assert torch.equal(head[..., ::step, :, :], head[..., step - 1 :: step, :, :])
    assert not torch.equal(heads[0][..., ::2, :, :], heads[0][..., 1::2, :, :])
