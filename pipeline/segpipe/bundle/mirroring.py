"""Along which axes of the network's grid a prediction may mirror: those that the training mirrored, and no sides.

A network that never saw mirrored windows fails on them without a sign, and its mean with them does as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from segpipe.bundle.supported_subset import resolve
from segpipe.common.label_sides import labels_with_side, left_right_axes
from segpipe.errors import RefusedError
from segpipe.inference import ALL_AXES, AXES, ModelOptions

RISK = "the labels may be lost without a sign: --mirror-untrained (mirror_untrained=True) takes the risk"


class Opened(Protocol):
    """What of a `segpipe.Bundle` is judged."""

    @property
    def root(self) -> Path: ...
    @property
    def metadata(self) -> dict[str, Any]: ...
    @property
    def inference(self) -> dict[str, Any]: ...
    @property
    def labels(self) -> dict[int, str]: ...
    @property
    def unsupported(self) -> tuple[str, ...]: ...


def mirrored_in_training(metadata: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the axes that a bundle's training mirrored, None where the bundle does not say."""
    training = metadata.get("training")
    axes = training.get("mirror_axes") if isinstance(training, Mapping) else None
    known = isinstance(axes, list) and all(axis in AXES for axis in axes)
    return tuple(axis for axis in AXES if axis in axes) if isinstance(axes, list) and known else None


def judge_mirror(options: ModelOptions, bundles: Sequence[Opened]) -> ModelOptions:
    """Return the options with ``all`` as the axes that all bundles' trainings mirrored.

    Raises:
        RefusedError: an axis that swaps labels which have a side; or one that a training did not mirror or does not
            tell of, unless ``mirror_untrained`` is given.
    """
    if not options.mirror or any(bundle.unsupported for bundle in bundles):  # of such a bundle the segmenter speaks
        return options
    every = options.mirror == (ALL_AXES,)
    if not options.mirror_untrained:
        trained = _trained(bundles)
        if not trained or not (every or set(options.mirror) <= set(trained)):
            others = f"--mirror {','.join(trained)}" if trained else "predict without --mirror"
            raise RefusedError(
                "the bundle was not trained on windows mirrored like that",
                found=f"--mirror {','.join(options.mirror)}",
                expected=f"its training mirrored along {', '.join(trained) or 'no axis'}",
                hint=f"{others}; or, as {RISK}",
            )
        axes = trained if every else options.mirror
    else:
        axes = AXES if every else options.mirror
    _refuse_sides(axes, bundles[0])
    return replace(options, mirror=axes)


def untrained_note(options: ModelOptions, metadata: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what results say where windows were mirrored as no training is known to have; else nothing."""
    known = [set(mirrored_in_training(each) or ()) for each in metadata]
    axes = [axis for axis in options.mirror if not all(axis in each for each in known)]
    return (
        [f"mirrored along {', '.join(axes)}, which no record says of the training: labels may be lost"] if axes else []
    )


def _trained(bundles: Sequence[Opened]) -> tuple[str, ...]:
    records = [mirrored_in_training(bundle.metadata) for bundle in bundles]
    silent = next((bundle for bundle, record in zip(bundles, records, strict=True) if record is None), None)
    if silent is not None:
        raise RefusedError(
            "the bundle does not say along which axes its training mirrored",
            path=silent.root,
            expected="training.mirror_axes in configs/metadata.json, which `segpipe export` writes",
            hint=f"predict without --mirror; or, as {RISK}",
        )
    return tuple(axis for axis in AXES if all(axis in (record or ()) for record in records))


def _refuse_sides(axes: Sequence[str], bundle: Opened) -> None:
    sided = labels_with_side(bundle.labels.values())
    if not sided:
        return
    steps = resolve(bundle.inference.get("preprocessing"), bundle.inference)
    steps = steps.get("transforms") if isinstance(steps, dict) else steps
    swapping = [AXES[axis] for axis in left_right_axes(steps) if AXES[axis] in axes]
    if swapping:
        rest = [axis for axis in axes if axis not in swapping]
        raise RefusedError(
            "mirrored windows would swap left and right",
            found=f"--mirror {','.join(axes)}, and labels {', '.join(sided)}",
            expected=f"no mirroring along {', '.join(swapping)}",
            hint=f"give --mirror {','.join(rest)}" if rest else "predict without --mirror",
        )
