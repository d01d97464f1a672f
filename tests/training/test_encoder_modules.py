"""The encoder of each network: nothing above the bottom reaches it, and it has all that lies before."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import HighResNet

from segpipe.errors import UsageError
from segpipe.training.encoder_modules import encoder_modules
from segpipe.training.fragments import known_fragments, read_fragment
from segpipe.training.network_cost import build_network

SMALL = {
    "attention_unet": {"channels": [4, 8], "strides": [2]},
    "basic_unet": {"features": [4, 4, 4, 4, 4, 4]},
    "unetpp": {"features": [4, 4, 4, 4, 4, 4]},
    "segresnet": {"init_filters": 8},
    "unet": {"channels": [4, 8, 16], "strides": [2, 2]},
}
EACH = [
    pytest.param(name, marks=pytest.mark.slow if name.startswith(("swin", "unet_resnet")) else ())
    for name in known_fragments("network")
]


@pytest.mark.parametrize("name", EACH)
def test_what_the_encoder_gives_depends_on_nothing_else(name: str) -> None:
    content, _ = read_fragment("network", name)
    definition = {**content["network_def"], **SMALL.get(name, {}), "in_channels": 1, "out_channels": 2}
    network = build_network({"network_def": definition}).eval()
    encoder = encoder_modules(network)
    modules = [network.get_submodule(module) for module in encoder]
    inside = {id(parameter) for module in modules for parameter in module.parameters()}
    outside = [parameter for parameter in network.parameters() if id(parameter) not in inside]
    assert inside and outside
    given: list[torch.Tensor] = []
    for module in modules:
        last = module[-1] if isinstance(module, torch.nn.ModuleList) else module
        last.register_forward_hook(lambda _, __, output: given.extend([output] if torch.is_tensor(output) else output))
    with torch.no_grad():
        for parameter in outside:
            parameter.fill_(float("nan"))
        scores = network(torch.randn(1, 1, 64, 32, 1 if name.endswith("_2d") else 32))
    scores = scores if torch.is_tensor(scores) else scores[-1]
    assert len(given) >= len(encoder)
    assert all(torch.isfinite(each).all() for each in given if each is not None)
    assert not torch.isfinite(scores).all()
    # what is left outside begins with what scales up, or with an attention to it
    assert sum(p.numel() for p in network.parameters() if id(p) in inside) > 0.2 * sum(p.numel() for p in outside)


def test_a_network_without_a_rule_is_refused() -> None:
    with pytest.raises(UsageError, match="encoder") as refused:
        encoder_modules(HighResNet(3, 1, 2))
    assert "UNet" in str(refused.value.expected) and "--freeze" in str(refused.value.hint)
