"""Generated abdomens: volumes with known labels, for the demo and the tests.

The anatomy is a set of implicit functions in world coordinates (RAS+), bent by a smooth random deformation,
and sampled on a scanner's grid that is tilted against it. So the header matters as it does for real scans.
One seed gives one volume, bit for bit.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from segpipe.common.files import write_whole

PHANTOM_LABELS = {0: "background", 1: "liver", 2: "kidney", 3: "lesion"}
# Mean signal of each tissue. Spine and spleen look like kidney and liver but carry no label.
SIGNAL = {
    "air": 0.0,
    "fat": 700.0,
    "muscle": 240.0,
    "spleen": 430.0,
    "spine": 560.0,
    "liver": 410.0,
    "kidney": 570.0,
    "lesion": 250.0,
}
_TISSUES = tuple(SIGNAL)
_LABEL_OF_TISSUE = np.array(
    [next((value for value, name in PHANTOM_LABELS.items() if name == tissue), 0) for tissue in _TISSUES], np.uint8
)

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Phantom:
    """One generated case.

    Attributes:
        image: (X, Y, Z) int16, arbitrary units as in MRI.
        label: (X, Y, Z) uint8, values of `PHANTOM_LABELS`.
        affine: (4, 4) float64, voxel index to RAS mm.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]

    def write(self, image_path: str | Path, label_path: str | Path | None = None) -> None:
        """Write both as NIfTI; see `write_nifti`."""
        write_nifti(image_path, self.image, self.affine)
        if label_path is not None:
            write_nifti(label_path, self.label, self.affine)


def make_phantom(
    seed: int,
    shape: tuple[int, int, int] = (48, 48, 32),
    spacing_mm: tuple[float, float, float] = (1.2, 1.2, 2.5),
    orientation: str = "RAS",
    tilt_deg: float = 10.0,
    noise: float = 30.0,
    lesions: int | None = None,
    patient_seed: int | None = None,
) -> Phantom:
    """Generate one case.

    Args:
        seed: of everything random.
        shape: voxels along the stored axes; the anatomy is scaled to the shortest side.
        spacing_mm: voxel size along the stored axes.
        orientation: nearest axis codes of the stored axes, e.g. ``LPS``.
        tilt_deg: largest angle between the grid and the body.
        noise: standard deviation of the complex noise (Rician in the magnitude), in signal units.
        lesions: how many; None draws 1 to 3.
        patient_seed: of the anatomy alone, so that one patient can be scanned twice; None draws another patient.

    Returns:
        Image, label and affine.
    """
    rng = np.random.default_rng(seed)
    affine = scanner_affine(rng, shape, spacing_mm, orientation, tilt_deg)
    centre = affine @ [*((np.array(shape) - 1) / 2), 1.0]
    anatomy = _Anatomy(rng if patient_seed is None else np.random.default_rng(patient_seed), lesions)
    radius_mm = 0.5 * float(np.min(np.array(shape) * spacing_mm)) * anatomy.size

    fractions, body = tissue_fractions(anatomy.tissue, len(_TISSUES), shape, affine, centre[:3], radius_mm)
    label = _majority(fractions)
    image = _magnetise(rng, fractions, body, noise)
    return Phantom(image, label, affine)


def tissue_fractions(
    tissue: Callable[[FloatArray], NDArray[np.uint8]],
    tissues: int,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    centre_mm: NDArray[np.float64],
    radius_mm: float,
) -> tuple[FloatArray, FloatArray]:
    """Sample an anatomy on a grid.

    Args:
        tissue: of (3, X, Y, Z) body coordinates the tissue's number.
        tissues: how many there are.
        shape: of the grid.
        affine: (4, 4) its voxel index to mm.
        centre_mm, radius_mm: origin and unit of body coordinates.

    Returns:
        (T, X, Y, Z) share of each tissue in each voxel, the mean of 2 x 2 x 2 samples: their partial volume; and
        (3, X, Y, Z) body coordinates of the last sample.
    """
    fractions = np.zeros((tissues, *shape), np.float32)
    offsets = (-0.25, 0.25)
    grid = [np.arange(size, dtype=np.float32) for size in shape]
    for offset in np.stack(np.meshgrid(offsets, offsets, offsets), -1).reshape(-1, 3):
        index = np.stack(np.meshgrid(*[g + o for g, o in zip(grid, offset, strict=True)], indexing="ij"))
        world = np.einsum("ij,jxyz->ixyz", affine[:3, :3], index) + affine[:3, 3, None, None, None]
        body = ((world - centre_mm[:, None, None, None]) / radius_mm).astype(np.float32)
        found = tissue(body)
        for number in range(tissues):
            fractions[number] += found == number
    fractions /= len(offsets) ** 3
    return fractions, body


def write_nifti(path: str | Path, array: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Write NIfTI (gzipped for ``.gz``) with qform and sform; equal arrays give equal bytes."""
    image = nib.Nifti1Image(array, affine)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
    image.set_qform(affine, code=1)  # type: ignore[no-untyped-call, unused-ignore]
    image.set_sform(affine, code=1)  # type: ignore[no-untyped-call, unused-ignore]
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    if str(path).endswith(".gz"):
        content = gzip.compress(content, compresslevel=4, mtime=0)
    with write_whole(path) as stream:
        stream.write(content)


class _Anatomy:
    """Where each tissue is, in body coordinates: x right, y front, z up, the trunk's half width about 1."""

    def __init__(self, rng: np.random.Generator, lesions: int | None) -> None:
        self.size = rng.uniform(0.92, 1.08)
        self.waves = Waves(rng, components=3, amplitude=0.05, frequency=0.55)
        self.trunk = np.array([0.96, 0.78]) * rng.uniform(0.94, 1.04, 2)
        self.liver = np.array([0.36, 0.12, 0.24]) + rng.normal(0, 0.04, 3)
        self.liver_radii = np.array([0.42, 0.46, 0.44]) * rng.uniform(0.85, 1.12, 3)
        self.lobe = self.liver + np.array([-0.40, 0.16, 0.08])
        self.kidneys = [np.array([side * 0.44, -0.30, -0.36]) + rng.normal(0, 0.04, 3) for side in (-1, 1)]
        self.kidney_radii = np.array([0.21, 0.21, 0.33]) * rng.uniform(0.88, 1.12, 3)
        self.spleen = np.array([-0.58, -0.10, 0.38]) + rng.normal(0, 0.04, 3)
        self.lesions = [
            (self.liver + rng.uniform(-0.45, 0.45, 3) * self.liver_radii, rng.uniform(0.15, 0.23, 3))
            for _ in range(int(rng.integers(1, 4)) if lesions is None else lesions)
        ]

    def tissue(self, body: FloatArray) -> NDArray[np.uint8]:
        """Return the tissue number at each point; later tissues win over earlier ones.

        Args:
            body: (3, X, Y, Z) body coordinates.

        Returns:
            (X, Y, Z) uint8, index into `SIGNAL`.
        """
        point = body + np.stack([self.waves(body, axis) for axis in range(3)])
        trunk = np.hypot(point[0] / self.trunk[0], point[1] / self.trunk[1])
        liver = ellipsoid(point, self.liver, self.liver_radii)
        liver = _smooth_union(liver, ellipsoid(point, self.lobe, self.liver_radii * 0.6))
        inside = {
            "fat": trunk < 1,
            "muscle": trunk < 0.9,
            "spleen": ellipsoid(point, self.spleen, np.array([0.2, 0.3, 0.26])) < 0,
            "spine": np.hypot(point[0] / 0.17, (point[1] + 0.45) / 0.17) < 1,
            "liver": liver < 0,
            "kidney": np.logical_or.reduce([self._kidney(point, centre) < 0 for centre in self.kidneys]),
        }
        tissue = np.zeros(point.shape[1:], np.uint8)
        for name, mask in inside.items():
            tissue[mask] = _TISSUES.index(name)
        for centre, radii in self.lesions:
            found = (ellipsoid(point, centre, radii) < 0) & (tissue == _TISSUES.index("liver"))
            tissue[found] = _TISSUES.index("lesion")
        return tissue

    def _kidney(self, point: FloatArray, centre: NDArray[np.float64]) -> FloatArray:
        """Return an ellipsoid with a dent, the hilum, on the side of the spine."""
        hilum = centre * np.array([0.55, 1.0, 1.0])
        dent = ellipsoid(point, hilum, self.kidney_radii * np.array([0.7, 0.7, 0.45]))
        return np.maximum(ellipsoid(point, centre, self.kidney_radii), -dent)


class Waves:
    """A smooth random field for each axis: a sum of sines of low frequency, so it is known at any point."""

    def __init__(self, rng: np.random.Generator, components: int, amplitude: float, frequency: float) -> None:
        self.wave = rng.normal(0, 2 * np.pi * frequency / np.sqrt(3), (3, components, 3)).astype(np.float32)
        self.phase = rng.uniform(0, 2 * np.pi, (3, components)).astype(np.float32)
        self.amplitude = rng.uniform(0.5, 1.5, (3, components)).astype(np.float32) * np.float32(amplitude)

    def __call__(self, body: FloatArray, axis: int) -> FloatArray:
        parts = zip(self.wave[axis], self.phase[axis], self.amplitude[axis], strict=True)
        return sum((a * np.sin(np.tensordot(w, body, 1) + p) for w, p, a in parts), np.zeros((), np.float32))


def ellipsoid(point: FloatArray, centre: NDArray[np.float64], radii: NDArray[np.float64]) -> FloatArray:
    """Return values negative inside and 0 on the surface, for (3, X, Y, Z) points."""
    away = [(point[axis] - np.float32(centre[axis])) / np.float32(radii[axis]) for axis in range(3)]
    return np.sqrt(away[0] ** 2 + away[1] ** 2 + away[2] ** 2) - np.float32(1)


def _smooth_union(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the lower of two implicit functions, blended where they are alike."""
    width = 0.15
    return (-width * np.logaddexp(-first / width, -second / width)).astype(np.float32)


def _majority(fractions: FloatArray) -> NDArray[np.uint8]:
    """Return the label with the largest share of each voxel, from (T, X, Y, Z) tissue fractions."""
    shares = np.stack([fractions[value == _LABEL_OF_TISSUE].sum(axis=0) for value in PHANTOM_LABELS])
    return shares.argmax(axis=0).astype(np.uint8)


def _magnetise(rng: np.random.Generator, fractions: FloatArray, body: FloatArray, noise: float) -> NDArray[np.int16]:
    """Turn fractions into a magnitude image: tissue signals, texture, bias field, Rician noise, the scanner's gain.

    Args:
        rng: source of randomness.
        fractions: (T, X, Y, Z) share of each tissue.
        body: (3, X, Y, Z) body coordinates.
        noise: standard deviation of the complex noise.
    """
    signals = np.array(list(SIGNAL.values())) * rng.normal(1, 0.05, len(SIGNAL))
    image = np.tensordot(signals.astype(np.float32), fractions, 1)
    image *= 1 + Waves(rng, components=4, amplitude=0.025, frequency=2.5)(body, 0)
    image *= np.exp(Waves(rng, components=2, amplitude=0.15, frequency=0.25)(body, 0))
    real, imaginary = rng.normal(0, noise, (2, *image.shape)).astype(np.float32)
    gain = np.float32(rng.uniform(0.7, 1.4))
    return np.round(gain * np.hypot(image + real, imaginary)).clip(0, 32767).astype(np.int16)


def scanner_affine(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    orientation: str,
    tilt_deg: float,
) -> NDArray[np.float64]:
    """Return a grid somewhere near the origin, tilted against the body; arguments as of `make_phantom`."""
    ornt = nib.orientations.axcodes2ornt(orientation)  # type: ignore[no-untyped-call, unused-ignore]
    axes = np.zeros((3, 3))
    for stored, (world, sign) in enumerate(ornt):
        axes[int(world), stored] = sign
    axis = rng.normal(size=3)
    angle = np.deg2rad(rng.uniform(-tilt_deg, tilt_deg))
    tilt = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = tilt @ axes @ np.diag(spacing_mm)
    affine[:3, 3] = rng.normal(0, 30, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine.astype(np.float32).astype(np.float64)  # as a NIfTI header keeps it
