"""A small tree in the Kaggle LGG layout goes from import to the report of a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segpipe.cli.app import run
from segpipe.errors import OK
from tiny_slices import write_lgg


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_slices_to_the_report(tmp_path: Path) -> None:
    source = write_lgg(tmp_path / "kaggle_3m", patients=8)
    manifest, task, out = tmp_path / "lgg/manifest.json", tmp_path / "lgg/task.yaml", tmp_path / "out"
    for words in (
        ["import", source, "-o", manifest],
        ["split", manifest, "--folds", 2, "--test", 2],
        ["check", manifest],
        ["plan", manifest, "-o", task],
        [
            "compare",
            manifest,
            "--task",
            task,
            "--network",
            "unet",
            "--loss",
            "dice,soft_iou",
            "--steps",
            30,
            "--out",
            out,
            "--threads",
            1,
            "--set",
            "batch_size=2",
            "--set",
            "learning_rate=0.01",
        ],
    ):
        assert run([str(word) for word in words]) == OK, words
    results = json.loads((out / "compare.json").read_text())
    assert {"unet+dice", "unet+soft_iou"} <= set(json.dumps(results).replace('"', " ").split())
    page = (out / "report.html").read_text()
    assert "TCGA_CS_49" in page
    assert str(tmp_path) not in page
