"""Promises of the house that no single module can keep: start-up cost, layers, pages, tests, no stray paths."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from segpipe.cli.app import VERBS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "monai", "ignite", "numpy", "nibabel", "pydantic", "rich", "matplotlib", "scipy", "SimpleITK"}
OWN_TESTS = {"import": "importers", "split": "splits"}  # where the module is not called as the verb


def tracked() -> list[Path]:
    """Files that git knows, or, without git, all that are not ignored by name."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.splitlines()
        files = [ROOT / name for name in listed]
    except (OSError, subprocess.CalledProcessError):
        files = [path for path in ROOT.rglob("*") if not any(part.startswith(".venv") for part in path.parts)]
    return [path for path in files if path.is_file()]


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from segpipe.cli.app import run; code = run(['--help']);"
        "print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules})); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "typer" in loaded
    assert loaded & HEAVY == set()
    assert done.stderr == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_teaches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    from segpipe.cli.app import run

    assert run([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert "--json" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_page_and_tests(verb: str) -> None:
    page = ROOT / "docs" / "reference" / "commands" / f"{verb}.md"
    assert page.is_file()
    assert f"segpipe {verb}" in page.read_text()
    names = {verb, OWN_TESTS.get(verb, verb)}
    assert [path for path in (ROOT / "tests").rglob("test_*.py") if any(name in path.stem for name in names)]


def test_layers_and_types_are_part_of_make_test() -> None:
    makefile = (ROOT / "Makefile").read_text()
    lint = makefile[makefile.index("\nlint:") : makefile.index("\ntest:")]
    for tool in ("ruff check", "ruff format --check", "mypy", "lint-imports"):
        assert tool in lint
    assert re.search(r"^test: lint", makefile, re.MULTILINE)
    runner = ROOT / ".ci" / "run"
    assert os.access(runner, os.X_OK)
    assert runner.read_text().index("make test\n") < runner.read_text().index("make test-slow")


def test_each_file_of_tests_has_a_name_of_its_own() -> None:
    """The folders are no packages, so two of one name cannot be collected together."""
    names = [path.name for path in tracked() if path.is_relative_to(ROOT / "tests") and path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))


def test_no_file_names_a_path_of_a_workplace() -> None:
    stray = re.compile(r"(?<![\w.$}-])/(?:work)/\w")
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in stray.finditer(text)]
    assert found == []


def test_manifests_and_json_in_the_repository_can_be_read() -> None:
    for path in tracked():
        if path.suffix == ".json" and "corpus" not in path.parts:  # of the fuzzing, which is broken on purpose
            json.loads(path.read_text())
