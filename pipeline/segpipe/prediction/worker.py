"""The process that holds the model, spoken to in JSON lines; `segpipe.prediction.client` starts it.

    {"op": "load", "recipe": {...}, "terms": ...}    -> {"ok": true, "device": ..., "vetting": {...}, ...}
    {"op": "segment", "paths": [...], "out": FILE}   -> {"ok": true, "voxels": ..., "seconds": ..., ...}
        with "beside": {"probabilities": FILE, "single": [[CHANNEL, FILE], ...], "entropy": FILE} these are written too
        with "key": KEY, where the case may have been read ahead under that name
        with "dicom": {"series": ..., "formats": [...], ...} the case is that series, and written as DICOM as well
    {"op": "ahead", "key": KEY, "paths": [...], "series": null or ..., "most_bytes": ...}
        is answered by nothing: the case is read while the one before it is computed, if both fit
    what fails                                       -> {"ok": false, "error": {...}, "stop": whether to go on}

It is apart from the batch so that a crash in native code, or the kernel for want of memory, ends one case only.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from segpipe import errors
from segpipe.common.files import cannot_write
from segpipe.common.processes import die_with_parent
from segpipe.errors import SegpipeError, UsageError, first_cause

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from segpipe.dicom import Series
    from segpipe.inference import CaseInput, Prefetcher, Segmenter


def main(vet: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests until the other side closes its pipe.

    Args:
        vet: is given the recipe and the terms before anything of the bundle is executed; what it says goes into the
            answer, and what it raises is the answer.
    """
    requests, replies = _claim_pipes()
    die_with_parent()
    segmenter: Segmenter | None = None
    asked = _Asked(requests)
    for request in asked:
        try:
            if request["op"] == "load":
                vetting = vet(request["recipe"], request["terms"])
                segmenter, reply = _load(request["recipe"])
                asked.ahead = segmenter.prefetcher
                reply["vetting"] = vetting
            elif segmenter is None:
                raise SegpipeError("the worker was asked to segment before it was given a model")
            else:
                reply = _segment(segmenter, request)
        except _CannotWriteError as error:
            reply = _failure(error.cause, stop=True)
        except SegpipeError as error:
            reply = _failure(error)
        except Exception as error:  # noqa: BLE001 - one bad case never stops the rest
            reply = _failure(_unexpected(error, may_quote="dicom" not in request))
        finally:
            if asked.ahead is not None:
                asked.ahead.end()
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


class _Asked:
    """Requests in order; what is to be read ahead is read at once, in the thread that listens."""

    def __init__(self, stream: IO[str]) -> None:
        self.ahead: Prefetcher | None = None
        self._requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(stream,), daemon=True).start()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (request := self._requests.get()) is not None:
            yield request

    def _listen(self, stream: IO[str]) -> None:
        try:
            for line in stream:
                request = json.loads(line)
                if request["op"] != "ahead":
                    if self.ahead is not None:
                        self.ahead.expect()
                    self._requests.put(request)
                elif self.ahead is not None:
                    self.ahead.read(request["key"], partial(_case_of, request), request["most_bytes"])
        finally:
            self._requests.put(None)


def _case_of(request: dict[str, Any]) -> CaseInput:
    from segpipe.dicom import from_plain

    return from_plain(request["series"]) if request["series"] else request["paths"]


class _CannotWriteError(Exception):
    def __init__(self, cause: SegpipeError) -> None:
        self.cause = cause


def _claim_pipes() -> tuple[IO[str], IO[str]]:
    """Take the pipes for the protocol alone: what libraries print goes to standard error."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, replies


def _load(recipe: dict[str, Any]) -> tuple[Segmenter, dict[str, Any]]:
    import monai
    import nibabel
    import numpy
    import torch

    from segpipe import __version__
    from segpipe.inference import BundleFiles, ModelOptions, Recipe, Segmenter

    labels = {int(value): name for value, name in recipe.pop("labels").items()}
    model = ModelOptions(**recipe.pop("options"))
    ensemble = tuple(BundleFiles(**files) for files in recipe.pop("ensemble"))
    segmenter = Segmenter(Recipe(labels=labels, options=model, ensemble=ensemble, **recipe))
    versions = {"segpipe": __version__, "python": platform.python_version()}
    versions |= {module.__name__: module.__version__ for module in (monai, torch, numpy, nibabel)}
    about = {
        "device": str(segmenter.device),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "engine": segmenter.engine,
        "engine_reasons": list(segmenter.engine_reasons),
        "runtime": segmenter.runtime.name,
        "runtime_reasons": list(segmenter.runtime.reasons),
    }
    return segmenter, {"ok": True, **about}


def _segment(segmenter: Segmenter, request: dict[str, Any]) -> dict[str, Any]:
    from segpipe.common.result_folder import SLICE
    from segpipe.dicom import from_plain
    from segpipe.inference import ExtraOutputs, along_ras, describe, save_slice, write_labels

    out, dicom, wanted = Path(request["out"]), request.get("dicom"), request.get("beside", {})
    beside = ExtraOutputs(wanted.get("probabilities"), dict(wanted.get("single", [])), wanted.get("entropy"))
    series = from_plain(dicom["series"]) if dicom else None
    try:
        with _given(request, series, segmenter.recipe.route, out) as given:
            result = segmenter.segment(given, beside, request.get("key"))
    except OSError as error:
        if not beside.files:
            raise
        raise _CannotWriteError(cannot_write(beside.files[0], error)) from error
    start = time.perf_counter()
    facts = describe(result.labels, result.grid.affine, segmenter.recipe.labels, result.regions)
    facts["flags"]["orientation_unknown"] = not result.grid.is_oriented
    files: dict[str, str] = {}
    not_written: dict[str, str] = {}
    try:
        if dicom and series and result.regions:
            not_written = dict.fromkeys(dicom["formats"], "its regions overlap, and these take one label map")
        elif dicom and series:
            files, not_written = _write_dicom(out.parent, dicom, series, result.labels, facts["volumes_ml"])
        if request.get("nifti", True) or not_written:
            write_labels(out, result.labels, result.grid, result.regions)
            files = {"nifti": out.name, **files}
        save_slice(out.with_name(SLICE), result.preview, result.labels, result.grid, result.regions)
    except OSError as error:
        raise _CannotWriteError(cannot_write(out, error)) from error
    except UsageError as error:
        raise _CannotWriteError(error) from error
    return {
        "ok": True,
        "shape": list(result.labels.shape),
        "spacing_mm": [round(edge, 6) for edge in result.grid.spacing_mm],
        "spacing_ras_mm": along_ras(result.grid.spacing_mm, result.grid),
        "intensity": result.preview.intensity,
        "regions": result.regions,
        **facts,
        "files": files,
        "not_written": not_written,
        "seconds": {**result.seconds, "write": round(time.perf_counter() - start, 3)},
    }


@contextmanager
def _given(request: dict[str, Any], series: Series | None, route: str, out: Path) -> Iterator[CaseInput]:
    """What to segment; where a bundle's own transforms read files, a series becomes one for the time being."""
    from segpipe.dicom import load_series, write_volume

    if series is None or route == "typed":
        yield request["paths"] if series is None else series
        return
    path = out.with_name(f".{series.case_id}.nii.gz")
    volume = load_series(series)
    try:
        write_volume(volume, path)
    except UsageError as error:
        raise _CannotWriteError(error) from error
    try:
        yield [str(path)]
    finally:
        path.unlink(missing_ok=True)


def _write_dicom(
    folder: Path, dicom: dict[str, Any], series: Series, labels: NDArray[np.uint8], volumes_ml: dict[str, float]
) -> tuple[dict[str, str], dict[str, str]]:
    from segpipe.dicom import AlgorithmInfo, label_infos, write_dicom

    names = {int(value): name for value, name in dicom["labels"].items()}
    infos, _ = label_infos(names, dicom["meaning"])
    algorithm = AlgorithmInfo(**dicom["algorithm"])
    return write_dicom(folder, dicom["formats"], series, labels, volumes_ml, infos, algorithm)


def _failure(error: SegpipeError, stop: bool = False) -> dict[str, Any]:
    kind = next(base.__name__ for base in type(error).__mro__ if base.__module__ == errors.__name__)
    parts = error.as_dict(with_path=True)
    return {"ok": False, "kind": kind, "reason": getattr(error, "reason", None), "error": parts, "stop": stop}


def _unexpected(error: BaseException, may_quote: bool) -> SegpipeError:
    """An error of ours; without the words of another one where they may quote a DICOM header."""
    sys.stderr.write(f"{type(error).__name__}: {error if may_quote else '(not quoted)'}\n")
    error = first_cause(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return SegpipeError("not enough memory for this case", hint="use a machine with more, or --device cpu")
    words = " ".join(str(error).split()) if may_quote else ""
    return SegpipeError("the case could not be computed", found=f"{type(error).__name__}: {words}".strip(": ")[:300])


if __name__ == "__main__":
    from segpipe.bundle import vet_recipe

    main(vet_recipe)
