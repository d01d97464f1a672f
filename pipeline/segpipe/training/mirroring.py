"""What a training's random transforms do to left and right: tried on a probe, not read off their names.

The probe's label map numbers its voxels, so that what comes out says where each voxel came from. A local reflection of
space has a negative determinant, however the transform that made it is called and in whatever it is wrapped.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.common.console import quiet_libraries
from segpipe.common.label_sides import labels_with_side, left_right_axes
from segpipe.errors import SegpipeError, UsageError, first_cause
from segpipe.training.config_checks import REFERENCE, check_components

if TYPE_CHECKING:
    from monai.transforms import Compose

AXES = ("x", "y", "z")
PATCH, SHAPE, BASE = 16, (18, 19, 20), 32
TRIES = 64  # what is drawn once in 16 times is missed by one probe in 60
DRAWN = ("train::transforms", "batch_transforms", "in_channels")  # ids that say what is drawn
TURNED = -0.1  # cosine from which on an axis counts as reversed


@dataclass(frozen=True)
class Turns:
    """Into which directions a probe was turned.

    Attributes:
        matrices: (N, 3, 3) rotations and reflections, from voxels of the output to those of the input.
    """

    matrices: NDArray[np.float64]

    @property
    def mirrored(self) -> tuple[str, ...]:
        """Axes along which it was mirrored, with the others as they were."""
        cosines = np.diagonal(self.matrices, axis1=1, axis2=2)
        singly = [np.all(cosines * np.where(np.arange(3) == axis, -1, 1) > 0.5, 1).any() for axis in range(3)]
        return tuple(name for name, seen in zip(AXES, singly, strict=True) if seen)

    def swaps_sides(self, axis: int) -> bool:
        """Return whether what lies on one side along an axis also came to lie on the other.

        Either the axis was reversed, or one outcome is the mirror image of another one.
        """
        if (self.matrices[:, axis, axis] < TURNED).any():
            return True
        between = np.einsum("iab,jcb->ijac", self.matrices, self.matrices)
        mirror = np.diag(np.where(np.arange(3) == axis, -1.0, 1.0))
        return bool((np.abs(between - mirror).max((2, 3)) < 0.5).any())


def refuse_swapped_sides(config: Mapping[str, Any]) -> None:
    """Refuse a training that shows labels which have a side on the other one as well. Imports MONAI where they do.

    Raises:
        UsageError: naming labels and axes, or that the transforms cannot be tried.
    """
    sided = labels_with_side(dict.fromkeys([*config["labels"], *(config.get("regions") or ())]))
    if not sided:
        return
    check_components({name: config.get(name) for name in ("random_transforms", "batch_transforms")})
    try:
        turns = turns_in_training(config)
    except SegpipeError:
        raise
    except Exception as error:
        raise UsageError(
            "whether the random transforms swap left and right cannot be told: they fail on a probe volume",
            found=f"{type(cause := first_cause(error)).__name__}: {str(cause).strip()[:200]}",
            expected=f"transforms that run on one image and its label map, since {', '.join(sided)} have a side",
            hint="choose --augment light or none",
        ) from error
    axes = left_right_axes(config["deterministic_transforms"])
    swapped = [AXES[axis] for axis in axes if turns.swaps_sides(axis)]
    if swapped:
        raise UsageError(
            "mirroring left and right would teach wrong labels",
            found=f"labels {', '.join(sided)}, and transforms that swap the sides along {', '.join(swapped)}",
            hint="choose --augment light or none, or leave out of your own fragment what turns left to right",
        )


def mirrored_in_training(config: Mapping[str, Any]) -> list[str] | None:
    """Return the axes of the network's grid that a training mirrors, None where that cannot be told. Imports MONAI."""
    try:
        return list(turns_in_training(config).mirrored)
    except Exception:  # noqa: BLE001 - transforms of any kind; the training itself says what is wrong with them
        return None


def turns_in_training(config: Mapping[str, Any]) -> Turns:
    """Run a config's random transforms on a probe, again and again.

    Raises:
        Exception: whatever a transform raises that cannot work on the probe.
    """
    return _turns(json.dumps(_only(config, DRAWN), sort_keys=True))


def _only(config: Mapping[str, Any], ids: Iterable[str]) -> Mapping[str, Any]:
    """Return of a config what these ids refer to, directly or not: whatever else differs, the same is drawn."""
    kept: dict[str, Any] = {}
    seen: set[tuple[str, str]] = set()
    waiting = list(ids)
    while waiting:
        name, *parts = waiting.pop().replace("#", "::").split("::")
        part = parts[0] if parts and isinstance(config.get(name), dict) else ""
        if (name, part) in seen or name not in config or (part and part not in config[name]):
            continue
        seen.add((name, part))
        found = config[name][part] if part else config[name]
        if (name, "") in seen:
            kept[name] = config[name]
        else:
            kept[name] = {**kept.get(name, {}), part: found}
        text = json.dumps(found)
        if "%" in text or "@#" in text:  # of other files, or of places that are told by where they stand
            return config
        waiting += REFERENCE.findall(text)
    return kept


@functools.lru_cache(maxsize=8)
def _turns(text: str) -> Turns:
    config = json.loads(text)
    transforms, moves, channels = _random_transforms(config), _batch_transforms(config), int(config["in_channels"])
    found = [
        matrix
        for seed in range(TRIES)
        for case in _cases(transforms.set_random_state(seed=seed)(_probe(channels)))
        for matrix in _matrices(_moved(case, moves, seed))
    ]
    return Turns(np.array(found) if found else np.eye(3)[None])


def _random_transforms(config: Mapping[str, Any]) -> Compose:
    """Build what only the training does: all behind the check of the case, and what is random before it."""
    quiet_libraries()
    from monai.bundle import ConfigParser
    from monai.transforms import Compose, RandomizableTrait

    from segpipe.components import ValidateCased

    small = {**_shrunk(config), "patch_size": [PATCH] * 3}
    composed = ConfigParser(small).get_parsed_content("train::transforms")
    steps = list(composed.flatten().transforms)
    checks = [place for place, step in enumerate(steps) if isinstance(step, ValidateCased)]
    first = checks[-1] + 1 if checks else 0
    kept = [step for step in steps[:first] if isinstance(step, RandomizableTrait)] + steps[first:]
    kept = [step for step in kept if not type(step).__module__.startswith("monai.transforms.intensity.")]
    for step in kept:
        _draw_evenly(step)
    return Compose(kept, lazy=composed.lazy)


def _batch_transforms(config: Mapping[str, Any]) -> list[Any]:
    """Return what moves voxels of what a training does to a whole batch; drawn as often as not."""
    from monai.bundle import ConfigParser

    if not config.get("batch_transforms"):
        return []
    moves = [each for each in ConfigParser(dict(config)).get_parsed_content("batch_transforms") if each.moves]
    for each in moves:
        each.prob = min(each.prob, 0.5)
    return moves


def _moved(case: Mapping[str, Any], moves: list[Any], seed: int) -> Mapping[str, Any]:
    """Return a case after the transforms of its batch; there is no affine then, and its numbers tell."""
    if not moves:
        return case
    from segpipe.components import BatchAugmentation

    batch = BatchAugmentation(moves, seed)({key: case[key][None] for key in ("image", "label")})
    return {key: value[0] for key, value in batch.items()}


def _shrunk(node: Any) -> Any:
    """Replace sizes that are written out by that of the probe's patch, of which one is enough: that turns nothing."""
    if isinstance(node, dict):
        small = {key: _shrunk(value) for key, value in node.items()}
        sizes = {key: [PATCH] * 3 for key in ("spatial_size", "roi_size") if _is_size(node.get(key))}
        return {**small, **sizes, **({"num_samples": 1} if "num_samples" in node else {})}
    return [_shrunk(item) for item in node] if isinstance(node, list) else node


def _is_size(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(type(each) is int and each > 0 for each in values)


def _draw_evenly(step: Any) -> None:
    """Let what is rarely drawn be drawn as often as not, and each of several as often as the others."""
    from monai.transforms import Compose, RandomizableTransform

    if isinstance(step, RandomizableTransform) and 0 < step.prob < 1:
        step.prob = 0.5
    if isinstance(step, Compose):
        weights = getattr(step, "weights", None)
        if weights is not None:
            drawn = np.asarray(weights, float) > 0
            setattr(step, "weights", (drawn / drawn.sum()).tolist())  # noqa: B010 - SomeOf and OneOf alone have it
        for inner in step.transforms:
            _draw_evenly(inner)


def _probe(channels: int) -> dict[str, Any]:
    import torch
    from monai.data import MetaTensor

    places = np.indices(SHAPE)
    numbers = (places * np.array([1, BASE, BASE**2]).reshape(3, 1, 1, 1)).sum(0)
    label = MetaTensor(torch.from_numpy(numbers[None].astype(np.float32)), affine=torch.eye(4))
    image = MetaTensor(1 + label.as_tensor().expand(channels, *SHAPE) / BASE**3, affine=torch.eye(4))
    return {"case_id": "probe", "image": image, "label": label}


def _cases(outcome: Any) -> Iterator[Mapping[str, Any]]:
    """Yield each case of what a chain of croppings gives, which is a list of lists."""
    if isinstance(outcome, Mapping):
        yield outcome
    for item in outcome if isinstance(outcome, (list, tuple)) else ():
        yield from _cases(item)


def _matrices(case: Mapping[str, Any]) -> Iterator[NDArray[np.float64]]:
    """Yield how a case was turned: by the numbers of its voxels, and by the affine of image and label."""
    maps = [_by_numbers(np.asarray(case["label"], np.float64)[0])]
    maps += [
        np.asarray(case[key].affine, np.float64)[:3, :3] for key in ("image", "label") if hasattr(case[key], "affine")
    ]
    for matrix in maps:
        if matrix is not None and abs(np.linalg.det(matrix)) > 0.02:
            u, _, v = np.linalg.svd(matrix)
            yield u @ v


def _by_numbers(numbers: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the median change of place from voxel to voxel in the middle; None where voxels were mixed."""
    if min(numbers.shape) < 8 or np.mean(numbers != np.round(numbers)) > 0.05:
        return None
    whole = np.round(numbers).astype(np.int64)
    places = np.stack([whole // BASE**power % BASE for power in range(3)]).astype(float)
    quarter = [length // 4 for length in numbers.shape]
    inside = places[:, *(slice(step, 3 * step) for step in quarter)]
    columns = []
    for axis, step in enumerate(quarter, 1):
        ahead = np.take(inside, range(step, 2 * step), axis) - np.take(inside, range(step), axis)
        columns.append(np.median(ahead.reshape(3, -1), 1) / step)
    return np.stack(columns, 1)
