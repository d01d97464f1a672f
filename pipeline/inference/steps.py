"""The closed list of deterministic transforms, each as a typed step with the arguments it may have.

A step is plain data: it names a stock MONAI transform and its arguments, imports nothing of MONAI, and gives
its config back unchanged. An argument that is not a field here is outside the list.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Interpolation = Literal["bilinear", "nearest"]
Padding = Literal["constant", "edge", "reflect"]
Triple = tuple[int, int, int]
FloatTriple = tuple[float, float, float]


class Step(BaseModel):
    """One transform: ``keys`` are the items of a case that it changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    name: ClassVar[str]
    target: str = Field(alias="_target_")
    keys: str | tuple[str, ...]
    allow_missing_keys: bool = False

    def to_config(self) -> dict[str, Any]:
        """The step as it was written: only what was given, with the spelling of its target."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Load(Step):
    """Read the file of each key."""

    name: ClassVar[str] = "LoadImaged"
    reader: Literal["NibabelReader", "ITKReader"] | None = None
    image_only: bool = True
    ensure_channel_first: bool = False


class ChannelFirst(Step):
    """Put the channels first: `(X, Y, Z)` to `(C, X, Y, Z)`."""

    name: ClassVar[str] = "EnsureChannelFirstd"
    channel_dim: Literal["no_channel"] | int | None = None


class Orientation(Step):
    """Turn and flip the axes to ``axcodes``, such as ``RAS``."""

    name: ClassVar[str] = "Orientationd"
    axcodes: Annotated[str, Field(pattern="^(?:[LR]|[PA]|[IS]){3}$")] | None = None
    as_closest_canonical: bool = False
    labels: tuple[tuple[str, str], tuple[str, str], tuple[str, str]] | None = None


class Spacing(Step):
    """Resample to ``pixdim`` in mm."""

    name: ClassVar[str] = "Spacingd"
    pixdim: FloatTriple
    mode: Interpolation | tuple[Interpolation, ...] = "bilinear"
    padding_mode: Literal["border", "zeros", "reflection"] = "border"
    align_corners: bool = False
    dtype: Literal["float32", "float64"] = "float64"


class CropForeground(Step):
    """Cut to the box of what is above 0 in ``source_key``, and ``margin`` voxels around it."""

    name: ClassVar[str] = "CropForegroundd"
    source_key: str
    margin: int | Triple = 0
    allow_smaller: bool = False
    k_divisible: int | Triple = 1


class SpatialPad(Step):
    """Pad to at least ``spatial_size`` voxels."""

    name: ClassVar[str] = "SpatialPadd"
    spatial_size: int | Triple
    method: Literal["symmetric", "end"] = "symmetric"
    mode: Padding | tuple[Padding, ...] = "constant"


class DivisiblePad(Step):
    """Pad until each size is a multiple of ``k``."""

    name: ClassVar[str] = "DivisiblePadd"
    k: int | Triple
    method: Literal["symmetric", "end"] = "symmetric"
    mode: Padding | tuple[Padding, ...] = "constant"


class ScaleRange(Step):
    """Map the intensities ``a_min``..``a_max`` to ``b_min``..``b_max``, cut off there with ``clip``."""

    name: ClassVar[str] = "ScaleIntensityRanged"
    a_min: float
    a_max: float
    b_min: float | None = None
    b_max: float | None = None
    clip: bool = False


class Normalise(Step):
    """Subtract ``subtrahend`` and divide by ``divisor``; by default the volume's mean and deviation."""

    name: ClassVar[str] = "NormalizeIntensityd"
    subtrahend: float | tuple[float, ...] | None = None
    divisor: float | tuple[float, ...] | None = None
    nonzero: bool = False
    channel_wise: bool = False


class EnsureType(Step):
    """Make each key a tensor."""

    name: ClassVar[str] = "EnsureTyped"
    data_type: Literal["tensor"] = "tensor"
    dtype: Literal["float32"] | None = None
    track_meta: bool | None = None


CLOSED_LIST: tuple[type[Step], ...] = (
    Load,
    ChannelFirst,
    Orientation,
    Spacing,
    CropForeground,
    SpatialPad,
    DivisiblePad,
    ScaleRange,
    Normalise,
    EnsureType,
)
