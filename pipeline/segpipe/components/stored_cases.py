"""The data set of a training: its cases in memory, or in a store on disk of which it reads the patches alone."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, Dataset, MetaTensor
from monai.transforms import (
    ClassesToIndicesd,
    Compose,
    RandCropByLabelClassesd,
    RandCropByPosNegLabeld,
    SpatialCrop,
    SpatialPadd,
    Transform,
)
from monai.transforms.traits import RandomizableTrait
from monai.utils import fall_back_tuple
from numpy.typing import NDArray

from segpipe.common.console import Console, counted
from segpipe.components.truth_coding import AnnotatedToIndicesd, MarkUnannotatedd
from segpipe.errors import DataError, UsageError
from segpipe.store import CaseFile, Indices, LabelRuns, Store, Volume

LABEL = "label"
VERSIONS = ("monai", "torch", "numpy", "nibabel")  # that what is prepared may depend on
OF_A_CALL = ("_tracing", "filenames")  # what MONAI's transforms and readers remember of their last case


def prepared_cases(
    data: Sequence[Mapping[str, Any]],
    transform: Compose,
    cache_rate: float = 1.0,
    num_workers: int | None = 1,
    store: str | None = None,
) -> Dataset:
    """Return the data set of a training, whose deterministic transforms run once a case.

    Args:
        data: cases as data dictionaries of MONAI, as `load_cases` gives them.
        transform: of a case; those before its first random one are deterministic.
        cache_rate: share of the cases that is kept in memory, as MONAI's `CacheDataset` has it; without a store.
        num_workers: threads that fill that memory.
        store: folder of a store (`segpipe.store`) that keeps them on disk instead; None keeps them in memory.

    Raises:
        UsageError: the folder is no store, the disk is full, or transforms that cannot be told from others.
        DataError: a case cannot be prepared.
    """
    if store is None:
        return CacheDataset(data, transform, cache_rate=cache_rate, num_workers=num_workers, progress=False)
    return StoredCases(data, transform, store)


@dataclass(frozen=True)
class _Cropping:
    """The first random transform where it is a crop about voxels of the label, and what pads before it."""

    pads: SpatialPadd | None
    indices: ClassesToIndicesd | None
    crop: RandCropByPosNegLabeld | RandCropByLabelClassesd


class StoredCases(Dataset):
    """Cases in a store: prepared once, and read where a crop lies.

    What is drawn is drawn by MONAI's own transforms in their order, so that a run's weights are, bit for bit, those of
    the same cases in memory (with the voxels as the store rounds them, see `segpipe.store.case_file`). Transforms that
    are not of `_Cropping` get whole volumes, which is right as well, and slower.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Compose, store: str) -> None:
        super().__init__(data=data, transform=transform)
        steps = transform.transforms  # no attribute: MONAI's loader seeds each transform that an attribute leads to
        first = transform.get_index_of_first(lambda step: isinstance(step, RandomizableTrait) or not _is_step(step))
        self._first_random = len(steps) if first is None else first
        self._kept = self._first_random  # the transforms before it are those whose result is stored
        cheap = (SpatialPadd, ClassesToIndicesd, AnnotatedToIndicesd, MarkUnannotatedd)  # the last in validation alone
        while self._kept and isinstance(steps[self._kept - 1], cheap):
            self._kept -= 1
        self._files = self._prepared(store) if len(data) else []

    def _prepared(self, store: str) -> list[CaseFile]:
        steps = [_described(step) for step in self.transform.transforms[: self._kept]]
        made_by = {"transforms": steps, "versions": {name: version(name) for name in VERSIONS}}
        console, told = Console("train"), False
        with console.progress() as bar:
            task = bar.add_task("preparing cases", total=len(self.data))

            def report(done: int, total: int) -> None:
                nonlocal told
                bar.update(task, completed=done, total=total)
                if done < total and not told:
                    console.note(f"preparing {counted(total - done, 'case')} for the store, once")
                    told = True

            jobs = [(item, lambda item=item: _parts_of(self.transform(item, end=self._kept))) for item in self.data]
            return Store(store).prepare(jobs, made_by, report)

    def _transform(self, index: int) -> Any:
        file = self._files[index]
        patches = self._patches(file)
        if patches is not None:
            return self.transform(patches, start=self._first_random + 1)
        return self.transform(_whole(file), start=self._kept)

    def _patches(self, file: CaseFile) -> list[dict[str, Any]] | None:
        """Return the patches that the first random transform draws, None where it is no crop, or one of other kinds."""
        cropping = _cropping_of(self.transform.transforms[self._kept : self._first_random + 1])
        return None if cropping is None else _patches(file, cropping)


def _is_step(step: Any) -> bool:
    return isinstance(step, Transform)


def _cropping_of(steps: Sequence[Any]) -> _Cropping | None:
    """Return what the steps before the first random one, and it, are; None where they are of another kind."""
    if not steps or type(steps[-1]) not in (RandCropByPosNegLabeld, RandCropByLabelClassesd):
        return None
    crop = steps[-1]
    pads = [step for step in steps if isinstance(step, SpatialPadd)]
    indices = [step for step in steps if isinstance(step, ClassesToIndicesd)]
    if len(pads) > 1 or len(indices) > 1 or crop.label_key != LABEL or crop.image_key is not None or crop.lazy:
        return None
    if any({*pad.mode} != {"constant"} or pad.padder.kwargs or pad.lazy for pad in pads):
        return None
    known = _Cropping(pads[0] if pads else None, indices[0] if indices else None, crop)
    return known if _draws_from_labels(known) else None


def _draws_from_labels(cropping: _Cropping) -> bool:
    """Return whether the crop draws among the voxels of labels as they stand in the label map."""
    crop, indices = cropping.crop, cropping.indices
    if isinstance(crop, RandCropByPosNegLabeld):
        return indices is None and crop.fg_indices_key is None and crop.bg_indices_key is None
    if indices is None:
        return crop.indices_key is None and crop.cropper.num_classes is not None
    of_the_label = tuple(indices.keys) == (LABEL,) and crop.indices_key == f"{LABEL}{indices.indices_postfix}"
    plain = indices.image_key is None and indices.converter.output_shape is None
    return of_the_label and plain and indices.converter.num_classes is not None


def _patches(file: CaseFile, cropping: _Cropping) -> list[dict[str, Any]] | None:
    """Return the patches of a case that the crop draws; None where it is not one of an image and a label alone."""
    crop, keys, runs = cropping.crop, {*file.shapes}, file.runs()
    shapes = {shape[1:] for shape in file.shapes.values()}
    padded = cropping.pads is None or keys == {*cropping.pads.keys}
    if runs is None or keys != {*crop.keys} or not padded or len(shapes) > 1:
        return None
    shape = shapes.pop()
    widths = [(0, 0)] * 3 if cropping.pads is None else cropping.pads.padder.compute_pad_width(shape)[1:]
    before = [int(width[0]) for width in widths]
    whole = tuple(int(size + sum(width)) for size, width in zip(shape, widths, strict=True))
    _draw(crop, runs.padded(before, whole), cropping.indices)
    patches = []
    for center in crop.cropper.centers:
        box = SpatialCrop(roi_center=center, roi_size=fall_back_tuple(crop.cropper.spatial_size, whole)).slices
        low = [part.start for part in box]
        high = [min(part.stop, end) for part, end in zip(box, whole, strict=True)]
        parts = {key: _patch(file, key, before, low, high) for key in file.shapes}
        patches.append({**file.facts, **parts})
    return patches


def _draw(crop: Any, runs: LabelRuns, indices: ClassesToIndicesd | None) -> None:
    """Let the crop draw its centres from the places of the labels."""
    shaped = torch.empty((1, *runs.shape), device="meta")  # it asks the label for its shape alone
    if isinstance(crop, RandCropByPosNegLabeld):
        crop.randomize(shaped, runs.foreground(), runs.background())
        return
    source = crop.cropper if indices is None else indices.converter
    places = [runs.of_label(value) for value in range(source.num_classes)]
    crop.randomize(shaped, [_thinned(each, source.max_samples_per_class) for each in places])


def _thinned(places: Indices, most: int | None) -> Indices | NDArray[np.int64]:
    """Return evenly spread ones of the voxels where there are more, as `monai.transforms.map_classes_to_indices`."""
    if not most or len(places) <= max(most, 1):
        return places
    return places[np.round(np.linspace(0, len(places) - 1, most)).astype(int)]


def _patch(file: CaseFile, key: str, before: Sequence[int], low: Sequence[int], high: Sequence[int]) -> Any:
    """Return a volume within a box of its padded grid; what lies outside the case is 0."""
    shape = file.shapes[key]
    inner = [
        slice(min(max(start - first, 0), size), max(min(stop - first, size), 0))
        for start, stop, first, size in zip(low, high, before, shape[1:], strict=True)
    ]
    x, y, z = inner
    values = file.read(key, (x, y, z))
    size = [stop - start for start, stop in zip(low, high, strict=True)]
    if list(values.shape[1:]) != size:
        outer = [part.start + first - start for part, first, start in zip(inner, before, low, strict=True)]
        patch = np.zeros((shape[0], *size), values.dtype)
        into = [slice(start, start + count) for start, count in zip(outer, values.shape[1:], strict=True)]
        patch[:, *into] = values
        values = patch
    affine = file.affines[key]
    if affine is not None:
        shift = np.eye(4)
        shift[:3, 3] = np.subtract(low, before)
        affine = affine @ shift
    return _tensor(values, affine)


def _whole(file: CaseFile) -> dict[str, Any]:
    parts = {key: _tensor(file.read(key), file.affines[key]) for key in file.shapes}
    return {**file.facts, **parts}


def _tensor(values: NDArray[Any], affine: NDArray[np.float64] | None) -> Any:
    tensor = torch.from_numpy(values)
    return tensor if affine is None else MetaTensor(tensor, affine=torch.from_numpy(affine))


def _parts_of(item: Mapping[Any, Any]) -> tuple[dict[str, Volume], dict[str, Any]]:
    """Return the volumes of a prepared case, and its plain values.

    Raises:
        DataError: it has something else.
    """
    volumes, facts = {}, {}
    for key, value in item.items():
        if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 4:
            affine = value.affine.numpy().astype(np.float64) if isinstance(value, MetaTensor) else None
            volumes[str(key)] = Volume(np.asarray(value), affine)
        elif isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "biuf":
            facts[str(key)] = value.tolist()  # such as the corners that a crop leaves
        elif _is_plain(value):
            facts[str(key)] = value
        else:
            raise DataError(
                "the prepared case has a value that a store does not keep",
                case_id=item.get("case_id"),
                found=f"{key}: {type(value).__name__}",
                expected="volumes (C, X, Y, Z), texts, numbers, and lists of these",
                hint="train with --store none",
            )
    return volumes, facts


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, dict)):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (str, bool, int, float))


def _described(thing: Any) -> Any:
    """Return plain values that tell a transform from any that would give something else: its class and its state.

    Raises:
        UsageError: it holds what cannot be told from others, such as a lambda.
    """
    if thing is None or (isinstance(thing, (str, bool, int, float)) and not isinstance(thing, Enum)):
        return thing
    if isinstance(thing, Mapping):
        return {str(key): _described(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [_described(value) for value in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted(map(str, thing))
    if isinstance(thing, (np.ndarray, np.generic, torch.Tensor)):
        return [str(thing.dtype), thing.tolist()]
    if isinstance(thing, (torch.dtype, torch.device, np.dtype, Enum)):
        return str(thing)
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    module = getattr(thing, "__module__", type(thing).__module__)
    if isinstance(thing, (type, types.FunctionType, types.BuiltinFunctionType)):
        if "<" not in name:  # no lambda, and nothing that is defined within a function
            return f"{module}.{name}"
    elif hasattr(thing, "__dict__") and type(thing).__module__.partition(".")[0] in ("monai", "segpipe"):
        state = {name: value for name, value in vars(thing).items() if name not in OF_A_CALL}
        return {"class": f"{module}.{type(thing).__qualname__}", "state": _described(state)}
    raise UsageError(
        "a transform cannot be told from others, so its result cannot be kept in a store",
        found=f"{module}.{name}",
        expected="classes of MONAI and segpipe, with plain values",
        hint="train with --store none",
    )
