"""What provenance.json holds: all that is needed to train again, and nothing of the author's machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import record_as_trained

from segpipe.bundle import Bundle
from segpipe.bundle.exporting.write import export
from segpipe.common.files import sha256_of, write_json
from segpipe.errors import DataError


def read(root: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((root / "provenance.json").read_text())
    return document


def trained(run_folder: Path, to: Path, **record: Any) -> Path:
    """A copy of the run whose record says more."""
    shutil.copytree(run_folder, to)
    document = json.loads((to / "run.json").read_text())
    write_json(to / "run.json", {**document, **record})
    return to


def test_it_says_what_was_trained_on_what(bundle: Bundle, run_folder: Path) -> None:
    found, root = read(bundle.root), bundle.root
    assert found["config"] == json.loads((root / "configs/train.json").read_text())
    assert found["config_in_bundle"]["sha256"] == sha256_of(root / "configs/train.json")
    assert found["manifest"]["sha256"] == sha256_of(run_folder / "manifest.json")
    assert found["manifest"]["in_bundle"]["sha256"] == sha256_of(root / "configs/manifest.json")
    assert found["split"]["training"] == ["a", "b"] and found["split"]["validation"] == ["c"]
    assert found["weights"]["sha256"] == sha256_of(root / "models/model.pt")
    assert (found["seed"], found["epochs"], found["best"]["epoch"]) == (0, 3, 2)
    assert bundle.metadata["provenance"] == "provenance.json"


def test_sessions_add_up_and_hashes_of_the_data_are_kept(run_folder: Path, tmp_path: Path) -> None:
    sessions = [
        {"resumed": False, "began": 0.0, "seconds": 61.5, "versions": {"torch": "2"}},
        {"resumed": True, "began": 90.0, "seconds": 8.5, "versions": {"torch": "2"}},
    ]
    environment = {"versions": {}, "git_revision": "abc", "system": "Linux", "hardware": {"cores": 2}}
    folder = trained(run_folder, tmp_path / "run", sessions=sessions, environment=environment, threads=2, num_workers=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["training"][0]["sha256"] = {manifest["training"][0]["image"]: "0" * 64}
    write_json(folder / "manifest.json", manifest)
    record_as_trained(folder)
    found = read(export(folder, tmp_path / "bundle").root)
    assert found["duration_seconds"] == 70.0 and found["sessions"][1]["began"] == "1970-01-01T00:01:30+00:00"
    assert (found["threads"], found["workers"], found["environment"]) == (2, 1, environment)
    assert found["manifest"]["files_sha256"] == {manifest["training"][0]["image"]: "0" * 64}


def seeds(*folders: str) -> dict[str, Any]:
    runs = [
        {"seed": index, "folder": folder, "status": "finished", "epochs": 3, "best": {"epoch": 2, "val_mean_dice": 0.5}}
        for index, folder in enumerate(folders)
    ]
    return {
        "schema_version": 1,
        "seeds": runs,
        "val_mean_dice": {"mean": 0.5, "sd": 0.01, "min": 0.49, "max": 0.51, "n": len(runs)},
    }


def test_the_spread_over_seeds_is_that_of_the_runs_own_series(run_folder: Path, tmp_path: Path) -> None:
    folder = trained(run_folder, tmp_path / "seed0")
    write_json(tmp_path / "seeds.json", seeds("seed0", "seed1"))
    found = read(export(folder, tmp_path / "bundle").root)["seeds"]
    assert found["val_mean_dice"]["sd"] == 0.01 and [run["seed"] for run in found["runs"]] == [0, 1]
    assert "folder" not in found["runs"][0]
    write_json(tmp_path / "seeds.json", seeds("seed1", "seed2"))
    assert read(export(folder, tmp_path / "other").root)["seeds"] is None
    write_json(tmp_path / "seeds.json", {"seeds": []})
    with pytest.raises(DataError, match="not a record of several seeds"):
        export(folder, tmp_path / "third")
