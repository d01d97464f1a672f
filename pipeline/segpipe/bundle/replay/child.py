"""What the isolated process does with a bundle: build its network, feed it once, and replay its golden case."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.bundle.golden import assess_golden, record, surroundings
from segpipe.bundle.supported_subset import read_members
from segpipe.bundle.tensors import WEIGHTS
from segpipe.common.console import quiet_libraries
from segpipe.common.files import read_json, write_json
from segpipe.common.processes import end_with_parent
from segpipe.errors import DataError, first_cause

ANSWER, LABELS, SCORES = "answer.json", "labels.npy", "scores.npy"
ANY_SIZE = 64  # where the metadata lets a size be anything


def main(request: dict[str, Any], report: dict[str, str | None]) -> None:
    """Say how far this process is isolated and what it computes with; then let nothing else be said, and replay."""
    end_with_parent()  # once more, as a change of rights may have taken it back
    sys.stdout.write(json.dumps({**report, "surroundings": surroundings()}) + "\n")
    sys.stdout.flush()
    os.dup2(2, 1)
    replay(request)


def replay(request: dict[str, Any]) -> None:
    """Write ``answer.json`` and the arrays to the working folder.

    Args:
        request: ``bundle``, ``work``; ``input`` (channels and spatial shape of the network's input, None where the
            metadata does not say); ``golden`` (seed of the points, None where there is no golden case);
            ``quality`` (whether the quality model was recorded with it).
    """
    quiet_libraries()
    bundle, work = Path(request["bundle"]), Path(request["work"])
    sys.path.insert(1, str(bundle))  # Python of its own, which the user allowed
    answer: dict[str, Any] = {}
    if request["input"] is not None:
        answer["network"] = _or_error(lambda: _feed(bundle, **request["input"]))
    if request["golden"] is not None:
        answer["golden"] = _or_error(lambda: _replay_golden(bundle, work, request["golden"]))
    if request.get("quality"):
        answer["quality"] = _or_error(lambda: assess_golden(bundle) or {})
    write_json(work / ANSWER, answer)


def _or_error(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - what a bundle does wrong is its finding
        cause = first_cause(error)
        words = cause.message if isinstance(cause, DataError) else str(cause)
        return {"error": f"{type(cause).__name__}: {words}".strip()[:500]}


def _feed(bundle: Path, channels: int, spatial_shape: list[int | str]) -> dict[str, Any]:
    """Return the shape of what the network with its weights makes of zeros of the stated shape."""
    import torch
    from monai.bundle.scripts import _get_fake_spatial_shape

    shape = _get_fake_spatial_shape(spatial_shape, any=ANY_SIZE)
    shapes = []
    for network in _networks(bundle):
        with torch.no_grad():
            output = network.eval()(torch.zeros(1, channels, *shape))
        shapes.append(list((output[0] if isinstance(output, (list, tuple)) else output).shape))
    if any(other != shapes[0] for other in shapes):
        raise DataError("the members of the ensemble give scores of different shapes", found=str(shapes))
    return {"input": [1, channels, *shape], "output": shapes[0]}


def _networks(bundle: Path) -> Iterator[Any]:
    """Build each network with its weights; as the evaluator loads them, where they are not in the usual place."""
    import torch
    from monai.bundle import ConfigParser

    config = next(path for path in sorted((bundle / "configs").glob("inference.*")))
    metadata = bundle / "configs" / "metadata.json"
    written = ConfigParser.load_config_file(config)
    files = [bundle / file for file in read_members(written) or (WEIGHTS,)]
    parser = ConfigParser()
    parser.read_config(str(config))
    if "network_def" not in parser or not all(file.is_file() for file in files):
        from segpipe.inference import MonaiEvaluator

        stock = MonaiEvaluator(str(bundle), written, read_json(metadata), torch.device("cpu"))
        yield stock.network_with_weights()
        return
    parser.read_meta(str(metadata))
    parser.update({"bundle_root": str(bundle), "device": "cpu"})
    network = parser.get_parsed_content("network_def")
    for weights in files:  # one network is filled after the other
        state = torch.load(weights, map_location="cpu", weights_only=True)
        network.load_state_dict(state["model"] if isinstance(state.get("model"), dict) else state)
        yield network


def _replay_golden(bundle: Path, work: Path, seed: int) -> dict[str, Any]:
    out = work / "golden"
    out.mkdir()
    found = record(bundle, bundle / "golden" / "images", out, seed)
    np.save(work / LABELS, found.labels, allow_pickle=False)
    np.save(work / SCORES, found.scores, allow_pickle=False)
    return {"grid": list(found.grid)}
