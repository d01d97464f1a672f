"""A label map that was made with given masks is not one of two stages, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from segpipe.bundle.open import open_bundle
from segpipe.common.files import sha256_of, write_json
from segpipe.evaluation.made_by import MASKS, origin_of
from segpipe.prediction.batch_summary import result_document
from segpipe.prediction.file_cases import InputCase
from segpipe.prediction.options import Options
from segpipe.prediction.protocol import Loaded, Segmented
from tiny_two_stages import write_two_stages

SCHEMA = Path(__file__).parents[2] / "docs/schemas/result.schema.json"


@pytest.mark.parametrize("given", [True, False])
def test_figures_of_given_masks_are_not_tied_to_both_stages(tmp_path: Path, given: bool):
    bundle = open_bundle(write_two_stages(tmp_path / "both"))
    seconds = {"network": 1.0} if given else {"first_stage": 1.0, "network": 1.0}
    flags = {"empty": False}
    segmented = Segmented(voxels={}, volumes_ml={}, flags=flags, files={"nifti": "labels.nii.gz"}, seconds=seconds)
    loaded = Loaded(engine="streaming", runtime="torch", versions={"segpipe": "1"})
    case = InputCase("case", (tmp_path / "scan.nii.gz",))
    (tmp_path / "labels.nii.gz").write_bytes(b"labels")
    hashes = {"source_sha256": [], "sha256": {"labels.nii.gz": sha256_of(tmp_path / "labels.nii.gz")}}
    result = {**result_document(case, segmented, loaded, bundle, Options()), **hashes}
    write_json(tmp_path / "result.json", result)
    origin = origin_of(tmp_path / "labels.nii.gz", "case", tmp_path / "truth.nii.gz")
    assert (origin.model is None, origin.reason) == ((True, MASKS) if given else (False, ""))
    assert any("masks were given" in note for note in result["notes"]) == given
    part = json.loads(SCHEMA.read_text())["properties"]["masks_given"]
    jsonschema.validate(result["masks_given"], part)
    assert "masks_given" not in result_document(case, segmented, loaded, bundle.of_scans, Options())
