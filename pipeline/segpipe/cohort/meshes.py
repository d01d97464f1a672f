"""Surfaces of labels as files of triangles, for whoever prints or looks at them elsewhere."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.common.files import write_bytes

MESHES = ("stl", "obj")
SPACE = "SPACE=LPS"  # as 3D Slicer reads it from a header


def write_meshes(
    folder: Path, masks: dict[str, NDArray[np.bool_]], affine: NDArray[np.float64], kind: Literal["stl", "obj"]
) -> dict[str, str]:
    """Write the surface of each label: marching cubes (Lewiner et al. 2003), not smoothed, mm of LPS.

    Args:
        folder: that the files are written to.
        masks: (X, Y, Z) by name of the label; an empty one has no surface.
        affine: (4, 4), voxel index to mm, RAS+.
        kind: of file.

    Returns:
        File names by label.

    Raises:
        UsageError: a file cannot be written.
    """
    written = {}
    for number, (name, mask) in enumerate(masks.items(), 1):
        if not mask.any():
            continue
        points, faces = _surface(mask, affine)
        file = f"surface_{number}.{kind}"
        write_bytes(folder / file, _stl(points, faces) if kind == "stl" else _obj(points, faces))
        written[name] = file
    return written


def _surface(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return points (P, 3) in mm of LPS and triangles (T, 3) that look outwards."""
    from skimage.measure import marching_cubes

    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    points = (vertices - 1) @ affine[:3, :3].T + affine[:3, 3]
    faces = faces[:, ::-1] if np.linalg.det(affine[:3, :3]) > 0 else faces
    return points * np.array([-1.0, -1.0, 1.0]), np.asarray(faces, np.int64)


def _stl(points: NDArray[np.float64], faces: NDArray[np.int64]) -> bytes:
    corners = points[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    kind = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    triangles = np.zeros(len(faces), kind)
    triangles["normal"], triangles["corners"] = normals, corners
    return f"segpipe {SPACE}".ljust(80).encode("ascii") + struct.pack("<I", len(faces)) + triangles.tobytes()


def _obj(points: NDArray[np.float64], faces: NDArray[np.int64]) -> bytes:
    lines = [f"# segpipe {SPACE}", *(f"v {x:.4f} {y:.4f} {z:.4f}" for x, y, z in points)]
    lines += [f"f {a} {b} {c}" for a, b, c in faces + 1]
    return ("\n".join(lines) + "\n").encode("ascii")
