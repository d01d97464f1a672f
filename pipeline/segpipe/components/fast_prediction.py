"""The streaming engine for `python -m monai.bundle run`, through a bundle's ``inference_fast.json``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose

from segpipe.common.channel_names import channel_names, masks_of
from segpipe.common.files import read_json
from segpipe.common.nifti import read_header
from segpipe.errors import SegpipeError, UsageError
from segpipe.inference import (
    Preprocessing,
    StreamingEngine,
    Windowing,
    side_by_side,
    sliced,
    torch_runtime,
    write_labels,
)

log = logging.getLogger(__name__)


class FastPrediction:
    """Writes the label maps that the bundle's ``inference.json`` writes, in less time and memory.

    Args:
        config_file: the bundle's ``inference.json``, whose deterministic transforms are read as data.
        weights: state dict of the network; of an ensemble one for each.
        network: the network, or those of an ensemble, the mean of whose probabilities decides.
        datalist: cases, each with a path or a list of paths under ``image``.
        output_dir: folder for the label maps, ``<name>_seg.nii.gz``.
        roi_size: window in voxels; of slices along their two axes.
        sw_batch_size: windows in one forward pass, at most.
        overlap: share by which windows overlap.
        mode: weights of overlapping windows, ``gaussian`` or ``constant``.
        activation: ``softmax`` or ``sigmoid``.
        spatial_dim: 0 to 2, along which networks of two dimensions go slice by slice; None for networks of three.
        cleanup: transforms of the label map under ``pred``.
        device: where windows are computed.
        max_memory: bytes that the process may take; None for what the machine has.
    """

    def __init__(
        self,
        config_file: str,
        weights: str | Sequence[str],
        network: torch.nn.Module | Sequence[torch.nn.Module],
        datalist: Sequence[Mapping[str, Any]],
        output_dir: str,
        roi_size: Sequence[int],
        sw_batch_size: int = 1,
        overlap: float = 0.25,
        mode: Any = "constant",
        activation: Any = "softmax",
        spatial_dim: int | None = None,
        cleanup: Sequence[Any] = (),
        device: str = "cpu",
        max_memory: int | None = None,
    ) -> None:
        transforms = read_json(Path(config_file), "inference config")["deterministic_transforms"]
        preprocessing = Preprocessing.parse(transforms)
        reason = preprocessing.why_not_streamed()
        if reason:
            raise UsageError("this bundle's transforms do not stream", found=reason, hint="run inference.json alone")
        self.datalist, self.output_dir = datalist, Path(output_dir)
        where = torch.device(device)
        networks = [network] if isinstance(network, torch.nn.Module) else list(network)
        for each, file in zip(networks, [weights] if isinstance(weights, str) else weights, strict=True):
            each.load_state_dict(torch.load(file, map_location=where, weights_only=True))
        x, y, z = roi_size if spatial_dim is None else (*roi_size[:spatial_dim], 1, *roi_size[spatial_dim:])
        self._engine = StreamingEngine(
            preprocessing,
            Windowing(
                (x, y, z), overlap, sw_batch_size, mode, activation, members=len(networks), slice_axis=spatial_dim
            ),
            side_by_side([torch_runtime(sliced(each.to(where).eval(), spatial_dim)) for each in networks]),
            where,
            max_memory=max_memory,
            cleanup=Compose(list(cleanup)) if cleanup else None,
            masks=_masks(Path(config_file).with_name("metadata.json")),
        )

    def run(self) -> None:
        """Segment all cases; one that cannot be segmented is logged, and the rest go on.

        Raises:
            SegpipeError: the first of them, at the end.
        """
        self.output_dir.mkdir(parents=True, exist_ok=True)
        failures: list[SegpipeError] = []
        for case in self.datalist:
            paths = case["image"] if isinstance(case["image"], (list, tuple)) else [case["image"]]
            name = _stock_name(Path(paths[0]))
            try:
                self._segment([Path(path) for path in paths], self.output_dir / f"{name}_seg.nii.gz")
            except SegpipeError as error:
                log.error("%s: %s", name, error.message)
                failures.append(error)
        if failures:
            raise failures[0]

    def _segment(self, paths: list[Path], out: Path) -> None:
        self._engine.channels = _channels(paths)
        read, _ = self._engine.read(paths)
        with torch.inference_mode():
            labels, regions = self._engine.segment(read.source, {})
            write_labels(out, labels, read.source.header, regions)


def _stock_name(path: Path) -> str:
    """Return a file's name as `SaveImaged` keeps it."""
    return path.with_suffix("").stem if path.suffix == ".gz" else path.stem


def _masks(metadata: Path) -> int:
    """Return how many of the last channels are masks, by the metadata beside a bundle's config."""
    return masks_of(channel_names(read_json(metadata))) if metadata.is_file() else 0


def _channels(paths: Sequence[Path]) -> int:
    """Return the number of files, or the channels of the only one."""
    shape = read_header(paths[0]).shape if paths[0].is_file() else ()
    return shape[3] if len(paths) == 1 and len(shape) == 4 else len(paths)
