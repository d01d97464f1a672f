"""MONAI's sliding-window inferer with less memory: the same call, the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from monai.inferers import SlidingWindowInferer
from monai.utils import (
    PytorchPadMode,
    convert_to_dst_type,
    ensure_tuple_rep,
    fall_back_tuple,
    look_up_option,
    optional_import,
)

from segpipe.inference.sliding_window import Window, WindowGrid, stream_blocks

Network = Callable[..., Any]


class StreamingSlidingWindowInferer(SlidingWindowInferer):
    """`monai.inferers.SlidingWindowInferer` that keeps, besides its result, only what windows still touch.

    Arguments and results are MONAI's. Sums and counts of the whole volume are never held, and scores are added in
    MONAI's order, so that they are equal bit for bit. What does not stream takes MONAI's own function: several
    outputs, outputs of another size than the window, buffers (``buffer_steps``) and ``condition``.
    """

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> Any:
        """Return the scores of a batch.

        Args:
            inputs: (N, C, *size), with any number of axes.
            network: windows (M, C, *roi) to scores; it is given ``args`` and ``kwargs`` as well.
            args: passed on.
            kwargs: passed on, less ``device``, ``buffer_steps`` and ``buffer_dim``, which override those of the
                inferer.

        Returns:
            (N, K, *size), of the inputs' type.

        Raises:
            ValueError: the overlap is not in [0, 1), or the axes of inputs and roi_size differ in number.
        """
        axes = inputs.dim() - 2
        buffered = kwargs.get("buffer_steps", self.buffer_steps)
        odd = isinstance(self.roi_size, Sequence) and len(self.roi_size) != axes
        if odd or buffered or kwargs.get("condition") is not None:
            return super().__call__(inputs, network, *args, **kwargs)
        overlap = ensure_tuple_rep(self.overlap, axes)
        if not all(0 <= share < 1 for share in overlap):
            raise ValueError(f"overlap must be >= 0 and < 1, got {overlap}.")
        options = {name: value for name, value in kwargs.items() if name not in _OWN}
        device = torch.device(kwargs.get("device", self.device) or self._stitching_device(inputs))
        grid = WindowGrid.place(inputs.shape[2:], fall_back_tuple(self.roi_size, inputs.shape[2:]), overlap)
        first = _FirstAnswer()

        def predict(windows: torch.Tensor, places: list[Window]) -> torch.Tensor:
            coordinates = (places,) if self.with_coord else ()
            return first.plain(network(windows, *coordinates, *args, **options), windows)

        try:
            scores = self._stitched(inputs, grid, predict, device)
        except _OddOutputError as odd_output:
            answers = [odd_output.value]

            def first_once_more(windows: torch.Tensor, *rest: Any, **named: Any) -> Any:
                return answers.pop() if answers else network(windows, *rest, **named)  # no window is computed twice

            return super().__call__(inputs, first_once_more, *args, **kwargs)
        return convert_to_dst_type(scores, _like(inputs), device=device)[0]

    def _stitching_device(self, inputs: torch.Tensor) -> torch.device | str:
        large = self.cpu_thresh is not None and inputs.shape[2:].numel() > self.cpu_thresh
        return "cpu" if large else inputs.device

    def _stitched(self, inputs: torch.Tensor, grid: WindowGrid, predict: Any, device: torch.device) -> torch.Tensor:
        volume = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        output: torch.Tensor | None = None
        blocks = stream_blocks(
            volume,
            grid,
            self._weights(grid, volume),
            predict,
            batch=self.sw_batch_size,
            device=device,
            padding_mode=str(look_up_option(self.padding_mode, PytorchPadMode).value),
            cval=self.cval,
            progress=_progress_bar if self.progress else iter,
        )
        for block in blocks:
            if output is None:
                shape = (len(volume), len(block.scores), *grid.size)
                output = torch.empty(shape, dtype=volume.dtype, device=device)
            into, part = [], []
            for start, size, (before, _), voxels in zip(
                block.start, block.scores.shape[1:], grid.pad, grid.size, strict=True
            ):
                first, end = max(start - before, 0), min(start + size - before, voxels)
                into.append(slice(first, max(first, end)))
                part.append(slice(first + before - start, max(first, end) + before - start))
            output[(block.image, slice(None), *into)] = block.scores[(slice(None), *part)]
        if output is None:
            raise ValueError("there is nothing to infer in an empty batch")
        return output

    def _weights(self, grid: WindowGrid, volume: torch.Tensor) -> torch.Tensor:
        device = torch.device(self.sw_device or volume.device)
        cached = self.roi_weight_map
        if cached is not None and tuple(cached.shape) == grid.roi:
            return torch.as_tensor(cached).to(device=device, dtype=volume.dtype)
        return compute_importance_map(
            grid.roi, mode=self.mode, sigma_scale=self.sigma_scale, device=device, dtype=volume.dtype
        )


_OWN = ("device", "buffer_steps", "buffer_dim", "condition")


class _OddOutputError(Exception):
    def __init__(self, value: Any) -> None:
        super().__init__("the network's output does not stream")
        self.value = value


class _FirstAnswer:
    """Tells from the first answer of a network whether its scores stream."""

    def __init__(self) -> None:
        self.seen = False

    def plain(self, answer: Any, windows: torch.Tensor) -> torch.Tensor:
        value = answer[0] if isinstance(answer, (list, tuple)) and len(answer) == 1 else answer
        streams = isinstance(value, torch.Tensor) and value.shape[2:] == windows.shape[2:]
        if not streams and not self.seen:
            raise _OddOutputError(answer)
        self.seen = True
        return value.as_tensor() if isinstance(value, MetaTensor) else value


def _like(inputs: torch.Tensor) -> torch.Tensor:
    if isinstance(inputs, MetaTensor):
        return MetaTensor([]).copy_meta_from(inputs, copy_attr=False)
    return inputs


def _progress_bar(numbers: range) -> Iterator[int]:
    tqdm, _ = optional_import("tqdm", name="tqdm")
    return iter(tqdm(numbers))
