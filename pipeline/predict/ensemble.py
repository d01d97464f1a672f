"""Several bundles as one model, and mirrored windows: what has to agree, and what results say of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from pipeline.bundle import Bundle
    from pipeline.predict.outcome import Options

AXES = ("x", "y", "z")


def parse_mirror(text: str | None) -> tuple[str, ...]:
    """Axes of the network's grid such as ``x,y``, or ``all``; in order, each once.

    Raises:
        UsageError: something else.
    """
    words = [word.strip().lower() for word in (text or "").split(",") if word.strip()]
    odd = next((word for word in words if word not in (*AXES, "all")), None)
    if odd is not None or (text is not None and not words):
        raise UsageError("no such axis to mirror", found=odd or text, expected="x, y, z or all")
    return tuple(axis for axis in AXES if axis in words or "all" in words)


def require_agreement(bundle: Bundle, others: Sequence[Bundle]) -> None:
    """Refuse an ensemble whose scores cannot be averaged voxel by voxel and class by class.

    Raises:
        RefusedError: a bundle is not of the closed form, stands twice, or differs in what has to agree.
    """
    for number, one in enumerate([bundle, *others] if others else ()):
        if one.outside:
            raise RefusedError(
                "a bundle outside the closed form cannot be part of an ensemble", path=one.root,
                found="; ".join(one.outside), hint="predict with each bundle alone",
            )  # fmt: skip
        if one.sha256 in [before.sha256 for before in [bundle, *others][:number]]:
            raise RefusedError("the same bundle stands twice in the ensemble", path=one.root)
        for what, found, expected in zip(_AGREE, _agreeing(one), _agreeing(bundle), strict=True):
            if found != expected:
                raise RefusedError(
                    f"the bundles of an ensemble differ in their {what}", path=one.root, found=found,
                    expected=expected, hint="only folds or seeds of the same task can be averaged",
                )  # fmt: skip


_AGREE = ("labels", "channels", "preprocessing", "activation", "window", "post-processing")


def _agreeing(bundle: Bundle) -> tuple[Any, ...]:
    steps = bundle.preprocessing.to_config() if bundle.preprocessing else None
    return bundle.labels, bundle.channels, steps, bundle.activation, bundle.roi_size, bundle.cleanup


def about_model(options: Options) -> dict[str, Any]:
    """What ``result.json`` says of the model beside its first bundle."""
    return {"ensemble": [each.facts for each in options.ensemble], "mirror": list(options.mirror)}
