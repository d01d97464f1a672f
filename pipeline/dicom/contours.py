"""Contours of a mask's pixels along their edges, holes joined by a channel of no width (a keyhole).

A polygon through pixel edges has exactly the area of its pixels, and every reader that asks whether a pixel's centre
lies inside gets the mask back. DICOM knows no holes: PS3.3 section C.8.8.6.3 joins an inner contour to the outer one by
a channel, which every reader understands, whether it unites the contours of a plane or counts them even and odd.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]
RIGHT_OF = {(1, 0): (0, 1), (0, 1): (-1, 0), (-1, 0): (0, -1), (0, -1): (1, 0)}
EDGES = (  # direction of walking, the neighbour that is outside, the corner where the edge of pixel (0, 0) starts
    ((1, 0), (0, -1), (0, 0)),
    ((0, 1), (1, 0), (1, 0)),
    ((-1, 0), (0, 1), (1, 1)),
    ((0, -1), (-1, 0), (0, 1)),
)


def contours(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Closed polygons around a mask's pixels, one for each part that hangs together by edges.

    Args:
        mask: (C, R).

    Returns:
        Each (N, 2) corners, the first not repeated, on the grid of pixel corners: pixel ``(i, j)`` covers ``i`` to
        ``i + 1`` and ``j`` to ``j + 1``.
    """
    loops = _loops(mask)
    corners = {point for loop in loops for point in loop}
    holes_at: dict[Point, list[list[Point]]] = {}
    found = []
    for loop in reversed(loops):  # a hole is joined to what starts further left, so it comes first
        whole = []
        for point in loop:
            whole.append(point)
            for hole in holes_at.get(point, ()):
                whole += [*hole, hole[0], point]
        if _area(loop) > 0:
            found.append(np.array(_corners(whole)))
        else:
            holes_at.setdefault(_left_of(loop[0], corners), []).append(whole)
    return found[::-1]


def _loops(mask: NDArray[np.bool_]) -> list[list[Point]]:
    """Boundaries as closed walks over pixel corners, the mask on the right; each starts at its least corner.

    Outlines go from (1, 0) to (0, 1), holes the other way. Where pixels touch at a corner only, the walk turns right,
    so that they stay apart. The least corner that is left over never is such a one, so a walk ends where it began.
    """
    ways = _edges(mask)
    loops = []
    for first in sorted(ways):
        if first not in ways:
            continue
        loop, at, heading = [], first, ways[first][0]
        while at in ways:
            onward = ways[at]
            heading = onward[0] if len(onward) == 1 else RIGHT_OF[heading]
            onward.remove(heading)
            if not onward:
                del ways[at]
            loop.append(at)
            at = (at[0] + heading[0], at[1] + heading[1])
            if at == first:
                break
        loops.append(loop)
    return loops


def _edges(mask: NDArray[np.bool_]) -> dict[Point, list[Point]]:
    """Every edge between mask and not mask: the corner where it starts to the directions that lead on."""
    padded = np.pad(mask, 1)
    ways: dict[Point, list[Point]] = {}
    for direction, (di, dj), start in EDGES:
        outside = ~np.roll(padded, (-di, -dj), axis=(0, 1))
        for i, j in (np.argwhere(padded & outside) - 1 + start).tolist():
            ways.setdefault((i, j), []).append(direction)
    return ways


def _left_of(point: Point, corners: set[Point]) -> Point:
    """The next boundary corner to the left of a hole's least corner; between them lies mask on both sides."""
    i, j = point[0] - 1, point[1]
    while (i, j) not in corners:
        i -= 1
    return i, j


def _area(loop: list[Point]) -> float:
    """Signed (shoelace formula); positive for an outline."""
    points = np.array(loop)
    following = np.roll(points, -1, axis=0)
    return float((points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]).sum()) / 2


def _corners(loop: list[Point]) -> list[Point]:
    """The walk without the points that lie on a straight way.

    It ends at the least corner, so that what closes it runs along i: some readers forget a closing side, which there
    bounds nothing from left or right.
    """
    ways = [np.sign(np.subtract(b, a)).tolist() for a, b in itertools.pairwise([loop[-1], *loop, loop[0]])]
    turns = zip(loop, itertools.pairwise(ways), strict=True)
    corners = [point for point, (before, after) in turns if before != after]
    return corners[1:] + corners[:1]
