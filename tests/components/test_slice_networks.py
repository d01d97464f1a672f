"""Networks of slices against MONAI's networks of two dimensions, and its `SliceInferer`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.networks.nets import DynUNet, UNet

from segpipe.components import BatchAffine, SliceDynUNet, SliceUNet, in_precision
from segpipe.components.batch_transforms import Draw
from segpipe.errors import UsageError
from segpipe.inference import OfSlices

UNET: dict[str, Any] = {"spatial_dims": 2, "in_channels": 2, "out_channels": 3, "channels": [4, 8], "strides": [2]}
DYNUNET: dict[str, Any] = {
    "spatial_dims": 2,
    "in_channels": 2,
    "out_channels": 3,
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 8, 8],
}


def with_weights_of(network: torch.nn.Module, other: torch.nn.Module) -> torch.nn.Module:
    other.load_state_dict(network.state_dict())
    return other.eval()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_windows_of_a_volume_are_those_of_monai_slice_by_slice(axis: int) -> None:
    torch.manual_seed(0)
    ours = SliceUNet(**UNET).eval()
    stock = with_weights_of(ours, UNet(**UNET))
    shape, roi = [9, 10, 8], [6, 4]
    volume = torch.randn(1, 2, *shape)
    thin = [*roi[:axis], 1, *roi[axis:]]
    with torch.no_grad():
        expected = SliceInferer(roi_size=roi, sw_batch_size=2, overlap=0.5, mode="gaussian", spatial_dim=axis)(
            volume, stock
        )
        for network in (ours, OfSlices(stock, axis)):
            found = SlidingWindowInferer(thin, sw_batch_size=2, overlap=0.5, mode="gaussian")(volume, network)
            assert torch.equal(found, expected)


def test_heads_of_deep_supervision_keep_their_thin_axis() -> None:
    network = SliceDynUNet(**DYNUNET, deep_supervision=True, deep_supr_num=1)
    assert network.train()(torch.randn(2, 2, 8, 16, 1)).shape == (2, 2, 3, 8, 16, 1)
    scores = network.eval()(torch.randn(2, 2, 8, 1, 16))
    assert scores.shape == (2, 3, 8, 1, 16)
    stock = with_weights_of(network, DynUNet(**DYNUNET, deep_supervision=True, deep_supr_num=1))
    assert stock(torch.randn(1, 2, 8, 16)).shape == (1, 3, 8, 16)


@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 1, 1)])
def test_a_patch_that_is_no_slice_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="one voxel thick"):
        SliceUNet(**UNET)(torch.zeros(1, 2, *shape))


def test_channels_lie_side_by_side_in_two_dimensions_too() -> None:
    torch.manual_seed(0)
    network = SliceUNet(**UNET).eval()
    image = torch.randn(2, 2, 8, 8, 1)
    expected = network(image)
    assert torch.allclose(in_precision(network, "float32", channels_last=True)(image), expected, atol=1e-5)


def test_a_batch_of_slices_is_turned_within_them() -> None:
    image = torch.arange(8.0).reshape(1, 1, 1, 1, 8).expand(4, 1, 9, 9, 8).contiguous()
    draw = Draw.of(0, 0, torch.device("cpu"))
    turned, _ = BatchAffine(1.0, 90.0, (0.5, 1.5), sliced_axis=2)(image, image, draw)
    assert torch.allclose(turned, image, atol=1e-4), "each slice has one value, and keeps it"
    anywhere, _ = BatchAffine(1.0, 90.0, (0.5, 1.5))(image, image, Draw.of(0, 0, torch.device("cpu")))
    assert not torch.allclose(anywhere, image, atol=1e-1)
