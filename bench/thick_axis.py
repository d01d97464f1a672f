"""What is lost where slices lie far apart: brought closer by linear interpolation, or by repeating the nearest slice.

    python bench/thick_axis.py [--patients 6]

nnU-Net resamples such an axis apart from the others, by the nearest slice; ours takes one `Spacingd`, linear along all
axes. Organs are drawn in slices of 0.25 mm, averaged to slices of 5 mm as a scanner does, and brought to 2.5 mm by
stock MONAI both ways: linear by one `Spacingd`, the other by two, of which the first leaves the thick axis as it is.
Both are held against the slices of 2.5 mm that the scanner would have given: root mean square difference in HU, in the
body and within 5 mm of an organ's surface. Labels are the nearest slice's in both.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _organs import scan
from monai.data import MetaTensor
from monai.transforms import Compose, Spacing
from numpy.typing import NDArray
from scipy import ndimage

FINE, THIN, THICK = 0.25, 2.5, 5.0  # mm along the axis
PLANE, TO_PLANE = 1.6, 2.0  # mm within slices, before and after
SHAPE = (96, 96, 480)
NEAR = 5.0  # mm
CLASSES, STEP_HU = 8, 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=6)
    options = parser.parse_args()
    linear = Compose([Spacing((TO_PLANE, TO_PLANE, THIN), mode="bilinear")])
    apart = Compose([Spacing((TO_PLANE, TO_PLANE, -1), mode="bilinear"), Spacing((-1, -1, THIN), mode="nearest")])
    found = np.array([errors(patient, linear, apart) for patient in range(options.patients)])
    print(f"{options.patients} patients, slices of {THICK} mm brought to {THIN} mm; root mean square difference in HU")
    for index, where in enumerate(("in the body", "near an organ's surface")):
        one, other = found[:, 0, index], found[:, 1, index]
        print(f"{where}: linear {one.mean():.2f}, nearest slice {other.mean():.2f}", end="; ")
        print(f"linear is nearer in {(one < other).sum()} of {len(one)} patients")


def errors(patient: int, *ways: Compose) -> list[list[float]]:
    """Return for each way its error in the body and near a surface."""
    _, label = scan(patient, CLASSES, SHAPE, (PLANE, PLANE, FINE))
    signal = (40 + STEP_HU * label).astype(np.float32)
    surface = ndimage.maximum_filter(label, 3) != ndimage.minimum_filter(label, 3)
    reach = [2 * round(NEAR / edge) + 1 for edge in (PLANE, PLANE, FINE)]
    near = ndimage.maximum_filter(surface, reach).astype(np.float32)
    within_slices = Spacing((TO_PLANE, TO_PLANE, -1), mode="bilinear")
    truth, marked = (within_slices(averaged(values, THIN)) for values in (signal, near))
    found = []
    for way in ways:
        image = way(averaged(signal, THICK))
        slices = min(image.shape[3], truth.shape[3])
        assert torch.allclose(image.affine, truth.affine), "the same places"
        squares = np.asarray(image[0, ..., :slices] - truth[0, ..., :slices]) ** 2
        body, edges = squares[..., 1:-1], np.asarray(marked[0, ..., 1 : slices - 1]) > 0
        found.append([float(np.sqrt(body.mean())), float(np.sqrt(body[edges].mean()))])
    return found


def averaged(values: NDArray[np.float32], thickness: float) -> MetaTensor:
    """Return slices of so many mm, each the mean of the fine ones within it; the first lies where a thick one does."""
    count, first = round(thickness / FINE), round((THICK - thickness) / 2 / FINE)
    whole = (values.shape[2] - first) // count * count
    slices = values[..., first : first + whole].reshape(*values.shape[:2], -1, count).mean(-1)
    affine = np.diag([PLANE, PLANE, thickness, 1.0])
    affine[2, 3] = (THICK - FINE) / 2
    return MetaTensor(torch.from_numpy(slices)[None], affine=torch.from_numpy(affine))


if __name__ == "__main__":
    main()
