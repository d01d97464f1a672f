"""Which cases two stages say that they were trained on, and in which order their channels come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segpipe.bundle.exporting.bundle_configs import file_endings
from segpipe.bundle.exporting.first_stage import Stage
from segpipe.bundle.exporting.run_record import Run
from segpipe.bundle.golden.golden_quality import in_order_of_channels
from segpipe.data import Manifest


def run_of(training: list[str], test: list[str], record: dict[str, Any]) -> Run:
    cases = {"training": training, "test": test}
    sections = {
        name: [{"id": each, "image": f"{each}.nii", "label": f"{each}_label.nii"} for each in ids]
        for name, ids in cases.items()
    }
    document = {"name": "d", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "x"}, **sections}
    return Run({}, {"cases": record}, Manifest.model_validate(document))


def test_a_case_of_the_first_stage_stays_trained_on_where_the_second_manifest_tests_or_lacks_it():
    first = run_of(["a", "b", "c", "gone"], [], {"training": ["a", "b", "c", "gone"], "validation": []})
    second = run_of(["a", "new"], ["b"], {"training": ["new"], "validation": ["a", "unseen"]})
    stage = Stage(Path("first"), None, first, (), "")  # type: ignore[arg-type]
    assert stage.seen_by(second).cases == {"training": ["a", "b", "c", "gone", "new"], "validation": ["unseen"]}


def test_the_tenth_mask_comes_after_the_ninth():
    names = [f"image{ending}" for ending in file_endings(14, masks=12)]
    assert [path.name for path in in_order_of_channels(map(Path, reversed(names)))] == names
