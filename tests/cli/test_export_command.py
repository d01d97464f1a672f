"""What `segpipe export` says of a bundle beside what it writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from segpipe.cli.app import run


def test_labels_that_no_code_is_known_for_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.pt").touch()
    made = SimpleNamespace(
        metadata={"name": "organs", "golden": {}, "codes": None},
        labels={0: "background", 1: "liver", 2: "gizmo_left"},
        name="organs",
        version="1.0.0",
        network_def=None,
        members=(),
        weights=tmp_path / "model.pt",
        sha256="a" * 64,
        first_stage=None,
    )
    monkeypatch.setattr("segpipe.bundle.export", lambda *words, **options: made)
    assert run(["export", str(tmp_path), str(tmp_path / "bundle")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "label 2 (gizmo_left): no code is known for this name; coded as Tissue, Left in DICOM" in said
    assert "--codes" in said and "liver" not in said
