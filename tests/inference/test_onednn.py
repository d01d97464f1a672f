"""Convolutions through oneDNN give what PyTorch's own give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segpipe.inference.onednn import OneDnn

CONVOLUTIONS = {
    "plain": (nn.Conv3d(3, 5, 3, padding=1), (1, 3, 7, 9, 8)),
    "strided": (nn.Conv3d(2, 4, 3, stride=2, padding=1), (2, 2, 9, 8, 11)),
    "flat": (nn.Conv3d(2, 4, (3, 3, 1), stride=(2, 2, 1), padding=(1, 1, 0)), (1, 2, 9, 8, 5)),
    "dilated": (nn.Conv3d(2, 4, 3, dilation=2, padding=2, bias=False), (1, 2, 9, 8, 7)),
    "a point": (nn.Conv3d(4, 2, 1), (1, 4, 6, 5, 4)),
    "in groups": (nn.Conv3d(4, 4, 3, padding=1, groups=2), (1, 4, 6, 5, 4)),
    "same": (nn.Conv3d(3, 5, 3, padding="same"), (1, 3, 7, 9, 8)),
    "reflecting": (nn.Conv3d(3, 5, 3, padding=1, padding_mode="reflect"), (1, 3, 7, 9, 8)),
    "transposed": (nn.ConvTranspose3d(3, 5, 3, stride=2, padding=1, output_padding=1), (2, 3, 7, 9, 8)),
    "transposed, large": (nn.ConvTranspose3d(24, 6, 3, stride=2, padding=1, output_padding=1), (2, 24, 30, 31, 6)),
    "transposed, in groups": (nn.ConvTranspose3d(24, 6, 2, stride=2, groups=2), (1, 24, 30, 31, 6)),
    "without a batch": (nn.Conv3d(3, 5, 3, padding=1), (3, 7, 9, 8)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_scores_are_those_of_pytorch(name: str) -> None:
    module, shape = CONVOLUTIONS[name]
    windows = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = module(windows)
        with OneDnn():
            found = module(windows)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_other_types_and_calls_are_left_alone() -> None:
    windows, weight = (torch.randn(1, 2, 5, 5, 5, dtype=torch.float64), torch.randn(3, 2, 3, 3, 3, dtype=torch.float64))
    with OneDnn():
        double = nn.functional.conv3d(windows, weight, None, (1, 1, 1), (0, 0, 0), (1, 1, 1), 1)
        named = nn.functional.conv3d(windows.float(), weight.float(), padding=1)
    assert double.dtype == torch.float64
    torch.testing.assert_close(named, nn.functional.conv3d(windows.float(), weight.float(), padding=1))
