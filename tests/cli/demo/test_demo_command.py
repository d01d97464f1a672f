"""The real command, every step of it, on coarse volumes."""

from __future__ import annotations

import json

import pytest

from segpipe.cli.app import run


@pytest.mark.slow
def test_quick_demo_goes_the_whole_way(tmp_path, capfd) -> None:
    out = tmp_path / "out"
    assert run(["demo", str(out), "--quick", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["command"] == "demo" and document["schema_version"] == 1
    assert document["agreement"] >= 0.9999
    assert document["mean_dice"] is not None
    assert len(document["steps"]) == 8
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and str(tmp_path) not in page
    assert run(["demo", str(out), "--quick"]) == 2
    assert "--overwrite" in capfd.readouterr().err


def test_a_folder_of_something_else_is_a_usage_error(tmp_path, capsys) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert run(["demo", str(tmp_path)]) == 2
    assert "not of a demo" in capsys.readouterr().err


def test_too_few_cases_are_refused_before_anything_is_written(tmp_path, capsys) -> None:
    assert run(["demo", str(tmp_path / "out"), "--cases", "0"]) == 2
    assert "too few cases" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
