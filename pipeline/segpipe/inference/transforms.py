"""A bundle's inference config: its deterministic transforms as typed data, and its parts as MONAI's objects.

`Preprocessing` is one list of transforms for training, validation and inference, of a closed subset: so the streaming
engine knows all that can stand there: each step names a stock MONAI transform and the arguments that it may have, and
gives its config back unchanged. What is outside is named by `UnsupportedTransform`, and runs through MONAI's own
transforms. Importing this module imports neither torch nor MONAI.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segpipe.errors import DataError, SegpipeError, UsageError, first_cause

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

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

    def to_config(self) -> dict[str, Any]:
        """Return the step as it was written: only what was given, with the spelling of its target."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class LenientStep(Step):
    """A step that can pass over items that a case does not have."""

    allow_missing_keys: bool = False


class Load(LenientStep):
    """Read the file of each key."""

    name: ClassVar[str] = "LoadImaged"
    reader: Literal["NibabelReader", "ITKReader"] | None = None
    image_only: bool = True
    ensure_channel_first: bool = False


class ChannelFirst(LenientStep):
    """Put the channels first: `(X, Y, Z)` to `(C, X, Y, Z)`."""

    name: ClassVar[str] = "EnsureChannelFirstd"
    channel_dim: Literal["no_channel"] | int | None = None


class Orientation(LenientStep):
    """Turn and flip the axes to ``axcodes``, such as ``RAS``."""

    name: ClassVar[str] = "Orientationd"
    axcodes: Annotated[str, Field(pattern="^(?:[LR]|[PA]|[IS]){3}$")] | None = None
    as_closest_canonical: bool = False
    labels: tuple[tuple[str, str], tuple[str, str], tuple[str, str]] | None = None


class Spacing(LenientStep):
    """Resample to ``pixdim`` in mm."""

    name: ClassVar[str] = "Spacingd"
    pixdim: FloatTriple
    mode: Interpolation | tuple[Interpolation, ...] = "bilinear"
    padding_mode: Literal["border", "zeros", "reflection"] = "border"
    align_corners: bool = False
    dtype: Literal["float32", "float64"] = "float64"


class CropForeground(LenientStep):
    """Cut to the box of what is above 0 in ``source_key``, and ``margin`` voxels around it."""

    name: ClassVar[str] = "CropForegroundd"
    source_key: str
    margin: int | Triple = 0
    allow_smaller: bool = False
    k_divisible: int | Triple = 1


class SpatialPad(LenientStep):
    """Pad to at least ``spatial_size`` voxels."""

    name: ClassVar[str] = "SpatialPadd"
    spatial_size: int | Triple
    method: Literal["symmetric", "end"] = "symmetric"
    mode: Padding | tuple[Padding, ...] = "constant"


class DivisiblePad(LenientStep):
    """Pad until each size is a multiple of ``k``."""

    name: ClassVar[str] = "DivisiblePadd"
    k: int | Triple
    method: Literal["symmetric", "end"] = "symmetric"
    mode: Padding | tuple[Padding, ...] = "constant"


class SplitChannels(LenientStep):
    """Take an image apart into its channels: ``image_0``, ``image_1`` and so on, for intensities of their own."""

    name: ClassVar[str] = "SplitDimd"
    dim: Literal[0] = 0
    keepdim: Literal[True] = True
    update_meta: bool = True


class ScaleRange(LenientStep):
    """Map the intensities ``a_min``..``a_max`` to ``b_min``..``b_max``, cut off there with ``clip``."""

    name: ClassVar[str] = "ScaleIntensityRanged"
    a_min: float
    a_max: float
    b_min: float | None = None
    b_max: float | None = None
    clip: bool = False


class Normalise(LenientStep):
    """Subtract ``subtrahend`` and divide by ``divisor``; by default the volume's mean and deviation."""

    name: ClassVar[str] = "NormalizeIntensityd"
    subtrahend: float | tuple[float, ...] | None = None
    divisor: float | tuple[float, ...] | None = None
    nonzero: bool = False
    channel_wise: bool = False


class JoinChannels(LenientStep):
    """Put channels that were taken apart together again, as the item ``image``."""

    name: ClassVar[str] = "ConcatItemsd"
    item: Literal["image"] = Field(alias="name")
    dim: Literal[0] = 0


class DropItems(Step):
    """Let the single channels go."""

    name: ClassVar[str] = "DeleteItemsd"


class EnsureType(LenientStep):
    """Make each key a tensor."""

    name: ClassVar[str] = "EnsureTyped"
    data_type: Literal["tensor"] = "tensor"
    dtype: Literal["float32"] | None = None
    track_meta: bool | None = None


SUPPORTED: tuple[type[Step], ...] = (
    Load,
    ChannelFirst,
    Orientation,
    Spacing,
    CropForeground,
    SpatialPad,
    DivisiblePad,
    SplitChannels,
    ScaleRange,
    Normalise,
    JoinChannels,
    DropItems,
    EnsureType,
)


PREFIX = "monai.transforms."
_BY_NAME = {kind.name: kind for kind in SUPPORTED}
_PLACE = {kind: place for place, kind in enumerate(SUPPORTED)}
_PLACE[Normalise] = _PLACE[ScaleRange]  # the two may stand in either order
SAVERS = ("SaveImage", "SaveImaged", "SaveImageD", "SaveImageDict")
S = TypeVar("S", bound=Step)


class UnsupportedTransform(UsageError):  # noqa: N818 - it is a finding about a config, often not a fault
    """A transform, an argument or an order that the supported subset does not have.

    Args:
        what: the transform, or the argument as ``Spacingd.diagonal``.
        why: one clause.
    """

    def __init__(self, what: str, why: str = "not in the closed list") -> None:
        super().__init__(
            f"deterministic transform {what}: {why}",
            expected=", ".join(_BY_NAME),
            hint="use a transform of the list, in its order, each at most once, with plain values",
        )
        self.what = what
        self.why = why

    def __reduce__(self) -> Any:
        return type(self), (self.what, self.why)


@dataclass(frozen=True)
class Preprocessing:
    """The deterministic transforms of a model, in order, each at most once.

    Attributes:
        steps: the transforms.
    """

    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, transforms: object) -> Preprocessing:
        """Read a list of dicts with ``_target_`` (``Spacingd`` or ``monai.transforms.Spacingd``).

        Raises:
            UnsupportedTransform: with the first transform or argument that is not in the list.
        """
        if not isinstance(transforms, Sequence) or isinstance(transforms, str) or not transforms:
            raise UnsupportedTransform("list", "must be a list of transforms with at least one entry")
        steps = tuple(_parse_step(transform) for transform in transforms)
        apart = any(isinstance(step, SplitChannels) for step in steps)
        seen: set[tuple[type[Step], str]] = set()
        last = -1
        for step in steps:
            items = _keys(step.keys) if apart and isinstance(step, (ScaleRange, Normalise)) else ("",)
            if seen & {(type(step), item) for item in items}:
                raise UnsupportedTransform(step.name, "stands twice")
            if _PLACE[type(step)] < last:
                raise UnsupportedTransform(step.name, "stands too late; the list has an order")
            seen |= {(type(step), item) for item in items}
            last = _PLACE[type(step)]
        if apart or any(isinstance(step, (JoinChannels, DropItems)) for step in steps):
            _require_joined(steps)
        return cls(steps)

    def to_config(self) -> list[dict[str, Any]]:
        """Return the list that `parse` was given."""
        return [step.to_config() for step in self.steps]

    def build(self) -> list[Any]:
        """Return the stock MONAI transforms behind reading and finding the channels (imports MONAI)."""
        return [build_step(step) for step in self.steps if not isinstance(step, (Load, ChannelFirst))]

    def why_not_streamed(self) -> str | None:
        """Say what in the transforms MONAI's own code alone does, not the streaming engine; None if nothing."""
        load, first, spacing = self.find(Load), self.find(ChannelFirst), self.find(Spacing)
        if load is None or load.reader == "ITKReader":
            return "LoadImaged: not read by nibabel"
        if first is None and not load.ensure_channel_first:
            return "EnsureChannelFirstd: absent"
        if first is not None and first.channel_dim is not None:
            return "EnsureChannelFirstd.channel_dim"
        if spacing is not None:
            if _of_image(spacing.mode, spacing.keys) != "bilinear" or spacing.padding_mode != "border":
                return "Spacingd: not bilinear with border padding"
            if spacing.dtype != "float64":
                return "Spacingd.dtype"
        of_others = next(
            (
                step.name
                for step in self.steps
                if not ("image" in _keys(step.keys) or isinstance(step, (JoinChannels, DropItems)))
                and self.channels_of(step) is None
            ),
            None,
        )
        return f"{of_others}: not for the image" if of_others else None

    def find(self, kind: type[S]) -> S | None:
        """Return the step of this kind, or None where it is absent."""
        return next((step for step in self.steps if isinstance(step, kind)), None)

    @property
    def intensity(self) -> tuple[ScaleRange | Normalise, ...]:
        """Intensity transforms in the order in which they are applied."""
        return tuple(step for step in self.steps if isinstance(step, (ScaleRange, Normalise)))

    def channels_of(self, step: Step) -> tuple[int, ...] | None:
        """Return the channels that a step changes, each by itself; None where it changes the image as a whole."""
        joined = self.find(JoinChannels)
        if joined is None or not isinstance(step, (ScaleRange, Normalise)):
            return None
        return tuple(_keys(joined.keys).index(key) for key in _keys(step.keys))


def build_step(step: Step) -> Any:
    """Return the stock MONAI transform of one step (imports MONAI)."""
    from monai import transforms

    arguments = {name: value for name, value in step.to_config().items() if name != "_target_"}
    return getattr(transforms, step.name)(**arguments)


def _require_joined(steps: Sequence[Step]) -> None:
    """Require that the channels are taken apart, changed, put together in their order, and let go.

    Raises:
        UnsupportedTransform: they are not.
    """
    kinds = (SplitChannels, JoinChannels, DropItems)
    found: dict[type[Step], tuple[str, ...]] = {type(step): _keys(step.keys) for step in steps if type(step) in kinds}
    missing = next((kind.name for kind in kinds if kind not in found), None)
    if missing is not None:
        raise UnsupportedTransform(missing, "is missing: SplitDimd, ConcatItemsd and DeleteItemsd go together")
    single = tuple(f"image_{channel}" for channel in range(len(found[JoinChannels])))
    changed = {key for step in steps if isinstance(step, (ScaleRange, Normalise)) for key in _keys(step.keys)}
    if found[SplitChannels] != ("image",) or found[JoinChannels] != single or len(single) < 2:
        raise UnsupportedTransform(JoinChannels.name, "must put image_0, image_1, ... together as they were")
    if set(found[DropItems]) != set(single):
        raise UnsupportedTransform(DropItems.name, "must name the channels that were taken apart")
    if not changed <= set(single):
        raise UnsupportedTransform(SplitChannels.name, "intensities of the whole image cannot be changed in between")


def _keys(keys: str | tuple[str, ...]) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else keys


def _of_image(value: str | tuple[str, ...], keys: str | tuple[str, ...]) -> str:
    """Return what an argument with a value per key says for the image."""
    if isinstance(value, str):
        return value
    return value[_keys(keys).index("image")] if len(value) > 1 and "image" in _keys(keys) else value[0]


def _parse_step(transform: object) -> Step:
    if not isinstance(transform, dict) or not isinstance(transform.get("_target_"), str):
        raise UnsupportedTransform(f"{transform!r:.60}", "must be a mapping with _target_")
    name = transform["_target_"].removeprefix(PREFIX)
    kind = _BY_NAME.get(name)
    if kind is None:
        raise UnsupportedTransform(transform["_target_"])
    try:
        return kind.model_validate_json(json.dumps(transform, allow_nan=False))
    except ValidationError as error:
        first = error.errors()[0]
        argument = f"{name}.{first['loc'][0]}" if first["loc"] else name
        why = "no such argument in the closed list" if first["type"] == "extra_forbidden" else first["msg"]
        raise UnsupportedTransform(argument, why) from error
    except (TypeError, ValueError) as error:
        raise UnsupportedTransform(name, f"not plain data: {error}") from error


def bundle_parser(root: str, config: Mapping[str, Any], device: str) -> ConfigParser:
    """Return MONAI's parser of a bundle's inference config, which saves nothing."""
    from monai.bundle import ConfigParser

    parser = ConfigParser(config={**without_savers(config), **elsewhere(config)})
    parser["bundle_root"] = root
    parser["device"] = device
    return parser


def parsed(parser: ConfigParser, id: str) -> Any:
    """Return what MONAI makes of an id of a bundle's config; a list of transforms is composed.

    Raises:
        DataError: there is no such id, or it cannot be built.
    """
    if id not in parser.config:
        raise DataError(
            f"the bundle's inference config has no {id!r}",
            found=sorted(parser.config),
            hint="it cannot be run case by case; run it with `python -m monai.bundle run`",
        )
    from monai.transforms import Compose

    try:
        value = parser.get_parsed_content(id)
    except Exception as error:
        raise DataError(f"the bundle's {id!r} cannot be built", found=root_cause(error)) from error
    return Compose(value) if isinstance(value, list) else value


def elsewhere(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the ids of a config that say where data and results lie, set to one folder that is not there.

    A bundle that writes there makes it.
    """
    folder = tempfile.mkdtemp(prefix="segpipe-stock-")
    Path(folder).rmdir()
    return {name: folder for name in ("dataset_dir", "output_dir", "run_dir") if name in config}


def without_savers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a config in which what writes images is switched off: results are written elsewhere, whole."""
    changed = copy.deepcopy(dict(config))
    for component in _mappings(changed):
        if short_name(component) in SAVERS:
            component["_disabled_"] = True
    return changed


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yield each mapping within a value."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _mappings(part)


def short_name(component: Mapping[str, Any]) -> str:
    """Return the name of a component of MONAI or torch, empty for others."""
    target = str(component.get("_target_", ""))
    return target.rsplit(".", 1)[-1] if "." not in target or target.startswith(("monai.", "torch.")) else ""


def root_cause(error: BaseException) -> str:
    """Say in one line what an error began with."""
    error = first_cause(error)
    if isinstance(error, SegpipeError):
        return error.message
    words = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(words[:2])}"[:300]
