"""What is measured of a case, to be held against the cases that a model was made with.

Of the image, after normalisation: how large it is, the distribution of its values, how noisy and how smooth it is, and
what it looks like from afar. Of each label: size, shape, place, the values inside and around it, and how sure the
network is of it. All on the network's grid, so that a case is measured there as it was seen. And what each network
holds of the image in its bottleneck.

A feature's name says what it is of: ``image:NAME`` or ``LABEL:NAME``, where NAME stands in `KINDS`, or ``embedding
MEMBER:CHANNEL``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from segpipe.inference import Observation
from segpipe.quality.embedding import embedding_features

AXES = ("x", "y", "z")
SAMPLES = 500_000  # voxels, enough for percentiles
CELLS = 3  # an axis is cut into, for the look from afar
SHELL_MM = 4.0  # around a label, whose values are held against those inside
AT_ONCE = 1 << 18  # voxels that are looked at together, so that they stay in the cache
MOST_STEPS = 10  # of voxels to that distance, above which a distance transform is faster
IMAGE = "image"
Mask = NDArray[np.bool_]
Box = tuple[slice, ...]


@dataclass(frozen=True)
class Kind:
    """How a feature is compared and said.

    Attributes:
        words: what it is, as in "volume of Anterior".
        unit: in which it is given.
        log: whether its ratio counts, not its difference.
        least: spread below which a difference is nothing (in the logarithm where that counts).
    """

    words: str
    unit: str = ""
    log: bool = False
    least: float = 0.05


KINDS: dict[str, Kind] = {
    **{f"extent_{axis}": Kind(f"size along {axis}", "mm", log=True) for axis in AXES},
    **{f"p{share:02}": Kind(f"{share} % quantile of the values after normalisation") for share in (5, 25, 50, 75, 95)},
    "noise": Kind("noise against the spread of values", log=True),
    **{f"smooth_{axis}": Kind(f"likeness of neighbours along {axis}", least=0.01) for axis in AXES},
    **{
        f"cell_{x}{y}{z}": Kind(f"mean value in part {x + 1}, {y + 1}, {z + 1} of {CELLS} along x, y, z")
        for x in range(CELLS)
        for y in range(CELLS)
        for z in range(CELLS)
    },
    "volume": Kind("volume", "mL", log=True),
    "components": Kind("number of pieces", log=True, least=0.2),
    "sphericity": Kind("sphericity"),
    **{f"place_{axis}": Kind(f"place along {axis}, as a share of the image") for axis in AXES},
    **{f"offset_{axis}": Kind(f"distance along {axis} to the label before", "mm", least=0.5) for axis in AXES},
    "inside": Kind("mean value inside, after normalisation"),
    "inside_spread": Kind("spread of values inside", log=True),
    "contrast": Kind("mean value inside against around it"),
    "doubt": Kind("doubt of the network", log=True),
}


@cache
def kind_of(feature: str) -> Kind:
    """Return how a feature is compared: what stands behind the last colon of its name."""
    return KINDS[feature.rpartition(":")[2]]


def features_of(seen: Observation, labels: Mapping[int, str]) -> dict[str, float]:
    """Return the features of a case; of a label that is nowhere its volume alone, which is 0.

    Args:
        seen: while it was segmented.
        labels: value to name; 0, the background, is passed over.
    """
    found: dict[str, float] = {}
    for channel, values in enumerate(seen.image):
        group = IMAGE if len(seen.image) == 1 else f"{IMAGE} {channel}"
        found |= {f"{group}:{name}": value for name, value in _of_channel(values, seen.spacing_mm).items()}
    centre: NDArray[np.float64] | None = None
    boxes = _boxes(seen, [value for value in labels if value])
    for value, name in sorted(labels.items()):
        if value == 0:
            continue
        of_label, own = _of_label(seen, value, boxes.get(value))
        if own is not None and centre is not None:
            of_label |= {f"offset_{axis}": float(mm) for axis, mm in zip(AXES, own - centre, strict=True)}
        centre = own if own is not None else centre
        found |= {f"{name}:{feature}": amount for feature, amount in of_label.items()}
    measured = {name: round(value, 6) for name, value in found.items() if math.isfinite(value)}
    if all(np.isfinite(vector).all() for vector in seen.embedding):
        measured |= embedding_features(seen.embedding)
    return measured


def _of_channel(values: torch.Tensor, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Return the features of a channel (X, Y, Z) of the network's input."""
    found = {f"extent_{axis}": size * edge for axis, size, edge in zip(AXES, values.shape, spacing_mm, strict=True)}
    step = max(1, round((values.numel() / SAMPLES) ** (1 / 3)))
    sample = np.sort(values[::step, ::step, ::step].numpy(), axis=None)
    shares = (5, 25, 50, 75, 95)
    found |= {f"p{share:02}": value for share, value in zip(shares, _quantiles(sample, shares), strict=True)}
    rough, noise = float(values.var()), []
    for axis, name in enumerate(AXES):
        if values.shape[axis] < 3:
            continue
        difference, bent = _unlike_neighbours(values, axis)
        found[f"smooth_{name}"] = 1 - difference / (2 * rough) if rough > 0 else 0.0
        noise.append(bent / (0.6745 * math.sqrt(6)))
    found["noise"] = max(float(np.median(noise)) / math.sqrt(rough), 1e-6) if noise and rough > 0 else 1e-6
    if min(values.shape) >= CELLS:
        cells = torch.nn.functional.adaptive_avg_pool3d(values[None, None], CELLS)[0, 0]
        found |= {f"cell_{x}{y}{z}": float(cells[x, y, z]) for x, y, z in np.ndindex(CELLS, CELLS, CELLS)}
    return found


def _quantiles(ordered: NDArray[np.float32], shares: Sequence[int]) -> list[float]:
    """Return quantiles (in %) of sorted values, between two of them by linear interpolation."""
    places = [share / 100 * (len(ordered) - 1) for share in shares]
    pairs = [(int(place), min(int(place) + 1, len(ordered) - 1)) for place in places]
    return [
        float(ordered[low]) + (place - low) * (float(ordered[high]) - float(ordered[low]))
        for place, (low, high) in zip(places, pairs, strict=True)
    ]


def _unlike_neighbours(values: torch.Tensor, axis: int) -> tuple[float, float]:
    """Return the mean square of first differences along an axis, and the median of second ones without their sign."""
    bends = values.numel() // values.shape[axis] * (values.shape[axis] - 2)
    every, squares, done = max(1, bends // SAMPLES), 0.0, 0
    sampled = np.empty(-(-bends // every), np.float32)
    rows, beside = max(1, AT_ONCE * len(values) // values.numel()), 2 if axis == 0 else 0
    for first in range(0, len(values) - beside, rows):
        part = values[first : first + rows + beside]
        before, here, after = (part.narrow(axis, start, part.shape[axis] - 2) for start in range(3))
        squares += float((here - before).square_().sum())
        bent = (before - 2 * here).add_(after).abs_().flatten().numpy()
        sampled[-(-done // every) : -(-(done + len(bent)) // every)] = bent[-done % every :: every]
        done += len(bent)
    sampled.sort()
    return squares / bends, float(sampled[(len(sampled) - 1) // 2])


def _boxes(seen: Observation, values: Sequence[int]) -> dict[int, Box]:
    """Return where each label is, which is read once for all of them; regions, which overlap, one after the other."""
    from scipy import ndimage

    if seen.regions:
        found = [(value, ndimage.find_objects(seen.mask(value).view(np.uint8))) for value in values]
        return {value: boxes[0] for value, boxes in found if boxes and boxes[0] is not None}
    boxes = ndimage.find_objects(seen.labels, max(values, default=1))
    return {value: boxes[value - 1] for value in values if boxes[value - 1] is not None}


def _of_label(seen: Observation, value: int, tight: Box | None) -> tuple[dict[str, float], NDArray[np.float64] | None]:
    """Return the features of a label in a box, and the mm of its centre from the first voxel; None without one."""
    import cc3d

    edges = np.asarray(seen.spacing_mm)
    if tight is None:
        return {"volume": 0.0}, None
    margin = np.maximum(1, np.ceil(SHELL_MM / edges)).astype(int)
    wider = [(side, int(more)) for side, more in zip(tight, margin, strict=True)]
    box = tuple(slice(max(0, side.start - more), side.stop + more) for side, more in wider)
    part = np.ascontiguousarray(seen.mask(value, box))
    found = {"volume": int(np.count_nonzero(part)) * float(edges.prod()) / 1000}
    weights = [part.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    centre = np.array([np.average(np.arange(len(w)), weights=w) + box[a].start for a, w in enumerate(weights)])
    for axis, name in enumerate(AXES):
        found[f"extent_{name}"] = float((tight[axis].stop - tight[axis].start) * edges[axis])
        found[f"place_{name}"] = float((centre[axis] + 0.5) / seen.labels.shape[axis])
    found["components"] = float(cc3d.connected_components(part, connectivity=26, return_N=True)[1])
    found["sphericity"] = _sphericity(part, edges)
    shell = _around(part, edges)
    image = seen.image[(0, *box)].numpy()
    inside = image[part].astype(np.float64)
    found["inside"], found["inside_spread"] = float(inside.mean()), max(float(inside.std()), 1e-3)
    if shell.any():
        found["contrast"] = float(inside.mean() - image[shell].astype(np.float64).mean())
    channel = seen.channel(value)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = 2 * seen.sure[:, channel] / (seen.soft[:, channel] + seen.hard[:, channel])
    found["doubt"] = max(1 - float(np.nanmean(expected)), 1e-4)
    return found, centre * edges


def _around(part: Mask, edges: NDArray[np.float64]) -> Mask:
    """Return the voxels outside of a label that are at most `SHELL_MM` from the centre of one of its voxels.

    Some planes at a time, and where voxels are not small as the union of copies of the label, moved by each column of a
    ball: far less work and memory than a distance transform of the whole box, of which most is far from the label.
    """
    from scipy import ndimage

    reach = [int(SHELL_MM / edge) + 1 for edge in edges]
    columns = _columns(reach, edges) if max(reach) <= MOST_STEPS + 1 else None
    shell, rows = np.zeros_like(part), max(reach[0], AT_ONCE * len(part) // part.size)
    for first in range(0, len(part), rows):
        start = max(0, first - reach[0])
        near = part[start : first + rows + reach[0]]
        if not near.any():
            continue
        if columns is None:
            grown = ndimage.distance_transform_edt(~near, sampling=edges) <= SHELL_MM
        else:
            grown = _grown(near, columns, reach)
        kept = slice(first - start, first - start + rows)
        shell[first : first + rows] = grown[kept] & ~near[kept]
    return shell


def _columns(reach: Sequence[int], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many voxels of a ball there are along z, by their place along x and y."""
    steps = np.meshgrid(*(np.arange(-most, most + 1) for most in reach), indexing="ij")
    x, y, z = (np.square(each * edge) for each, edge in zip(steps, edges, strict=True))
    return np.asarray((np.sqrt(x + y + z) <= SHELL_MM).sum(axis=2))


def _grown(part: Mask, columns: NDArray[np.int64], reach: Sequence[int]) -> Mask:
    """Return the union of a mask's copies, moved by each offset of a convex body that is the same both ways.

    Args:
        part: (X, Y, Z).
        columns: (2 RX + 1, 2 RY + 1), how many offsets there are along z.
        reach: RX, RY, RZ.
    """
    grown, along = np.zeros_like(part), part.copy()
    for half in range((columns.max() + 1) // 2):
        if half:  # a voxel more to both sides
            along[..., half:] |= part[..., :-half]
            along[..., :-half] |= part[..., half:]
        for x, y in np.argwhere(columns == 2 * half + 1) - reach[:2]:
            (to_x, of_x), (to_y, of_y) = (_moved(int(by), size) for by, size in zip((x, y), part.shape, strict=False))
            grown[to_x, to_y] |= along[of_x, of_y]
    return grown


def _moved(by: int, size: int) -> tuple[slice, slice]:
    """Return into which part of an axis what is moved comes, and from which."""
    return slice(max(by, 0), max(0, size + min(by, 0))), slice(max(-by, 0), max(0, size - max(by, 0)))


def _sphericity(part: Mask, edges: NDArray[np.float64]) -> float:
    """Return the surface of a ball of the same volume against the surface of the voxels (Wadell 1935), 0 to 1."""
    volume, surface = np.count_nonzero(part) * edges.prod(), 0.0
    for axis in range(3):
        ends = (np.count_nonzero(part.take(place, axis)) for place in (0, -1))
        low, high = (part[(slice(None),) * axis + (side,)] for side in (slice(-1), slice(1, None)))
        surface += (np.count_nonzero(low != high) + sum(ends)) * edges.prod() / edges[axis]
    return float(math.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / surface)
