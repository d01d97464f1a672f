"""The last wall: what no verb foresaw ends with words and an exit code, and never with a trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli import run


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (PermissionError(13, "Permission denied", "/closed"), 2),
        (OSError(36, "File name too long"), 2),
        (MemoryError(), 2),
        (ZeroDivisionError("a bug"), 1),
    ],
)
def test_what_nobody_caught_has_an_exit_code(
    raised: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: object) -> None:
        raise raised

    monkeypatch.setattr("pipeline.manifest.load_manifest", fail)
    assert run(["split", "manifest.json", "--json"]) == code
    output = capsys.readouterr()
    assert json.loads(output.out)["error"]["exit_code"] == code
    assert "Traceback" not in output.err
    if isinstance(raised, PermissionError):
        assert json.loads(output.out)["error"]["path"] == "/closed"


def test_a_file_name_too_long_is_no_bug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = {"id": "a", "image": "x" * 300 + ".nii.gz", "label": "y.nii.gz"}
    document = {
        "schema_version": 1,
        "name": "long",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver"},
        "training": [case],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    assert run(["check", str(tmp_path / "manifest.json")]) in (2, 3)
    assert "bug" not in capsys.readouterr().err
