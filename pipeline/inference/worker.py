"""The process that holds the model: ``python -m pipeline.inference.worker``, spoken to in JSON lines.

    {"op": "load", "recipe": {...}}                  -> {"ok": true, "device": ..., "versions": {...}}
    {"op": "segment", "paths": [...], "out": FILE}   -> {"ok": true, "voxels": ..., "seconds": ..., ...}
        with "probabilities": FILE, those are written as well
    what fails                                       -> {"ok": false, "error": {...}, "stop": whether to go on}

It is apart from the batch so that a crash in native code, or the kernel for want of memory, ends one case only.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import SegpipeError, first_cause
from pipeline.files import cannot_write
from pipeline.processes import die_with_parent

if TYPE_CHECKING:
    from pipeline.inference.segmenter import Segmenter


def main() -> None:
    """Answer requests until the other side closes its pipe."""
    requests, replies = _claim_pipes()
    die_with_parent()
    segmenter: Segmenter | None = None
    for line in requests:
        request = json.loads(line)
        try:
            if request["op"] == "load":
                segmenter, reply = _load(request["recipe"])
            elif segmenter is None:
                raise SegpipeError("the worker was asked to segment before it was given a model")
            else:
                reply = _segment(segmenter, request["paths"], request["out"], request.get("probabilities"))
        except _CannotWriteError as error:
            reply = _failure(error.cause, stop=True)
        except SegpipeError as error:
            reply = _failure(error)
        except Exception as error:  # noqa: BLE001 - one bad case never stops the rest
            reply = _failure(_unexpected(error))
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


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

    from pipeline import __version__
    from pipeline.inference.segmenter import Recipe, Segmenter

    labels = {int(value): name for value, name in recipe.pop("labels").items()}
    segmenter = Segmenter(Recipe(labels=labels, **recipe))
    versions = {"segpipe": __version__, "python": platform.python_version()}
    versions |= {module.__name__: module.__version__ for module in (monai, torch, numpy, nibabel)}
    about = {
        "device": str(segmenter.device),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "engine": segmenter.engine,
        "engine_reasons": list(segmenter.engine_reasons),
    }
    return segmenter, {"ok": True, **about}


def _segment(segmenter: Segmenter, paths: list[str], out: str, probabilities: str | None) -> dict[str, Any]:
    from pipeline.inference.output import describe, write_labels

    try:
        result = segmenter.segment(paths, probabilities)
    except OSError as error:
        if probabilities is None:
            raise
        raise _CannotWriteError(cannot_write(probabilities, error)) from error
    start = time.perf_counter()
    try:
        write_labels(out, result.labels, result.grid)
    except OSError as error:
        raise _CannotWriteError(cannot_write(out, error)) from error
    seconds = {**result.seconds, "write": round(time.perf_counter() - start, 3)}
    facts = describe(result.labels, result.grid.affine, segmenter.recipe.labels)
    facts["flags"]["orientation_unknown"] = not result.grid.is_oriented
    return {"ok": True, "shape": list(result.labels.shape), **facts, "seconds": seconds}


def _failure(error: SegpipeError, stop: bool = False) -> dict[str, Any]:
    return {"ok": False, "kind": type(error).__name__, "error": error.as_dict(with_path=True), "stop": stop}


def _unexpected(error: BaseException) -> SegpipeError:
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    error = first_cause(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return SegpipeError(
            "not enough memory for this case", hint="use a machine with more, or --device cpu"
        )
    words = " ".join(str(error).split())
    return SegpipeError("the case could not be computed", found=f"{type(error).__name__}: {words}"[:300])


if __name__ == "__main__":
    main()
