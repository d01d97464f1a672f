"""What of a proof a bundle keeps, and proofs that are of something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segpipe.bundle.exporting import export
from segpipe.bundle.exporting.proven_precision import KEPT, read_proof
from segpipe.common.files import write_json
from segpipe.errors import DataError, RefusedError, UsageError

FILES = {"configs/inference.json": "a" * 64, "models/model.pt": "b" * 64}


def proof(**changes: Any) -> dict[str, Any]:
    figures = {"cases": 3, "mean_dice_lost": 0.0, "case_dice_lost": 0.0, "labels_lost": 0, "volume_changed": 0.0}
    where = {"manifest_sha256": "c" * 64, "split": "validation", "fold": 0}
    how = {"runtime": ["torch"], "mirror": [], "processor": "amx", "mean_dice": {"float32": 0.9, "bfloat16": 0.9}}
    return {"schema_version": 1, "files": FILES, **where, **how, **figures, "faults": [], **changes}


def test_a_bundle_keeps_its_own_proof(run_folder: Path, tmp_path: Path) -> None:
    first = export(run_folder, tmp_path / "first")
    assert "precision" not in first.metadata
    write_json(tmp_path / "proof.json", proof(files=first.model["files"]))
    second = export(run_folder, tmp_path / "second", precision=tmp_path / "proof.json")
    assert second.model == first.model and set(second.metadata["precision"]) == set(KEPT)


def test_a_proof_of_another_model_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "proof.json", proof())
    assert read_proof(tmp_path / "proof.json", FILES)["cases"] == 3
    with pytest.raises(RefusedError, match="another model") as caught:
        read_proof(tmp_path / "proof.json", {**FILES, "models/model.pt": "d" * 64})
    assert caught.value.found == f"models/model.pt: {'b' * 64}"
    members = {"configs/inference.json": "a" * 64, "models/member_0.pt": "b" * 64}
    with pytest.raises(RefusedError, match="another model"):
        read_proof(tmp_path / "proof.json", members)


def test_an_ensemble_keeps_the_proof_of_its_fold_models(tmp_path: Path) -> None:
    members = {f"models/member_{number}.pt": str(number) * 64 for number in range(2)}
    write_json(tmp_path / "proof.json", proof(files=members, split="out_of_fold", fold=None))
    bundle = {"configs/inference.json": "a" * 64, **members}
    assert read_proof(tmp_path / "proof.json", bundle)["split"] == "out_of_fold"
    with pytest.raises(RefusedError, match="another model"):
        read_proof(tmp_path / "proof.json", {**bundle, "models/member_1.pt": "d" * 64})


def test_label_maps_that_change_are_refused_whatever_the_file_says(tmp_path: Path) -> None:
    write_json(tmp_path / "proof.json", proof(case_dice_lost=0.02))
    with pytest.raises(RefusedError, match="label maps change") as caught:
        read_proof(tmp_path / "proof.json", FILES)
    assert "0.0200 lower" in str(caught.value.found)


@pytest.mark.parametrize("document", [[], {}, {"files": FILES}, {**proof(), "files": 3}])
def test_another_file_is_told_from_a_proof(tmp_path: Path, document: Any) -> None:
    (tmp_path / "proof.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="not a proof"):
        read_proof(tmp_path / "proof.json", FILES)
    with pytest.raises(UsageError, match="no such"):
        read_proof(tmp_path / "gone.json", FILES)
