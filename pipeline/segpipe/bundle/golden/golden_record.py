"""What a bundle's own stock inference makes of golden images: its label map, and its scores at fixed voxels."""

from __future__ import annotations

import contextlib
import io
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.provenance import hardware, versions
from segpipe.errors import DataError

if TYPE_CHECKING:
    import torch


POINTS = 4096
THREADS = 1  # so that a machine of more cores adds in the same order
DECIDING = ("monai", "torch", "numpy", "nibabel")
RULE = (
    "voxel (seed + k * step) mod n for k = 0, 1, ..., where n voxels (X, Y, Z) of the network's grid are counted in C "
    "order, and step is the least whole number from 0.618 n on that has no divisor in common with n"
)


@dataclass(frozen=True, eq=False)
class Recording:
    """A golden case as one machine computes it.

    Attributes:
        labels: (X, Y, Z) uint8, on the grid of the image's file.
        affine: (4, 4) of that grid.
        scores: (classes, points) float32, activated, at `points` of the network's grid.
        grid: (X, Y, Z) size of that grid.
    """

    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    scores: NDArray[np.float32]
    grid: tuple[int, ...]


def points(n: int, seed: int = 0) -> NDArray[np.int64]:
    """Places of at most `POINTS` different voxels among ``n``, by `RULE`."""
    step = math.ceil(0.618 * n)
    while math.gcd(step, n) != 1:
        step += 1
    return (seed + np.arange(min(n, POINTS), dtype=np.int64) * step) % n


def record(bundle: Path, images: Path, work: Path, seed: int = 0) -> Recording:
    """Run ``configs/inference.json`` on a folder with one case, as `monai.bundle run` does, on the CPU.

    Args:
        bundle: folder of the bundle.
        images: folder with nothing but the images.
        work: empty folder for what it writes.
        seed: of the `points`.

    Raises:
        DataError: it does not make one label map of one volume, or has no scores to record.
    """
    import nibabel as nib
    import torch
    from monai.bundle import ConfigParser

    with _one_way_to_compute(), contextlib.redirect_stdout(io.StringIO()):
        parser = ConfigParser()
        parser.read_config(str(bundle / "configs" / "inference.json"))
        if (bundle / "configs" / "metadata.json").is_file():
            parser.read_meta(str(bundle / "configs" / "metadata.json"))
        places = {"bundle_root": bundle, "dataset_dir": images, "output_dir": work}
        parser.update({**{key: str(place) for key, place in places.items()}, "device": "cpu"})
        parser.parse(True)
        for number in range(len(parser.get("initialize") or ())):
            parser.get_parsed_content(f"initialize::{number}")
        evaluator = parser.get_parsed_content("evaluator")
        inferer = evaluator.inferer = _Listening(evaluator.inferer)
        for number in range(len(parser["run"])):
            parser.get_parsed_content(f"run::{number}")
        activated = _activated(parser.get_parsed_content("postprocessing"), inferer.heard)
    found = [nib.load(path) for path in sorted(work.rglob("*.nii.gz"))]  # type: ignore[attr-defined, unused-ignore]
    shapes = [each.shape for each in found]  # type: ignore[attr-defined, unused-ignore]
    if len(shapes) != 1 or len(shapes[0]) != 3 or activated.ndim != 4:
        raise DataError("the golden case is not one label map of one volume", found=f"{shapes}")
    (image,) = found
    grid = tuple(activated.shape[1:])
    chosen = activated.reshape(len(activated), -1)[:, torch.from_numpy(points(math.prod(grid), seed))]
    return Recording(
        np.asarray(image.dataobj).astype(np.uint8),
        np.asarray(image.affine, np.float64),  # type: ignore[attr-defined, unused-ignore]
        np.ascontiguousarray(chosen.numpy(), np.float32),
        grid,
    )


def surroundings() -> dict[str, Any]:
    """What decides whether two machines may be asked for the same bits: versions, processor, threads."""
    known, machine = versions(), hardware()
    return {
        "versions": {name: known[name] for name in DECIDING},
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            **{name: machine[name] for name in ("processor", "cpu_capability")},
        },
        "threads": THREADS,
    }


class _Listening:
    """An inferer that keeps what it gave last."""

    def __init__(self, inferer: Any) -> None:
        self.inferer = inferer
        self.heard: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.heard = self.inferer(*args, **kwargs)
        return self.heard


def _activated(postprocessing: Any, logits: Any) -> torch.Tensor:
    """(C, X, Y, Z) scores, by the first transform behind the network."""
    import torch

    first: Any = getattr(postprocessing, "transforms", (None,))[0]
    if type(first).__name__ != "Activationsd" or not isinstance(logits, torch.Tensor) or len(logits) != 1:
        raise DataError(
            "no scores to record", found=type(first).__name__, expected="Activationsd as the first postprocessing"
        )
    return torch.as_tensor(first({"pred": logits[0]})["pred"]).detach().cpu().float()


@contextlib.contextmanager
def _one_way_to_compute() -> Iterator[None]:
    """`THREADS` threads whatever the machine has, and no algorithms but the usual ones, as training may have chosen."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
