"""What the worker is told of a bundle: the plain values from which it makes the model, and what it vets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.predict.client import Worker
from pipeline.predict.ensemble import AXES
from pipeline.predict.outcome import Options

if TYPE_CHECKING:
    from pipeline.bundle import Bundle


def worker_for(bundle: Bundle, options: Options) -> Worker:
    """The worker of a bundle, not started yet."""
    typed = None if bundle.outside else bundle.preprocessing
    return Worker(
        {
            **_files_of(bundle),
            "channels": max(1, len(bundle.channels)),
            "labels": bundle.labels,
            "preprocessing": typed.to_config() if typed else None,
            "device": options.device,
            "threads": options.threads,
            "windowing": windowing_of(bundle),
            "cleanup": list(bundle.cleanup),
            "max_memory": options.max_memory,
            "runtime": options.runtime,
            "regions": bundle.regions,
            "mirror": [AXES.index(axis) for axis in options.mirror],
            "ensemble": [{**_files_of(each), **_identity(each)} for each in options.ensemble],
        },
        {
            "allow": list(options.allow),
            "run_unvetted_code": options.run_unvetted_code,
            **_identity(bundle),
        },
        options.max_case_memory,
    )


def windowing_of(bundle: Bundle) -> dict[str, Any] | None:
    """The fields of `pipeline.inference.streaming.Windowing`, None where the bundle is not of the closed form."""
    if bundle.outside:
        return None
    return {
        "roi_size": bundle.roi_size,
        "overlap": bundle.overlap,
        "batch": bundle.sw_batch_size,
        "mode": bundle.window_mode,
        "activation": bundle.activation,
    }


def _files_of(bundle: Bundle) -> dict[str, Any]:
    return {
        "root": str(bundle.root.absolute()),
        "inference": bundle.inference,
        "metadata": bundle.metadata,
        "weights": str(bundle.weights.absolute()),
    }


def _identity(bundle: Bundle) -> dict[str, str]:
    """What was hashed, and which of its files the inference config is."""
    return {
        "sha256": bundle.sha256,
        "config_file": bundle.config_file.relative_to(bundle.root).as_posix(),
    }
