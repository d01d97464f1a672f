"""PyTorch's 3D convolutions of single windows on the CPU, in the time that oneDNN needs for them.

PyTorch chooses by batch and size, and leaves a single window of few channels to a path several times as slow. Of
transposed convolutions oneDNN gives the channels last, and PyTorch spends longer on turning them than on computing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

ONEDNN_ANYWAY = 20480  # batch x channels x X x Y above which PyTorch takes oneDNN by itself (use_mkldnn)


class OneDnn(TorchFunctionMode):
    """Within it, float32 convolutions on the CPU go to oneDNN: the same sums, added in another order."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch; where a module of `torch.nn` calls a convolution, all arguments are positional."""
        if func in _REPLACED and not kwargs and len(args) == _REPLACED[func][1] and _is_plain(args[0]):
            return _REPLACED[func][0](*args)
        return func(*args, **(kwargs or {}))


def _is_plain(windows: torch.Tensor) -> bool:
    batched = windows.device.type == "cpu" and windows.dtype == torch.float32 and windows.dim() == 5
    return batched and torch.backends.mkldnn.is_available()


def _convolution(
    windows: torch.Tensor, weight: torch.Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> torch.Tensor:
    if not all(isinstance(triple, tuple) and len(triple) == 3 for triple in (stride, padding, dilation)):
        return F.conv3d(windows, weight, bias, stride, padding, dilation, groups)
    return torch.mkldnn_convolution(windows, weight, bias, padding, stride, dilation, groups)


def _transposed(
    windows: torch.Tensor,
    weight: torch.Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    extra: Any,
    groups: int,
    dilation: Any,
) -> torch.Tensor:
    if windows.shape[:4].numel() <= ONEDNN_ANYWAY:
        return F.conv_transpose3d(windows, weight, bias, stride, padding, extra, groups, dilation)
    last = windows.contiguous(memory_format=torch.channels_last_3d)
    return _channels_first(F.conv_transpose3d(last, weight, bias, stride, padding, extra, groups, dilation))


def _channels_first(windows: torch.Tensor) -> torch.Tensor:
    """Do as `contiguous` does, by the transposition of a matrix, which PyTorch does in blocks."""
    if windows.is_contiguous():
        return windows
    turned = torch.empty(windows.shape)
    for window, into in zip(windows, turned, strict=True):
        into.flatten(1).copy_(window.permute(1, 2, 3, 0).flatten(0, 2).t())
    return turned


_REPLACED: dict[Callable[..., Any], tuple[Callable[..., torch.Tensor], int]] = {
    F.conv3d: (_convolution, 7),
    F.conv_transpose3d: (_transposed, 8),
}
