"""From the manifest to MONAI data dictionaries, and the last check before training."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Transform

from segpipe.common.console import digits
from segpipe.common.grids import require_one_grid
from segpipe.common.nifti import read_header, read_volume
from segpipe.common.outliers import refuse_outliers
from segpipe.common.processes import place_among_processes
from segpipe.common.rounded_quaternions import accept_rounded_quaternions
from segpipe.components.slab_resampling import resample_in_slabs
from segpipe.data import load_manifest, require_as_imported
from segpipe.errors import DataError, SegpipeError, UsageError, ours_within

accept_rounded_quaternions()  # before MONAI reads, in each process that does
resample_in_slabs()


def load_cases(manifest: str, data: str, split: str, fold: int | None = None) -> list[dict[str, Any]]:
    """Return the cases of a split as data dictionaries for MONAI datasets.

    Args:
        manifest: path of the manifest.
        data: folder that its paths start from.
        split: ``training``, ``validation`` or ``test``.
        fold: validation fold; None trains on every case, and validates none.

    Returns:
        Dictionaries with ``case_id``, ``image`` (a path, or one path per channel) and ``label``; where not every label
        was looked for also ``annotated``, the values of those that were, which `MarkUnannotatedd` takes.

    Raises:
        UsageError: no such split or fold, no case in it, or a file that is not there.
        DataError: a file whose header cannot be used; or of a case that is trained on or validated one that has not the
            hash that the manifest says. The first of several processes compares them.
    """
    if split == "validation" and fold is None:
        return []
    dataset = load_manifest(manifest)
    cases = dataset.select(split, fold)
    if not cases:
        raise UsageError(f"the manifest has no {split} cases", path=manifest, hint="make a split with `segpipe split`")
    if split != "test" and place_among_processes()[0] == 0:
        require_as_imported(cases, Path(data))
    items = []
    for case in cases:
        for path in case.paths:
            if not (Path(data) / path).is_file():
                raise UsageError(
                    "a file of the manifest is missing",
                    case_id=case.id,
                    path=Path(data) / path,
                    hint="name the data folder with --data, or run `segpipe check`",
                )
            try:
                read_header(Path(data) / path)  # MONAI would take the bytes of a wrong header for voxels
            except SegpipeError as error:
                error.case_id = case.id
                raise
        images = [str(Path(data) / path) for path in case.images]
        item: dict[str, Any] = {"case_id": case.id, "image": images if len(images) > 1 else images[0]}
        if case.label:
            item["label"] = str(Path(data) / case.label)
            annotated = dataset.annotated(case)
            if annotated is not None:
                item["annotated"] = sorted(annotated)
        items.append(item)
    return items


class CaseTransforms(Compose):
    """A `monai.transforms.Compose` whose failures name the case and the file, as `DataError`."""

    def __call__(self, input_: Any, *arguments: Any, **named: Any) -> Any:
        """Transform a case, as `Compose` does.

        Raises:
            DataError: naming the case.
        """
        try:
            return super().__call__(input_, *arguments, **named)
        except Exception as error:
            raise ours_within(error) or _unprepared(input_, error) from error


def _unprepared(item: Mapping[str, Any], error: Exception) -> Exception:
    """Return what is wrong with a case's files, or else that it cannot be prepared."""
    case_id = item.get("case_id")
    parts = (item.get("image"), item.get("label"))  # paths, or what was read of them
    images, labels = ([part] if isinstance(part, str) else part if isinstance(part, list) else [] for part in parts)
    try:
        for path in [*images, *labels]:
            read_volume(read_header(path))
        if images:
            require_one_grid([read_header(path) for path in images], read_header(labels[0]) if labels else None)
    except SegpipeError as fault:
        fault.case_id = case_id
        return fault
    return DataError(
        "the case cannot be prepared",
        case_id=case_id,
        found=str(error).strip().splitlines()[0][:300] or type(error).__name__,
        hint="run `segpipe check`",
    )


class ValidateCased(Transform):
    """Refuse a preprocessed case that would train a wrong model; stands after the deterministic transforms.

    Checks that the image is finite, not constant and has the expected channels, that image and label lie on one
    grid, and that every label value is known (a value of 1.6 would otherwise be truncated to 1 in silence) and some
    voxel annotated.

    Args:
        in_channels: channels that the network expects.
        n_labels: number of label values including background.
        ignore_label: value of voxels that are not annotated, where there are any.
    """

    def __init__(self, in_channels: int, n_labels: int, ignore_label: int | None = None) -> None:
        self.in_channels = in_channels
        self.n_labels = n_labels
        self.ignore_label = ignore_label

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        """Return ``data`` unchanged.

        Raises:
            DataError: naming the case.
        """
        case_id = data.get("case_id")
        image, label = torch.as_tensor(data["image"]), data.get("label")
        if image.ndim != 4 or image.shape[0] != self.in_channels:
            raise DataError(
                "wrong number of image channels or dimensions",
                case_id=case_id,
                found=f"shape {tuple(image.shape)}",
                expected=f"({self.in_channels}, X, Y, Z)",
            )
        if not all(bool(torch.isfinite(plane).all()) for plane in _planes(image)):
            raise DataError("the image has NaN or infinite voxels", case_id=case_id, hint="run `segpipe check`")
        if float(image.max()) == float(image.min()):
            raise DataError("the image is constant", case_id=case_id, hint="run `segpipe check`")
        for channel in np.asarray(image.cpu()):  # a scaling keeps how far voxels are apart
            refuse_outliers(channel, case_id=None if case_id is None else str(case_id))
        if label is not None:
            self._check_label(case_id, data["image"], label)
        return data

    def _check_label(self, case_id: str | None, image: Any, label: Any) -> None:
        apart = float((torch.as_tensor(image.affine) - torch.as_tensor(label.affine)).abs().max())
        if image.shape[1:] != label.shape[1:] or apart > 1e-2:
            raise DataError(
                "image and label lie on different grids",
                case_id=case_id,
                found=f"image {tuple(image.shape[1:])}, label {tuple(label.shape[1:])}, affines {apart:.3g} apart",
                hint="run `segpipe check`",
            )
        values = torch.unique(torch.cat([torch.unique(plane) for plane in _planes(label)]))
        ignored = [] if self.ignore_label is None else [self.ignore_label]
        if values.tolist() == ignored != []:
            raise DataError("no voxel is annotated", case_id=case_id, hint="take the case out")
        known = torch.tensor([*range(self.n_labels), *ignored], dtype=values.dtype)
        if not bool(torch.isin(values, known).all()):
            raise DataError(
                "label values outside the manifest",
                case_id=case_id,
                found=", ".join(digits(float(value)) for value in values[:12]),
                expected=f"whole numbers 0 to {self.n_labels - 1}"
                + "".join(f", or {each} (ignored)" for each in ignored),
                hint="run `segpipe check`",
            )


def _planes(volume: Any) -> torch.Tensor:
    """Return a view of a volume whose parts are its planes: a check of each needs little memory."""
    tensor = torch.as_tensor(volume)
    return (tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor).flatten(0, 1)
