"""Every shipped network is exported as a class of stock MONAI that gives the same scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_run import MakeRun

from segpipe.bundle.exporting.write import export
from segpipe.training.config_checks import padded_patch
from segpipe.training.fragments import known_fragments, read_fragment

FAST = ("dynunet", "attention_unet")
EACH = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in known_fragments("network")]


@pytest.mark.parametrize("name", EACH)
def test_stock_monai_gives_the_scores_of_the_trained_network(name: str, make_run: MakeRun, tmp_path: Path) -> None:
    import torch
    from monai.bundle import ConfigParser, verify_net_in_out

    fragment, _ = read_fragment("network", name)
    patch = padded_patch((32, 16, 16), fragment["patch_divisor"])
    flat = name.endswith("_2d")
    run = make_run(task={"patch_size": [*patch[:2], 1] if flat else patch}, network=fragment)
    bundle = export(run, tmp_path / name)
    definition = bundle.network_def
    assert definition is not None and "segpipe" not in definition["_target_"]
    stock = build(definition)
    weights = bundle.root / "models" / "model.pt"
    stock.load_state_dict(torch.load(weights, weights_only=True))
    assert weights.stat().st_size < 1.2 * sum(t.numel() * t.element_size() for t in stock.parameters()) + 6e6
    channels = {"in_channels": 1, "out_channels": 3}
    ours = ConfigParser({**fragment, **channels}).get_parsed_content("network_def")
    ours.load_state_dict(torch.load(run / "best.pt", weights_only=True))
    window = patch[:2] if flat else patch
    image = torch.rand(1, 1, *window)
    with torch.no_grad():
        theirs, expected = stock.eval()(image), ours.eval()(image[..., None] if flat else image)
    theirs = theirs[0] if isinstance(theirs, list) else theirs
    assert torch.equal(theirs, expected[..., 0] if flat else expected)
    configs = bundle.root / "configs"
    inferer = ConfigParser.load_config_file(configs / "inference.json")["inferer"]
    assert inferer["roi_size"] == window
    assert ("einops" in bundle.metadata["required_packages_version"]) == (name == "swin_unetr")
    if name != "unetpp":  # the metadata says so under exceptions
        verify_net_in_out(
            "network_def",
            meta_file=str(configs / "metadata.json"),
            config_file=str(configs / "inference.json"),
            device="cpu",
        )


def test_the_weights_of_dynunet_are_kept_once(make_run: MakeRun, tmp_path: Path) -> None:
    fragment, _ = read_fragment("network", "dynunet")
    bundle = export(make_run(network=fragment), tmp_path / "once")
    parameters = sum(parameter.numel() for parameter in build(bundle.network_def).parameters())
    assert (bundle.root / "models" / "model.pt").stat().st_size < 1.1 * 4 * parameters


def build(definition: Any) -> Any:
    from monai.bundle import ConfigParser

    return ConfigParser({"network_def": definition}).get_parsed_content("network_def")
