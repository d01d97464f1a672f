"""What a target is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from guard import Room
from hypothesis import strategies as st

from segpipe.errors import BUG, SegpipeError

Input = tuple[str, bytes]  # ending of the file's name, and its content
TURNED = np.array([[1.9, 0.2, 0, -20], [-0.2, 1.9, 0, 30], [0, 0, 3.0, 5], [0, 0, 0, 1.0]])
VOXELS = np.random.default_rng(0).integers(900, 1100, (4, 3, 2))


@dataclass
class Target:
    """Inputs of one kind: sound ones, what is made of them, and what the product does with a file of that kind."""

    name: str
    sound: Sequence[Input]
    inputs: st.SearchStrategy[Input]
    use: Callable[[Path, Room], object]


def end(deed: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Do it; an error of ours is one of its ends, and what comes after it is tried all the same."""
    try:
        deed(*arguments, **options)
    except SegpipeError as error:
        if error.exit_code == BUG:
            raise
