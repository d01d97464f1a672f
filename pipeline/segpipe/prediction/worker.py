"""The process that holds the model: it vets the bundles, then segments case after case, as `protocol` has it.

`segpipe.prediction.client` starts it, through `segpipe.common.isolation`. It is apart from the batch so that a crash in
native code, or the kernel for want of memory, ends one case only, and so that a bundle's code reaches nothing else.
"""

from __future__ import annotations

import os
import platform
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from segpipe import errors
from segpipe.common.files import cannot_write
from segpipe.common.left_out import BESIDE_MONAI, left_out
from segpipe.common.memory import keep_freed_memory
from segpipe.common.processes import end_with_parent
from segpipe.common.result_folder import NOT_ASKED_FOR, SEGMENTATION, SLICE
from segpipe.errors import SegpipeError, UsageError, first_cause
from segpipe.prediction.protocol import (
    CaseFiles,
    Failed,
    Isolated,
    Load,
    Loaded,
    Prefetch,
    Segment,
    Segmented,
    from_json,
    to_json,
)

if TYPE_CHECKING:
    from segpipe.inference import CaseInput, Prefetcher, Segmenter


def main(_request: dict[str, Any], isolation: dict[str, str | None]) -> None:
    """Say how far this process is isolated, then answer requests until the other side closes its pipe."""
    end_with_parent()  # once more, as a change of rights may have taken it back
    requests, replies = _claim_pipes()
    replies.write(to_json(Isolated(**isolation)))
    replies.flush()
    segmenter: Segmenter | None = None
    inbox = _Inbox(requests)
    for request in inbox:
        reply: Loaded | Segmented | Failed
        try:
            if isinstance(request, Load):
                segmenter, reply = load(request)
                inbox.prefetcher = segmenter.prefetcher
            elif isinstance(request, Segment) and segmenter is not None:
                reply = segment(segmenter, request)
            elif isinstance(request, SegpipeError):
                raise request
            else:
                raise SegpipeError("the worker was asked to segment before it was given a model")
        except _CannotWriteError as error:
            reply = _failure(error.cause, stop=True)
        except SegpipeError as error:
            reply = _failure(error)
        except Exception as error:  # noqa: BLE001 - one bad case never stops the rest
            is_dicom = isinstance(request, Segment) and request.case.series is not None
            reply = _failure(unexpected(error, may_quote=not is_dicom))
        line = to_json(reply)
        if inbox.prefetcher is not None:
            inbox.prefetcher.end()
        replies.write(line)
        replies.flush()


def load(request: Load) -> tuple[Segmenter, Loaded]:
    """Vet the bundles, then make their model.

    Raises:
        RefusedError: a bundle does not pass.
        SegpipeError: as `Segmenter`.
    """
    from segpipe.bundle import vet_opened

    policy = request.policy
    with left_out(() if policy.allow or policy.run_unvetted_code else BESIDE_MONAI):  # a second sooner
        vetting = vet_opened(request.recipe.vetted, policy)  # before anything of a bundle is executed
        import monai

    import nibabel
    import numpy
    import torch

    from segpipe import __version__
    from segpipe.inference import Segmenter

    if request.keeps_memory:
        keep_freed_memory()
    segmenter = Segmenter(request.recipe)
    versions = {"segpipe": __version__, "python": platform.python_version()}
    versions |= {module.__name__: module.__version__ for module in (monai, torch, numpy, nibabel)}
    return segmenter, Loaded(
        vetting=vetting,
        device=str(segmenter.device),
        threads=torch.get_num_threads(),
        versions=versions,
        engine=segmenter.engine,
        engine_reasons=segmenter.engine_reasons,
        runtime=segmenter.runtime.name,
        runtime_reasons=segmenter.runtime.reasons,
        precision=segmenter.runtime.precision.name,
        precision_reason=segmenter.runtime.precision.reason,
    )


def segment(segmenter: Segmenter, request: Segment) -> Segmented:
    """Segment a case and write its results.

    Raises:
        SegpipeError: as `Segmenter.segment`.
    """
    from segpipe.bundle import Segmentation, as_source, readable
    from segpipe.inference import ExtraOutputs, Observation, save_slice
    from segpipe.quality import Judged, has_quality_model

    folder, case = Path(request.folder), _case_input(request.case)
    formats = request.outputs.formats_of(is_dicom=request.case.series is not None)
    paths = request.outputs.extra_paths(folder, segmenter.recipe)
    extra = ExtraOutputs(**paths) if any(paths.values()) else None
    read = as_source(case, segmenter.recipe)
    seen = Observation() if has_quality_model(Path(segmenter.recipe.root)) else None
    with ExitStack() as files:
        try:
            images = files.enter_context(readable(read, segmenter.recipe, folder))
        except UsageError as error:
            raise _CannotWriteError(error) from error
        try:
            label_map = segmenter.segment(images, extra, request.case.id, seen)
        except OSError as error:
            if extra is None:
                raise
            raise _CannotWriteError(cannot_write(extra.files[0], error)) from error
    start = time.perf_counter()
    with _writing_to(folder):
        segmentation = Segmentation.of(label_map, segmenter.recipe, case, seen, request.case.covariates)
        judged = Judged.of(segmentation.quality, segmentation.flags, request.rules, segmenter.recipe.root)
        judgement = None if request.case.series is None else judged.judgement(segmenter.recipe.root)
        written, not_written = segmentation.write(folder, formats, SEGMENTATION, judgement)
        if request.outputs.overlay:
            save_slice(folder / SLICE, label_map.preview, label_map.labels, label_map.grid, label_map.regions)
        else:
            not_written = {**not_written, "overlay": NOT_ASKED_FOR}
    return Segmented(
        shape=label_map.labels.shape,
        spacing_mm=tuple(round(edge, 6) for edge in label_map.grid.spacing_mm),
        intensity=label_map.preview.intensity,
        regions=segmentation.regions,
        voxels=segmentation.voxels,
        volumes_ml=segmentation.volumes_ml,
        flags=segmentation.flags,
        files=written,
        not_written=not_written,
        seconds={**segmentation.seconds, "write": round(time.perf_counter() - start, 3)},
        quality=None if segmentation.quality is None else segmentation.quality.as_dict(),
        doubtful_slices=segmentation.doubtful_slices,
        notes=label_map.notes,
    )


def _case_input(case: CaseFiles) -> CaseInput:
    if case.series is None:
        from segpipe.inference import RegisteredFiles

        return RegisteredFiles(case.paths) if case.registered else case.paths
    from segpipe.dicom import Series

    return Series.from_dict(case.series)


class _CannotWriteError(Exception):
    def __init__(self, cause: SegpipeError) -> None:
        self.cause = cause


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """End the batch where something cannot be written."""
    try:
        yield
    except OSError as error:
        raise _CannotWriteError(cannot_write(folder / SEGMENTATION, error)) from error
    except UsageError as error:
        raise _CannotWriteError(error) from error


def _failure(error: SegpipeError, stop: bool = False) -> Failed:
    kind = next(base.__name__ for base in type(error).__mro__ if base.__module__ == errors.__name__)
    reason = getattr(error, "reason", None)
    return Failed(kind=kind, error=error.as_dict(with_path=True), reason=reason, stop=stop)


def unexpected(error: BaseException, may_quote: bool) -> SegpipeError:
    """Return an error of ours; without the words of another one where they may quote a DICOM header."""
    sys.stderr.write(f"{type(error).__name__}: {error if may_quote else '(not quoted)'}\n")
    error = first_cause(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return SegpipeError("not enough memory for this case", hint="use a machine with more, or --device cpu")
    words = " ".join(str(error).split()) if may_quote else ""
    return SegpipeError("the case could not be computed", found=f"{type(error).__name__}: {words}".strip(": ")[:300])


class _Inbox:
    """Requests in order; what is to be prefetched is read at once, in the thread that listens."""

    def __init__(self, stream: IO[str]) -> None:
        self.prefetcher: Prefetcher | None = None
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(stream,), daemon=True).start()

    def __iter__(self) -> Iterator[Any]:
        while (request := self._requests.get()) is not None:
            yield request

    def _listen(self, stream: IO[str]) -> None:
        try:
            for line in stream:
                self._take(line)
        finally:
            self._requests.put(None)

    def _take(self, line: str) -> None:
        try:
            request = from_json(line)
        except SegpipeError as error:
            request = error
        if not isinstance(request, Prefetch):
            if self.prefetcher is not None:
                self.prefetcher.expect()
            self._requests.put(request)
        elif self.prefetcher is not None:
            self.prefetcher.read(request.case.id, partial(_case_input, request.case), request.max_bytes)


def _claim_pipes() -> tuple[IO[str], IO[str]]:
    """Take the pipes for the protocol alone: what libraries print goes to standard error."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, replies
