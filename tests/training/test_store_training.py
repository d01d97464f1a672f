"""Whole trainings whose cases are in a store: weights, sharing, places, and the words that remove it."""

from __future__ import annotations

import json
import shlex
import shutil
from csv import DictReader
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import segpipe
from segpipe.cli.app import run
from segpipe.common.memory import Memory
from segpipe.data.manifest import load_manifest, save_manifest
from segpipe.store import store_facts
from segpipe.training import run_folder
from tiny_data import SMALL, TASK, train_arguments


@pytest.fixture(scope="module")
def whole_numbers(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set, cut but not normalised, and of whole numbers, which a store does not round."""
    folder = tmp_path_factory.mktemp("whole") / "data"
    shutil.copytree(tiny_manifest.parent, folder)
    for path in (folder / "images").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.rint(np.asarray(image.dataobj)).astype(np.int16), image.affine), path)
    cut = "{_target_: CropForegroundd, keys: [image, label], source_key: image, margin: 2, allow_smaller: true}"
    steps = [f"  - {cut}" if "NormalizeIntensityd" in line else line for line in TASK.splitlines()]
    (folder / "task.yaml").write_text("\n".join(steps) + "\n")
    return folder / "manifest.json"


def trained(manifest: Path, out: Path, store: str, **more: Any) -> Path:
    settings = {"epochs": 2, "threads": 1, "overrides": [*SMALL, "learning_rate=1e-4"], **more}
    task = manifest.parent / "task.yaml"
    segpipe.train(manifest, task=task, out=out, store=store, progress=lambda line: None, **settings)
    return out


def same(one: Path, other: Path) -> bool:
    states = [torch.load(out / "best.pt", weights_only=True) for out in (one, other)]
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def figures(out: Path) -> list[dict[str, str]]:
    """Losses, rates and Dice of each epoch, without its seconds."""
    with (out / "history.csv").open() as stream:
        return [
            {k: v for k, v in row.items() if not k.endswith("_s") and "seconds" not in k} for row in DictReader(stream)
        ]


def test_a_run_from_a_store_is_the_run_from_memory(whole_numbers: Path, tmp_path: Path) -> None:
    memory = trained(whole_numbers, tmp_path / "memory", "none")
    store = tmp_path / "store"
    stored = trained(whole_numbers, tmp_path / "stored", str(store))
    assert same(memory, stored) and figures(memory) == figures(stored)
    assert store_facts(store).cases == 6
    config = json.loads((stored / "config.json").read_text())
    assert config["store"] == str(store) and json.loads((memory / "config.json").read_text())["store"] is None


@pytest.mark.slow
def test_a_store_is_shared_and_a_run_goes_on_when_it_was_removed(whole_numbers: Path, tmp_path: Path, capsys) -> None:
    store, out = tmp_path / "a store", tmp_path / "part"
    trained(whole_numbers, tmp_path / "fold 1", str(store), fold=1, epochs=1, augment="by_class")
    before = {path: path.stat().st_mtime_ns for path in (store / "cases").iterdir()}
    assert len(before) == 6
    words = train_arguments(whole_numbers, out, "--store", str(store), "--epochs", "1", "--set", "learning_rate=1e-4")
    assert run(words) == 0
    assert {path: path.stat().st_mtime_ns for path in (store / "cases").iterdir()} == before  # none was made anew
    hint = f"segpipe store remove '{store}'"
    assert hint in capsys.readouterr().err
    assert run(["store", "list", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cases"] == 6
    assert run(shlex.split(hint)[1:]) == 0 and not store.exists()
    assert "6 prepared cases" in capsys.readouterr().out
    assert run(["store", "list", str(store)]) == 2
    assert "no store of prepared cases there" in capsys.readouterr().err
    segpipe.train(resume=out, epochs=2, progress=lambda line: None)
    assert store_facts(store).cases == 6


def test_what_auto_decides_is_said_and_recorded(whole_numbers: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "cache"))
    shown = {}
    for gigabytes in (0.5, 4):
        free = int(gigabytes * 10**9)
        monkeypatch.setattr(run_folder, "memory_here", lambda free=free: Memory(free, free))
        words = train_arguments(whole_numbers, tmp_path / "auto", "--store", "auto", "--explain", "--json")
        assert run(words) == 0
        shown[gigabytes] = json.loads(capsys.readouterr().out)
    assert shown[0.5]["config"]["store"] == str(tmp_path / "cache" / "store") and shown[4]["config"]["store"] is None
    assert "0.5 GB free" in shown[0.5]["origins"]["store"] and "on disk" in shown[0.5]["notes"][0]
    words += ["--processes", "3", "--set", "batch_size=3"]
    assert run(words) == 0
    assert "1.33 GB free, for each of 3 processes" in json.loads(capsys.readouterr().out)["origins"]["store"]
    assert not (tmp_path / "cache").exists()  # nothing is made before a training begins


def test_a_dry_run_makes_no_store(whole_numbers: Path, tmp_path: Path) -> None:
    words = train_arguments(whole_numbers, tmp_path / "dry", "--store", str(tmp_path / "store"), "--dry-run")
    assert run(words) == 0
    assert not (tmp_path / "store").exists() and not (tmp_path / "dry").exists()


@pytest.mark.slow
def test_a_config_of_pseudonyms_names_no_store(whole_numbers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(whole_numbers.parent, folder)
    manifest = load_manifest(folder / "manifest.json")
    save_manifest(manifest.model_copy(update={"pseudonymised": True}), folder / "manifest.json")
    out = trained(folder / "manifest.json", tmp_path / "run", str(tmp_path / "store"), epochs=1)
    assert (
        store_facts(tmp_path / "store").cases == 6 and str(tmp_path / "store") not in (out / "config.json").read_text()
    )
    segpipe.train(resume=out, epochs=2, progress=lambda line: None)
    assert not (out / "store").exists()  # it went on with the one that it began with
