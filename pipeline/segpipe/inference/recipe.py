"""What a segmenter is made from: a bundle's documents and the options of its model, as plain values, without torch.

An option of the model is one field of `ModelOptions` and one of `ModelKeywords`; `Segmenter` reads it from its recipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypedDict

from segpipe.errors import UsageError

RUNTIMES = ("auto", "torch", "openvino")
PRECISIONS = ("auto", "float32", "bfloat16")
AXES = ("x", "y", "z")
ALL_AXES = "all"
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


class ModelKeywords(TypedDict, total=False):
    """Options of a model as a user gives them.

    Attributes:
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda:N``.
        runtime: ``auto``, ``torch`` or ``openvino``.
        precision: that networks compute in: ``float32``, ``bfloat16``, or ``auto``, which takes bfloat16 only where the
            processor is fast with it and the bundle proves that its label maps stay as they are.
        threads: CPU threads; None takes the cores that may be used.
        mirror: axes of the network's grid along which windows are mirrored as well: ``x,y``, ``("x", "y")``, or
            ``all`` that the training mirrored.
        mirror_untrained: mirror also along axes that the training did not mirror, or that the bundle says nothing of.
        max_memory: memory that a case may take, in bytes or as ``4G``; None for what is free.
    """

    device: str
    runtime: str
    precision: str
    threads: int | None
    mirror: str | Sequence[str] | None
    mirror_untrained: bool
    max_memory: int | str | None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a model is run; attributes as of `ModelKeywords`, axes in their order or ``("all",)``, memory in bytes."""

    device: str = "auto"
    runtime: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    mirror: tuple[str, ...] = ()
    mirror_untrained: bool = False
    max_memory: int | None = None

    @classmethod
    def parse(
        cls, mirror: str | Sequence[str] | None = None, max_memory: int | str | None = None, **options: Any
    ) -> ModelOptions:
        """Judge the options as a user gives them.

        Raises:
            UsageError: no such runtime or axis, or no amount of memory.
        """
        return cls(mirror=parse_mirror(mirror), max_memory=parse_bytes(max_memory), **options)

    def __post_init__(self) -> None:
        if not isinstance(self.device, str):
            raise UsageError("no such device", found=repr(self.device), expected="auto, cpu or cuda:N")
        if self.runtime not in RUNTIMES:
            raise UsageError("no such runtime", found=self.runtime, expected=", ".join(RUNTIMES))
        if self.precision not in PRECISIONS:
            raise UsageError("no such precision", found=self.precision, expected=", ".join(PRECISIONS))
        if self.threads is not None and (isinstance(self.threads, bool) or not isinstance(self.threads, Integral)):
            raise UsageError("threads is not a whole number", found=repr(self.threads), expected="at least 1, or None")
        if self.threads is not None and self.threads < 1:
            raise UsageError("threads is too small", found=self.threads, expected="at least 1")


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A state dict as it was opened.

    Attributes:
        path: of the file.
        sha256: of its content; another one is not loaded.
    """

    path: str
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class BundleFiles:
    """What of a bundle is vetted, then executed.

    Attributes:
        root: the folder.
        inference: its inference config, not evaluated.
        weights: path of the state dict.
        metadata: its metadata, which on the stock route the config may refer to.
        config_file: where the inference config lies below the folder.
        sha256: names the content that was opened; a bundle of other content is not vetted.
        weights_sha256: of the state dict that was opened; another one is not loaded.
        members: where the bundle is an ensemble, the state dicts of its further networks, which are built alike.
    """

    root: str
    inference: dict[str, Any]
    weights: str
    metadata: dict[str, Any] = field(default_factory=dict)
    config_file: str = "configs/inference.json"
    sha256: str = ""
    weights_sha256: str = ""
    members: tuple[WeightsFile, ...] = ()

    @property
    def all_weights(self) -> tuple[WeightsFile, ...]:
        """All state dicts, one a network."""
        return WeightsFile(path=self.weights, sha256=self.weights_sha256), *self.members


@dataclass(frozen=True, kw_only=True)
class Recipe(BundleFiles):
    """What a segmenter is made from.

    Attributes:
        name: of the bundle.
        version: of the bundle.
        channels: number of image channels.
        masks: how many of the last of them are masks, which may be constant.
        labels: label value to name.
        preprocessing: the transforms of the supported subset; None takes the stock route.
        windowing: the fields of `Windowing`; None takes the engine of MONAI.
        cleanup: MONAI transforms of the label map, for the streaming engine.
        regions: how many regions that may overlap the scores have, by the bundle's metadata; 0 for a label map.
        options: how the model is run.
        ensemble: further bundles whose scores are averaged with those of this one.
        first_stage: what gives the last channels, which a case's scans have not; None where they are all there.
    """

    name: str = ""
    version: str = ""
    channels: int
    labels: dict[int, str]
    preprocessing: list[dict[str, Any]] | None
    windowing: dict[str, Any] | None = None
    cleanup: tuple[dict[str, Any], ...] = ()
    regions: int = 0
    options: ModelOptions = field(default_factory=ModelOptions)
    ensemble: tuple[BundleFiles, ...] = ()
    masks: int = 0
    first_stage: Recipe | None = None

    @property
    def bundles(self) -> tuple[BundleFiles, ...]:
        """The bundles whose scores are averaged."""
        return self, *self.ensemble

    @property
    def vetted(self) -> tuple[BundleFiles, ...]:
        """All bundles that the recipe executes."""
        return *self.bundles, *(() if self.first_stage is None else self.first_stage.vetted)

    @property
    def scans(self) -> int:
        """Number of channels that a case brings."""
        return self.channels if self.first_stage is None else self.first_stage.channels

    @property
    def route(self) -> str:
        """``typed`` or ``stock``."""
        return "stock" if self.preprocessing is None else "typed"


def split_words(words: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return what a text with commas, or several, name, each once.

    Raises:
        UsageError: it is something else.
    """
    texts: list[Any] = [words] if isinstance(words, str) or not isinstance(words, Iterable) else list(words)
    if words is None:
        return ()
    if not all(isinstance(text, str) for text in texts):
        raise UsageError("not names", found=repr(words), expected="a text with commas, or a list of names")
    return tuple(dict.fromkeys(word.strip() for text in texts for word in text.split(",") if word.strip()))


def parse_mirror(axes: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return axes such as ``x,y`` in order, each once; ``("all",)`` where all are meant.

    Raises:
        UsageError: something else.
    """
    words = [word.lower() for word in split_words(axes)]
    wrong = next((word for word in words if word not in (*AXES, ALL_AXES)), None)
    if wrong is not None or (isinstance(axes, str) and not words):
        raise UsageError("no such axis to mirror", found=wrong or axes, expected="x, y, z or all")
    return (ALL_AXES,) if ALL_AXES in words else tuple(axis for axis in AXES if axis in words)


def parse_bytes(amount: int | str | None) -> int | None:
    """Return the bytes of an amount such as ``4G``, ``1500M`` or ``2.5GiB``, in powers of 1024; None for None.

    Raises:
        UsageError: it is no amount above 0.
    """
    if amount is None:
        return None
    match = AMOUNT.fullmatch(str(amount).strip())
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if size <= 0:
        raise UsageError("not an amount of memory", found=amount, expected="a number with K, M, G or T, e.g. 4G")
    return size
