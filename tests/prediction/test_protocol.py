"""The protocol of batch and worker: what goes in comes out, and anything else is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from segpipe.bundle import TrustPolicy
from segpipe.errors import SegpipeError
from segpipe.inference import BundleFiles, ModelOptions, Recipe
from segpipe.prediction.options import Outputs
from segpipe.prediction.protocol import (
    CaseFiles,
    Failed,
    Load,
    Loaded,
    Prefetch,
    Segment,
    Segmented,
    from_json,
    to_json,
)

RECIPE = Recipe(
    root="/b",
    inference={"x": [1, None, {"_target_": "UNet"}]},
    weights="/b/w",
    channels=1,
    labels={0: "background", 1: "x"},
    preprocessing=[{"_target_": "LoadImaged"}],
    windowing={"roi_size": [8, 8, 8]},
    cleanup=({"_target_": "Clean"},),
    options=ModelOptions(threads=2, mirror=("x", "z"), max_memory=2**30),
    ensemble=(BundleFiles(root="/c", inference={}, weights="/c/w", sha256="0" * 64),),
)
MESSAGES = [
    Load(recipe=RECIPE, policy=TrustPolicy(("io.open",), False)),
    Segment(
        case=CaseFiles(id="a", paths=("/scans/\udcff.nii",)),
        folder="/out/a",
        outputs=Outputs(format=("nifti",), probabilities=("all",), overlay=False),
    ),
    Prefetch(case=CaseFiles(id="b", series={"files": ["x"]}), max_bytes=5),
    Loaded(vetting={"passed": True}, engine_reasons=("a", "b"), versions={"python": "3"}),
    Segmented(
        shape=(1, 2, 3),
        spacing_mm=(1, 2.5, 3.0),
        voxels={"x": 1},
        volumes_ml={"x": 1},
        flags={"empty": False},
        files={"nifti": "a"},
        seconds={"read": 0.1},
    ),
    Failed(kind="DataError", error={"message": "no"}, stop=True),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_goes_in_comes_out(message: Any) -> None:
    line = to_json(message)
    assert line.endswith("\n") and "\n" not in line[:-1]
    assert from_json(line) == message and type(from_json(line)) is type(message)


def changed(number: int, **changes: Any) -> str:
    return json.dumps({**json.loads(to_json(MESSAGES[number])), **changes})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{}",
        "no json",
        changed(0, version=2),
        changed(0, message="Run"),
        changed(0, message="os.system"),
        changed(0, more=1),
        changed(0, recipe={"root": "/b"}),
        changed(0, policy={"allow": "io.open", "run_unvetted_code": False}),
        changed(0, policy={"allow": [], "run_unvetted_code": "no"}),
        changed(0, policy={"allow": [], "run_unvetted_code": False, "more": 1}),
        changed(1, folder=7),
        changed(1, folder=None),
        changed(1, case=None),
        changed(2, max_bytes="5"),
        changed(2, max_bytes=True),
        changed(4, shape=["1"]),
        changed(5, stop=1),
        json.dumps({"version": 1, "message": "Failed", "kind": "DataError"}),
    ],
)
def test_anything_else_is_refused(line: str) -> None:
    with pytest.raises(SegpipeError, match="not understood"):
        from_json(line)
