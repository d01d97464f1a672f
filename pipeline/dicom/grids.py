"""Slices of one series that differ in matrix or orientation: a volume and some scouts, or no volume at all.

Scouts are often unmarked: one to three slices in other planes. They are set aside, refused on their own, only where
the rest is a whole regular volume of at least three times as many slices and no stray slice lies where a slice of
that volume would be. Everything else is refused whole: the larger part of a mixed series is never taken for all of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from pipeline.dicom.geometry import Array, judge
from pipeline.dicom.slices import Group, Name, Slice, slice_name, stack_of

MOST_STRAYS = 3
SLICES_A_STRAY = 3
SAME_DIRECTION = 1e-3  # of a component: 0.4 mm across 400 mm, which the judgement in mm then sees
SAME_SPACING = 1e-3  # relative


def one_grid(group: Group, name: Name) -> list[Group]:
    """A group whose slices share matrix, spacing and orientation, and its strays; or the whole group refused."""
    parts = sorted(_parts(group.slices), key=len, reverse=True)
    if len(parts) == 1:
        return [group]
    main, strays = parts[0], parts[1:]
    count = sum(len(stray) for stray in strays)
    turned = [stray for stray in strays if _direction_differs(main[0], stray[0])]
    few = count <= MOST_STRAYS and len(main) >= SLICES_A_STRAY * count
    if len(turned) == len(strays) and few:
        affine = judge(stack_of(main), str).affine_lps
        if affine is not None and not any(_belongs(part, affine, main) for stray in strays for part in stray):
            note = (
                f"{count} slice(s) of the series lie in another plane: taken for scouts, refused on their own"
            )
            return [
                group.part(main, "", note),
                *(
                    _stray(group, stray, number, len(main), name)
                    for number, stray in enumerate(strays, start=1)
                ),
            ]
    other = (turned or strays)[0][0]
    return [_mixed(group, main, other, bool(turned), name)]


def _parts(slices: Sequence[Slice]) -> list[list[Slice]]:
    alike: dict[tuple[object, ...], list[Slice]] = defaultdict(list)
    for part in slices:
        alike[part.header.rows, part.header.columns, part.frame.spacing, part.frame.orientation].append(part)
    parts: list[list[Slice]] = []
    for exact in sorted(alike.values(), key=len, reverse=True):
        near = (
            part
            for part in parts
            if not (_matrix(part[0], exact[0]) or _direction_differs(part[0], exact[0]))
        )
        if (same := next(near, None)) is not None:
            same += exact
        else:
            parts.append(exact)
    return parts


def _matrix(one: Slice, other: Slice) -> str:
    """How two slices differ in matrix or spacing; empty where they do not."""
    first, second = ((part.header.columns, part.header.rows) for part in (one, other))
    if first != second:
        return "{} x {} pixels, expected {} x {}".format(*second, *first)
    spacings = np.array([one.frame.spacing, other.frame.spacing], dtype=np.float64)
    if np.allclose(spacings[0], spacings[1], rtol=SAME_SPACING, atol=0):
        return ""
    return "pixels of {3:.4f} x {2:.4f} mm, expected {1:.4f} x {0:.4f} mm".format(*spacings.ravel())


def _direction_differs(one: Slice, other: Slice) -> bool:
    return not np.allclose(one.frame.orientation, other.frame.orientation, rtol=0, atol=SAME_DIRECTION)  # type: ignore[arg-type]


def _belongs(stray: Slice, affine: Array, main: Sequence[Slice]) -> bool:
    """Whether a slice lies where one of the volume's would: its first pixel at one, or its centre at the next one."""
    to_index = np.linalg.inv(affine)
    corners = stack_of([stray]).corners()[0]
    size = np.array([main[0].header.columns, main[0].header.rows])
    first = (to_index @ np.append(corners[0], 1.0))[:3]
    middle = (to_index @ np.append(corners.mean(axis=0), 1.0))[:3]
    if np.abs(first[:2]).max() <= 0.5:
        return True
    beyond = middle[2] < -0.5 or middle[2] > len(main) - 0.5
    on_step = (
        abs(middle[2] - round(middle[2])) < 0.1 and -MOST_STRAYS - 0.5 < middle[2] < len(main) + MOST_STRAYS
    )
    return bool(beyond and on_step and np.abs(middle[:2] - (size - 1) / 2).max() <= 0.5)


def _stray(group: Group, stray: list[Slice], number: int, main: int, name: Name) -> Group:
    words = (
        f"{slice_name(stray[0], name)}: {len(stray)} slice(s) in another plane than the other {main} of the series, "
        "expected one plane: taken for a scout. It is not needed; nothing to do."
    )
    reason = "single_slice" if len(stray) == 1 else "mixed_orientation"
    return group.part(stray, f"stray={number}").refused(reason, words)  # type: ignore[arg-type]


def _mixed(group: Group, main: list[Slice], other: Slice, turned: bool, name: Name) -> Group:
    advice = f"({len(main)} of {len(group.slices)} slices are like {slice_name(main[0], name)}). "
    advice += (
        "Put the slices of each kind into a folder of their own with UIDs of their own, or export them again."
    )
    if not turned:
        return group.refused("mixed_matrix", f"{slice_name(other, name)}: {_matrix(main[0], other)} {advice}")
    axes = [np.array(part.frame.orientation, dtype=np.float64) for part in (main[0], other)]
    normals = [np.cross(axis[:3], axis[3:]) for axis in axes]
    cosine = float(normals[0] @ normals[1] / np.linalg.norm(normals[0]) / np.linalg.norm(normals[1]))
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    words = (
        f"its normal is turned by {angle:.2f} degrees, expected 0"
        if angle > 0.05
        else "its axes are turned in their plane"
    )
    return group.refused("mixed_orientation", f"{slice_name(other, name)}: {words} {advice}")
