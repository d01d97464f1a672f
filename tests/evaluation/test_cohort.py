"""The function that the verb is a skin of."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tiny_study import Study, cube

from segpipe.data.manifest import load_manifest
from segpipe.errors import UsageError
from segpipe.evaluation import evaluate


@pytest.fixture
def study(tmp_path: Path) -> Study:
    study = Study(tmp_path)
    study.add("good", cube(), cube())
    study.add("poor", cube(), cube(at=4))
    study.add("lost", cube(), None)
    assert study.run() == 4
    return study


def test_it_measures_what_the_verb_measures_and_writes_the_reading_alone(study: Study) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.root.rglob("*")}
    seen: list[tuple[int, int]] = []
    manifest = study.root / "manifest.json"
    evaluation = evaluate(str(manifest), str(study.predictions), progress=lambda *counts: seen.append(counts))
    report = study.report()
    assert evaluation.document()["summary"] == report["summary"]
    assert evaluation.mean_dice.mean == report["summary"]["overall"]["metrics"]["dice"]["mean"]
    assert set(evaluation.label_dice) == {"head", "tail"}
    assert [case.id for case in evaluation.failed] == ["lost"] and evaluation.unused == ()
    assert seen == [(1, 3), (2, 3), (3, 3)]
    after = {path: path.stat().st_mtime_ns for path in study.root.rglob("*")}
    assert {path.name for path in after if after[path] != before.get(path)} == {"manifest.test_readings.json"}
    assert evaluation.readings is not None and evaluation.readings.count == 1


def test_a_manifest_in_memory_needs_its_data_folder(study: Study) -> None:
    manifest = load_manifest(study.root / "manifest.json")
    with pytest.raises(UsageError, match="in memory"):
        evaluate(manifest, study.predictions)
    in_memory = evaluate(manifest, study.predictions, data=study.root)
    assert in_memory.summary == evaluate(study.root / "manifest.json", study.predictions).summary
    assert len(in_memory.settings["manifest_sha256"]) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance_mm": math.nan}, "finite"),
        ({"split": "test", "fold": 0}, "fold"),
        ({"gifs": ["good"]}, "no place"),
        ({"split": "validation"}, "needs a fold"),
    ],
)
def test_options_are_refused_as_at_the_command_line(study: Study, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(study.root / "manifest.json", study.predictions, **options)  # type: ignore[arg-type]
