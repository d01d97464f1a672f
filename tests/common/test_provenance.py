"""A run record says what it ran on, and neither where nor who."""

from __future__ import annotations

import getpass
import json
import platform
import re
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from segpipe.common import provenance
from segpipe.common.provenance import environment, git_revision, versions


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the package seems to lie in."""
    module = tmp_path / "pipeline" / "segpipe" / "common" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("x = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(module))
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_versions_are_those_installed() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == version("numpy")
    assert {"monai", "torch", "nibabel"} <= set(found)


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    assert set(versions()) == {"python", "numpy"}


def test_the_record_names_neither_host_nor_user_nor_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME"):
        monkeypatch.setenv(name, "zaphod")
    monkeypatch.setattr(socket, "gethostname", lambda: "heart-of-gold")
    actual = platform.uname()
    monkeypatch.setattr(platform, "uname", lambda: actual._replace(node="heart-of-gold"))
    record: dict[str, Any] = environment()
    text = json.dumps(record)
    assert getpass.getuser() == "zaphod" and platform.node() == "heart-of-gold"
    for secret in ("zaphod", "heart-of-gold", actual.node, str(Path.home()), str(Path.cwd())):
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text)
    assert set(record) == {"versions", "git_revision", "system", "hardware"}
    assert record["hardware"]["cores"] >= 1 and record["hardware"]["memory_gib"] > 0


@pytest.mark.usefixtures("checkout")
def test_outside_a_checkout_there_is_no_revision() -> None:
    assert git_revision() is None


def test_a_revision_says_whether_the_code_was_changed(checkout: Path) -> None:
    git(checkout, "init", "-q")
    git(checkout, "add", "pipeline")
    git(checkout, "commit", "-qm", "first")
    revision = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").write_text("beside the code")
    assert git_revision() == revision
    (checkout / "pipeline" / "segpipe" / "common" / "provenance.py").write_text("x = 2\n")
    assert git_revision() == revision  # which this process loaded
    provenance._revision_of.cache_clear()
    assert git_revision() == revision + "+changes"


def test_a_checkout_that_git_cannot_read_has_no_revision(checkout: Path) -> None:
    (checkout / ".git").mkdir()
    assert git_revision() is None


def test_without_git_there_is_no_revision(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / ".git").mkdir()
    monkeypatch.setenv("PATH", str(checkout))
    assert git_revision() is None
