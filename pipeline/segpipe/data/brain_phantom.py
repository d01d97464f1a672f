"""Generated brains with a tumour: four MR channels, one of them on a grid of its own, and labels nested in each other.

The contrasts are those of a glioma in the four sequences of BraTS (Menze et al., IEEE TMI 34:1993, 2015,
doi:10.1109/TMI.2014.2377694): the enhancing rim is bright after gadolinium, oedema in T2 and FLAIR, and liquor in T2
alone. Anatomy and scanner are drawn as those of `segpipe.data.phantom`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.data.phantom import FloatArray, Waves, ellipsoid, scanner_affine, tissue_fractions, write_nifti

BRAIN_LABELS = {0: "background", 1: "necrosis", 2: "oedema", 3: "enhancing"}
BRAIN_REGIONS = {"whole tumour": [1, 2, 3], "tumour core": [1, 3], "enhancing tumour": [3]}
CHANNELS = ("T1Gd", "T1", "T2", "FLAIR")
THICK = "FLAIR"  # the channel with a grid of its own
SIGNAL = {  # of each tissue in `CHANNELS`
    "air": (0, 0, 0, 0),
    "scalp": (620, 600, 420, 330),
    "liquor": (110, 110, 800, 60),
    "brain": (420, 410, 350, 360),
    "oedema": (340, 320, 620, 680),
    "enhancing": (800, 380, 460, 480),
    "necrosis": (190, 190, 680, 420),
}
_TISSUES = tuple(SIGNAL)
_LABEL_OF_TISSUE = {name: value for value, name in BRAIN_LABELS.items() if value}


@dataclass(frozen=True, eq=False)
class BrainPhantom:
    """One generated case.

    Attributes:
        images: by the names of `CHANNELS`, (X, Y, Z) int16 each on its own grid, arbitrary units.
        affines: by the same names, (4, 4) float64, voxel index to RAS mm. All but `THICK` have one grid.
        label: (X, Y, Z) uint8 on the grid of the first channel, values of `BRAIN_LABELS`.
    """

    images: dict[str, NDArray[np.int16]]
    affines: dict[str, NDArray[np.float64]]
    label: NDArray[np.uint8]

    def write(self, case_id: str, images: str | Path, labels: str | Path) -> None:
        """Write ``IMAGES/CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ... and ``LABELS/CASE.nii.gz``.

        Raises:
            UsageError: a file cannot be written.
        """
        for index, name in enumerate(CHANNELS):
            write_nifti(Path(images) / f"{case_id}_{index:04}.nii.gz", self.images[name], self.affines[name])
        write_nifti(Path(labels) / f"{case_id}.nii.gz", self.label, self.affines[CHANNELS[0]])


def make_brain_phantom(
    seed: int,
    shape: tuple[int, int, int] = (44, 52, 40),
    spacing_mm: tuple[float, float, float] = (1.2, 1.2, 1.2),
    noise: float = 25.0,
) -> BrainPhantom:
    """Generate one case; one seed gives one case, bit for bit.

    Args:
        seed: of everything random.
        shape: voxels of the first three channels and the label.
        spacing_mm: their edges; the slices of `THICK` are three times as far apart, and tilted against theirs.
        noise: standard deviation of the complex noise (Rician in the magnitude), in signal units.

    >>> case = make_brain_phantom(0)
    >>> case.images["T1Gd"].shape, case.images["FLAIR"].shape, case.label.max()
    ((44, 52, 40), (44, 52, 13), 3)
    """
    rng = np.random.default_rng(seed)
    brain = _Brain(rng)
    affine = scanner_affine(rng, shape, spacing_mm, "LPS", 5.0)
    centre = (affine @ [*((np.array(shape) - 1) / 2), 1.0])[:3]
    radius_mm = 0.5 * float(np.min(np.array(shape) * spacing_mm)) * brain.size
    thick_shape = (shape[0], shape[1], shape[2] // 3)
    thick = scanner_affine(rng, thick_shape, (spacing_mm[0], spacing_mm[1], 3 * spacing_mm[2]), "LPS", 8.0)
    middle = (thick @ [*((np.array(thick_shape) - 1) / 2), 1.0])[:3]
    thick[:3, 3] = (thick[:3, 3] + centre - middle).astype(np.float32)  # the scanner did not move between two sequences

    fractions, body = tissue_fractions(brain.tissue, len(_TISSUES), shape, affine, centre, radius_mm)
    seen, at = tissue_fractions(brain.tissue, len(_TISSUES), thick_shape, thick, centre, radius_mm)
    images, affines = {}, {}
    for index, name in enumerate(CHANNELS):
        signal = np.array([SIGNAL[tissue][index] for tissue in _TISSUES]) * rng.normal(1, 0.04, len(_TISSUES))
        there, where = (seen, at) if name == THICK else (fractions, body)
        image = np.tensordot(signal.astype(np.float32), there, 1)
        image *= np.exp(Waves(rng, components=2, amplitude=0.1, frequency=0.25)(where, 0))
        real, imaginary = rng.normal(0, noise, (2, *image.shape)).astype(np.float32)
        images[name] = np.round(np.hypot(image + real, imaginary)).clip(0, 32767).astype(np.int16)
        affines[name] = thick if name == THICK else affine
    values = np.array([_LABEL_OF_TISSUE.get(tissue, 0) for tissue in _TISSUES])
    shares = np.stack([fractions[values == value].sum(axis=0) for value in BRAIN_LABELS])
    return BrainPhantom(images, affines, shares.argmax(axis=0).astype(np.uint8))


class _Brain:
    """Where each tissue is, in body coordinates: x right, y front, z up, the head's half height about 1."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.size = rng.uniform(0.95, 1.05)
        self.waves = Waves(rng, components=3, amplitude=0.04, frequency=0.5)
        self.head = np.array([0.86, 0.98, 0.96]) * rng.uniform(0.96, 1.04, 3)
        side = rng.choice((-1, 1))
        self.tumour = np.array([side * 0.32, 0.1, 0.1]) + rng.uniform(-0.12, 0.12, 3)
        self.oedema = rng.uniform(0.34, 0.42, 3)
        self.core = self.oedema * rng.uniform(0.62, 0.7)
        self.necrosis = self.core * rng.uniform(0.5, 0.6)
        self.ventricles = [np.array([x * 0.16, -0.02, 0.08]) + rng.normal(0, 0.02, 3) for x in (-1, 1)]

    def tissue(self, body: FloatArray) -> NDArray[np.uint8]:
        """Return the tissue number at each of (3, X, Y, Z) points; later tissues win over earlier ones."""
        point = body + np.stack([self.waves(body, axis) for axis in range(3)])
        origin = np.zeros(3)
        inside = {
            "scalp": ellipsoid(point, origin, self.head) < 0,
            "liquor": ellipsoid(point, origin, self.head * 0.9) < 0,
            "brain": ellipsoid(point, origin, self.head * 0.83) < 0,
        }
        ventricles = [ellipsoid(point, centre, np.array([0.08, 0.32, 0.16])) < 0 for centre in self.ventricles]
        tissue = np.zeros(point.shape[1:], np.uint8)
        for name, mask in inside.items():
            tissue[mask] = _TISSUES.index(name)
        tissue[np.logical_or(*ventricles) & inside["brain"]] = _TISSUES.index("liquor")
        for name, radii in (("oedema", self.oedema), ("enhancing", self.core), ("necrosis", self.necrosis)):
            tissue[(ellipsoid(point, self.tumour, radii) < 0) & inside["brain"]] = _TISSUES.index(name)
        return tissue
