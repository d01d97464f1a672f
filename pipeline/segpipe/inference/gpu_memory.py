"""Fewer windows at once where a GPU has no memory for all of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from segpipe.inference.sliding_window import Runtime


def in_parts(runtime: Runtime, attempt: Callable[[], AbstractContextManager[object]] = nullcontext) -> Runtime:
    """Return a runtime that halves the windows of a forward pass for as long as a GPU says that it is out of memory.

    What fits is kept for the windows that follow. Each window's scores are what they are in any company, but for
    rounding.

    Args:
        runtime: whose scores are a new tensor at each call.
        attempt: is entered for all windows of a call, and undoes what they did where the GPU is out of memory.

    Raises:
        torch.OutOfMemoryError: a single window does not fit.
    """
    most: int | None = None

    def run(windows: torch.Tensor) -> torch.Tensor:
        nonlocal most
        while True:
            size = min(len(windows), most or len(windows))
            try:
                with attempt():
                    parts = [runtime(part) for part in windows.split(size)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            most = size // 2  # out here, where the error and what it holds on to are gone
            torch.cuda.empty_cache()

    return run
