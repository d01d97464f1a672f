"""Libraries are tried in processes of their own: what one does there leaves the report whole."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from segpipe.cli.doctor import probes
from segpipe.cli.doctor.probes import try_all


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("raise ImportError('libfoo.so:\\n not found')", "ImportError: libfoo.so: not found"),
        ("print('noise'); raise SystemError", "SystemError: "),
        ("import os; os.kill(os.getpid(), 4)", "the process crashed with SIGILL"),
        ("import os; os._exit(3)", "the process ended with code 3"),
        ("version = 1", "AttributeError"),
    ],
)
def test_a_broken_torch(
    content: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = try_all(["torch"])["torch"]
    assert not found["imports"] and found["error"].startswith(error.strip()) and found["facts"] == {}
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""


@pytest.mark.slow
def test_what_is_here_imports() -> None:
    found = try_all()
    assert {name: library["error"] for name, library in found.items()} == dict.fromkeys(probes.PROBES)
    assert found["torch"]["facts"]["cpu_capability"] and "CPU" in found["openvino"]["facts"]["devices"]
    assert set(found["isolation"]["facts"]) == {"without_network", "without_files"}
    assert set(found["dicom"]["facts"]["codecs"].values()) == {True}


def test_a_library_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: Any, timeout: float, **__: Any) -> Any:
        raise subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(probes.subprocess, "run", hang)
    assert "did not end within" in try_all(["torch"])["torch"]["error"]
