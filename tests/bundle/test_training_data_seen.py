"""What a bundle says of the data that it was trained on, for the flags of predict."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from tiny_run import MakeRun

import segpipe
from segpipe.bundle.exporting.write import export
from segpipe.bundle.segmentation import far_from_training
from segpipe.common.files import read_json, write_json
from segpipe.data.fingerprint import FINGERPRINT, fingerprint_path
from segpipe.errors import DataError

SCHEMA = Path(segpipe.__file__).parent / "schemas" / "bundle_metadata.schema.json"


def fingerprint(**edges: float) -> dict[str, object]:
    """Of cases with these slice distances; the first axis of each runs from head to foot."""

    def values(scale: float) -> dict[str, object]:
        return {"mean": scale, "std": 1, "percentiles": [0, scale, 2 * scale, 3 * scale, 4 * scale]}

    cases = [
        {
            "id": id,
            "shape": [9, 20, 20],
            "spacing_mm": [edge, 1, 1],
            "orientation": "SRA",
            "labels": {},
            "channels": [{"dtype": "int16", "nonzero_fraction": 1, "overall": values(10 * edge), "foreground": None}],
            "foreground_box_mm": None,
        }
        for id, edge in edges.items()
    ]
    summary = {
        "cases": len(cases),
        "median_shape_ras": [20, 20, 9],
        "median_spacing_ras_mm": [1, 1, 3],
        "orientations": {},
        "foreground": [None],
        "median_volume_ml": {},
    }
    return {"name": "tiny", "modality": ["MRI"], "summary": summary, "cases": cases}


def test_ranges_are_of_the_cases_that_were_trained_on(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    write_json(run / FINGERPRINT, fingerprint(a=2.0, b=3.0, c=50.0))  # c is for validation
    metadata = export(run, tmp_path / "bundle").metadata
    assert metadata["training_data"]["seen"] == {
        "spacing_ras_mm": [[1, 1], [1, 1], [2, 3]],
        "intensity": [[[0, 0], [20, 30], [40, 60], [60, 90], [80, 120]]],
    }
    Draft202012Validator(read_json(SCHEMA)).validate(metadata)
    assert SCHEMA.read_text() == (Path(__file__).parents[2] / "docs/schemas" / SCHEMA.name).read_text()
    assert far_from_training(metadata, (1, 1, 5), [[0, 25, 50, 75, 100]]) == {
        "far_spacing": "yes",
        "far_intensity": "no",
    }


def test_without_a_fingerprint_nothing_is_said_and_a_broken_one_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    assert export(run, tmp_path / "bundle").metadata["training_data"]["seen"] is None
    write_json(run / FINGERPRINT, {"cases": 3})
    with pytest.raises(DataError, match="fingerprint cannot be read"):
        export(run, tmp_path / "other")


def test_a_fingerprint_lies_beside_its_task() -> None:
    assert fingerprint_path("/d/my.task.yaml") == Path("/d/my.task.fingerprint.json")
