"""The model card of a bundle: its sections, its pictures, and what it must not claim."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import with_test_cases, write_evaluation

from segpipe.bundle import Bundle
from segpipe.bundle.exporting.card import model_card
from segpipe.bundle.exporting.card_results import results_section
from segpipe.bundle.exporting.markdown import code, table
from segpipe.bundle.exporting.tied_evaluation import read_evaluation
from segpipe.bundle.exporting.write import export
from segpipe.common.files import write_csv, write_json
from segpipe.evaluation import seal

HEADINGS = [
    "What it is for, and what not",
    "Results",
    "Limits",
    "How to run",
    "Input and output",
    "Training",
    "Check and repeat",
    "Licence",
    "What is in this folder",
]


def card_of(root: Path) -> str:
    return (root / "docs" / "README.md").read_text()


@pytest.fixture(scope="module")
def whole(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a run with a history and two more seeds, and with an evaluation."""
    place = tmp_path_factory.mktemp("whole")
    run = Path(shutil.copytree(run_folder, place / "seed0"))
    with_test_cases(run)
    rows = [{"epoch": epoch, "train_loss": 1 / epoch, "val_mean_dice": epoch / 10} for epoch in (1, 2, 3)]
    write_csv(run / "history.csv", rows, list(rows[0]))
    best = {"epoch": 2, "val_mean_dice": 0.5}
    runs = [{"seed": i, "folder": f"seed{i}", "status": "finished", "epochs": 3, "best": best} for i in range(3)]
    spread = {"mean": 0.51, "sd": 0.0123, "min": 0.5, "max": 0.53, "n": 3}
    write_json(place / "seeds.json", {"schema_version": 1, "seeds": runs, "val_mean_dice": spread})
    figure = {"mean": 0.9, "low": 0.8, "high": 0.95, "median": 0.91, "n": 4}
    metrics = dict.fromkeys(("dice", "nsd", "hd95_mm", "assd_mm"), figure)
    evaluation = {
        "dataset": "tiny",
        "split": "test",
        "fold": None,
        "tolerance_mm": 1.0,
        "manifest_sha256": json.loads((run / "run.json").read_text())["manifest_sha256"],
        "bootstrap": {"draws": 10, "seed": 0, "unit": "patient", "level": 0.95},
        "summary": {
            "overall": {"counts": {"cases": 4, "patients": 4, "missing": 0, "failed": 0}, "metrics": metrics},
            "labels": {
                value: {"name": name, "counts": {}, "metrics": metrics}
                for value, name in (("1", "left | part"), ("2", "right part"))
            },
        },
        "cases": [{"id": f"case_{i}", "mean_dice": value} for i, value in enumerate((0.8, 0.9, None, 0.0))],
    }
    write_evaluation(place / "metrics", evaluation, export(run, place / "without"))
    return export(run, place / "bundle", evaluation=place / "metrics").root


def test_every_section_and_picture_is_there(whole: Path) -> None:
    card = card_of(whole)
    assert re.findall(r"^## (.+)$", card, re.MULTILINE) == HEADINGS
    pictures = re.findall(r"^!\[.+\]\((.+)\)$", card, re.MULTILINE)
    assert pictures == ["dice.png", "example.png", "training.png"]
    assert sorted(path.name for path in (whole / "docs").glob("*.png")) == sorted(pictures)
    for file in re.findall(r"^\| `([\w/.]+)` \|", card, re.MULTILINE):
        assert (whole / file).exists(), file


@pytest.mark.parametrize(
    ("readings", "words"),
    [
        ({"count": 1}, "the first model that was measured on this test set"),
        ({"count": 7}, "7 models have been measured on this test set, this one among them"),
        ({"count": None}, None),
        (None, None),
    ],
)
def test_it_says_how_often_the_test_set_was_read(
    whole: Path, tmp_path: Path, readings: dict[str, Any] | None, words: str | None
) -> None:
    document = {**json.loads((whole.parent / "metrics/metrics.json").read_text()), "test_readings": readings}
    write_json(tmp_path / "metrics.json", {**document, "content_sha256": seal(document)})
    results = read_evaluation(tmp_path).results
    assert results.get("test_readings") == (readings or {}).get("count")
    metadata, provenance = (
        json.loads((whole / name).read_text()) for name in ("configs/metadata.json", "provenance.json")
    )
    card = model_card({**metadata, "results": results}, provenance, ())
    assert ("this test set" in card) == (words is not None) and (words or "") in card


def test_pictures_and_card_are_the_same_when_made_again(whole: Path, run_folder: Path, tmp_path: Path) -> None:
    place = whole.parent
    for name in ("seed0", "seeds.json", "metrics"):
        origin = place / name
        (shutil.copytree if origin.is_dir() else shutil.copy)(origin, tmp_path / name)
    again = export(tmp_path / "seed0", tmp_path / "bundle", evaluation=tmp_path / "metrics").root
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for file in files:
        assert (whole / file).read_bytes() == (again / file).read_bytes(), file


def test_it_says_how_much_a_seed_changes_and_on_what_it_was_measured(whole: Path) -> None:
    card = card_of(whole)
    assert "with 3 seeds gave a best validation Dice of 0.510 on average (standard deviation 0.012" in card
    assert "Measured on 4 cases of 4 patients (held out of the training). None of them failed." in card
    metadata = json.loads((whole / "configs/metadata.json").read_text())
    metadata["results"]["interval"] = "the 95% bootstrap interval over cases"
    assert "Measured on 4 cases of unknown patients (held" in results_section(metadata, {}, [])
    assert "| Dice | left \\| part | 0.900 [0.800, 0.950] | 0.910 | 4 |" in card


def changed(bundle: Path, **metadata: Any) -> str:
    document = json.loads((bundle / "configs" / "metadata.json").read_text())
    record = json.loads((bundle / "provenance.json").read_text())
    return model_card({**document, **metadata}, record)


def test_another_manifest_is_not_called_held_out(whole: Path) -> None:
    results = json.loads((whole / "configs" / "metadata.json").read_text())["results"]
    card = changed(whole, results={**results, "manifest_sha256": "0" * 64, "dataset": "elsewhere"})
    assert "held out" not in card
    assert "test cases of another data set, none of which the training saw: elsewhere" in card


def test_without_pictures_evaluation_and_seeds(bundle: Bundle) -> None:
    card = changed(bundle.root, golden={"reason": "none found"})
    assert "![" not in card and "`golden/`" not in card and "seeds" not in card
    assert "Not measured on held-out cases" in card


def test_a_long_command_is_broken_and_stays_the_command() -> None:
    command = "python -m monai.bundle run " + " ".join(f"--option_{i} value_{i}" for i in range(9))
    block = code(command).splitlines()[1:-1]
    assert max(map(len, block)) < 60
    assert " ".join(line.removesuffix("\\").strip() for line in block) == command
    assert code("a --b", "c") == "```\na --b\nc\n```"


def test_a_table_cannot_be_broken_by_its_cells() -> None:
    assert table(["a"], [["x|y\nz"], [None]]).splitlines()[2:] == ["| x\\|y z |", "| - |"]
