"""What stands on the pages runs: Python blocks, and the shell blocks that are marked for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from docs.pages import ROOT, Block, blocks, commands
from segpipe.cli.app import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PYTHON = [block for block in blocks("python") if block.mark != "example"]
MYPY = """[mypy]
strict = true
ignore_missing_imports = true
follow_imports = silent

[mypy-torch.*,monai.*,ignite.*,scipy.*,matplotlib.*,SimpleITK.*,pydicom.*,highdicom.*]
follow_imports = skip
"""
HELD = 6  # all ran: the shipped bundle holds generated scans, which are no heads
PAGES = sorted({block.page for block in PYTHON})


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run_one_after_another(page: str, project: Path) -> None:
    names: dict[str, Any] = {}
    for block in PYTHON:
        if block.page == page:
            code = "\n" * block.line + block.text
            exec(compile(code, str(ROOT / page), "exec"), names)


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("sh") if block.mark == "run"}))
def test_marked_commands_run_one_after_another(page: str, project: Path) -> None:
    for block in blocks("sh"):
        if block.page == page and block.mark == "run":
            verb, *shorter = block.more.split() or [""]
            for words in commands(block.text):
                code = run([*words, *(shorter if words[0] == verb else [])])
                assert code in (0, HELD), " ".join(words)


def test_the_python_of_the_pages_is_typed_as_a_user_checks_it(tmp_path: Path) -> None:
    for number, page in enumerate(PAGES):
        text = "\n".join(block.text for block in blocks("python") if block.page == page)
        (tmp_path / f"page_{number}.py").write_text(f"# {page}\n{text}\n")
    (tmp_path / "mypy.ini").write_text(MYPY)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "."],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT / "pipeline")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_mark_is_meant(project: Path) -> None:
    marked: list[Block] = [block for language in ("sh", "python") for block in blocks(language) if block.mark == "run"]
    assert all(block.language == "sh" for block in marked)
    assert all(list(commands(block.text)) for block in marked)
