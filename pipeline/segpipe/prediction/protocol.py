"""What the worker is asked of a case beside its files, and what becomes of its answer.

What the worker is told of a bundle: the plain values from which it makes the model, and what it vets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.common.console import SCHEMA_VERSION
from segpipe.evaluation import far_from_training
from segpipe.prediction.cases import WorkItem
from segpipe.prediction.client import Worker
from segpipe.prediction.options import NO_DICOM_SOURCE, Options, about_model, extra_output_files, extra_output_request

if TYPE_CHECKING:
    from segpipe.bundle import Bundle


def require_codes(bundle: Bundle) -> None:
    """Read what the bundle says its labels mean in DICOM, before a case fails of it.

    Raises:
        DataError: it cannot be read.
    """
    from segpipe.dicom import label_infos

    label_infos(bundle.labels, _meaning(bundle))


def more_of_request(item: WorkItem, bundle: Bundle, options: Options, into: Path) -> dict[str, Any]:
    """The part of a request to `segpipe.prediction.worker` that not every case has."""
    more: dict[str, Any] = {"key": item.id}
    if beside := extra_output_request(bundle, options, into):
        more["beside"] = beside
    if item.series is not None:
        from segpipe.dicom import as_plain

        formats = options.formats_of(item)
        more["nifti"] = "nifti" in formats
        more["dicom"] = {
            "series": as_plain(item.series),
            "formats": [name for name in formats if name != "nifti"],
            "labels": bundle.labels,
            "meaning": _meaning(bundle),
            "algorithm": {"name": bundle.name, "version": bundle.version, "bundle_sha256": bundle.sha256},
        }
    return more


def result_of(
    item: WorkItem, answer: Mapping[str, Any], bundle: Bundle, options: Options, about: Mapping[str, Any]
) -> dict[str, Any]:
    """``result.json``.

    Args:
        item: the case.
        answer: of the worker.
        bundle: that it was segmented with.
        options: of the batch.
        about: what the worker said of itself.
    """
    facts = {name: value for name, value in answer.items() if name != "spacing_ras_mm"}
    far = far_from_training(bundle.metadata, answer.get("spacing_ras_mm"), answer.get("intensity"))
    facts["flags"] = {**answer["flags"], **far}
    if not item.is_dicom:
        wanted = options.formats_of(item)
        facts["not_written"] = {name: NO_DICOM_SOURCE for name in wanted if name != "nifti"}
    told = ("vetting", "engine", "engine_reasons", "runtime", "runtime_reasons", "device", "threads", "versions")
    return {
        "schema_version": SCHEMA_VERSION,
        "id": item.id,
        "bundle": bundle.facts,
        "route": "stock" if bundle.unsupported else "typed",
        "route_reasons": list(bundle.unsupported),
        "source": "dicom" if item.is_dicom else "nifti",
        "notes": list(item.series.notes) if item.series else [],
        **facts,
        "beside": extra_output_files(bundle, options),
        **about_model(options),
        **{name: about.get(name) for name in told},
    }


def _meaning(bundle: Bundle) -> dict[str, Any]:
    return {"name": bundle.name, "codes": bundle.metadata.get("codes")}


def worker_for(bundle: Bundle, options: Options) -> Worker:
    """The worker of a bundle, not started yet."""
    policy = {"allow": list(options.allow), "run_unvetted_code": options.run_unvetted_code}
    recipe = bundle.recipe(options.model, options.ensemble)
    identity = {"sha256": recipe.sha256, "config_file": recipe.config_file}
    return Worker(asdict(recipe), {**policy, **identity}, options.max_case_memory)
