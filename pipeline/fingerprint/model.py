"""What a fingerprint holds; ids are the only names in it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
SAMPLES_PER_CASE = 10_000  # foreground voxels pooled per case and channel, as nnU-Net does
RAS_AXES = ("LR", "PA", "IS")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Intensity(_Model):
    """Intensities of a set of voxels; ``percentiles`` are those of `PERCENTILES`."""

    mean: float
    std: float
    percentiles: tuple[float, float, float, float, float]


class Channel(_Model):
    """One image channel: all voxels, and those inside foreground labels (None where there are none)."""

    dtype: str
    nonzero_fraction: float
    overall: Intensity
    foreground: Intensity | None


class LabelSize(_Model):
    """How much of a case carries a label."""

    voxels: int
    volume_ml: float


class CaseFingerprint(_Model):
    """One case. ``shape``, ``spacing_mm`` and the box follow the file's axes, ``*_ras`` those of RAS."""

    id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    channels: list[Channel]
    labels: dict[str, LabelSize]
    foreground_box_mm: tuple[float, float, float] | None

    @property
    def shape_ras(self) -> tuple[int, int, int]:
        """Voxels along right-left, anterior-posterior and superior-inferior."""
        x, y, z = (self.shape[axis] for axis in self._axes())
        return x, y, z

    @property
    def spacing_ras_mm(self) -> tuple[float, float, float]:
        """Voxel edges along right-left, anterior-posterior and superior-inferior."""
        x, y, z = (self.spacing_mm[axis] for axis in self._axes())
        return x, y, z

    def _axes(self) -> list[int]:
        return [next(axis for axis, code in enumerate(self.orientation) if code in pair) for pair in RAS_AXES]


class Summary(_Model):
    """The dataset as a whole; shapes and spacings are medians per axis in RAS order.

    ``foreground`` pools up to `SAMPLES_PER_CASE` evenly drawn voxels of each case, per channel.
    """

    cases: int
    median_shape_ras: tuple[float, float, float]
    median_spacing_ras_mm: tuple[float, float, float]
    orientations: dict[str, int]
    foreground: list[Intensity | None]
    median_volume_ml: dict[str, float]


class Fingerprint(_Model):
    """All that `pipeline.plan` goes by."""

    schema_version: Literal[1] = 1
    name: str
    modality: list[str]
    summary: Summary
    cases: list[CaseFingerprint]
