"""The example in the docstring of every public object runs, in a folder such as a reader would have.

The folder holds ``bundles/hippocampus_mri``, ``scan.nii.gz``, ``mr_series/`` (DICOM), ``data/manifest.json`` with
folds, and its ``task.yaml``; for the slow examples ``run/`` and ``predictions/`` as well.
"""

from __future__ import annotations

import doctest
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import segpipe
from dicom.make import Grid, series, write
from tiny_data import SMALL, write_data

ROOT = Path(__file__).resolve().parents[1]
METHODS = {"Bundle.segment": segpipe.Bundle.segment, "Segmentation.save": segpipe.Segmentation.save}
EXAMPLES: dict[str, Any] = {name: getattr(segpipe, name) for name in segpipe.__all__ if name != "errors"} | METHODS
SLOW = {"train", "export", "plan", "predict", "Bundle.segment", "Segmentation", "Segmentation.save"}


def example_of(name: str) -> doctest.DocTest | None:
    target: Any = EXAMPLES[name]
    finder = doctest.DocTestFinder(recurse=False)
    tests = [test for test in finder.find(target, name, module=False, globs={}) if test.examples]
    return tests[0] if tests else None


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    bundle = ROOT / "bundles/hippocampus_mri"
    (folder / "bundles").mkdir()
    (folder / "bundles/hippocampus_mri").symlink_to(bundle)
    shutil.copy(bundle / "golden/images/image.nii.gz", folder / "scan.nii.gz")
    write(series(Grid(slices=12), "MR"), folder / "mr_series")
    write_data(folder / "data")
    shutil.copy(folder / "data/task.yaml", folder / "task.yaml")
    return folder


@pytest.fixture(scope="session")
def trained(folder: Path) -> Path:
    """The folder with a run, and label maps as predictions."""
    settings: Any = {"task": folder / "task.yaml", "epochs": 1, "threads": 1, "overrides": SMALL}
    segpipe.train(folder / "data/manifest.json", out=folder / "run", **settings)
    shutil.copytree(folder / "data/labels", folder / "predictions")
    return folder


def run_example(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = example_of(name)
    assert example is not None, f"{name} has no example"
    monkeypatch.chdir(folder)
    said: list[str] = []
    add: Callable[[str], None] = said.append
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(example, out=add)
    assert not failed, "".join(said)


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - SLOW))
def test_example(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_example(name, folder, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(EXAMPLES) & SLOW))
def test_slow_example(name: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_example(name, trained, monkeypatch)
