"""What is promised of Pythons and versions is what is tested, and says so in one way everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from segpipe import __version__

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHECKED_ONLY = ("3.12", "3.13")  # by ruff and mypy; no test runs there


def test_the_classifiers_are_the_pythons_that_tests_run_on() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    named = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)}
    assert named == {"3.11"}


def test_the_page_of_installation_names_the_untested_pythons() -> None:
    page = (ROOT / "docs/get_started/install.md").read_text()
    (row,) = [line for line in page.splitlines() if "no test runs there" in line]
    assert all(version in row for version in CHECKED_ONLY)
    lint = (ROOT / "Makefile").read_text()
    assert all(f"--target-version py{version.replace('.', '')}" in lint for version in CHECKED_ONLY)


def test_the_changelog_has_a_section_for_this_version() -> None:
    sections = re.findall(
        r"^## \[([^]]+)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    versions = dict(sections)
    assert versions.get(__version__), f"no dated section {__version__}"
    assert sections[0][0] in ("Unreleased", __version__)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_types_hold_on_later_pythons(tmp_path: Path) -> None:
    checks = [
        subprocess.Popen(
            [sys.executable, "-m", "mypy", "--python-version", version, "--cache-dir", str(tmp_path / version)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for version in CHECKED_ONLY
    ]
    outputs = [check.communicate()[0] for check in checks]
    assert [check.returncode for check in checks] == [0, 0], "\n".join(outputs)
