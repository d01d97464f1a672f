"""bundle/vet can be audited alone: it imports nothing but what its docstring names."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from segpipe.bundle import vet

LIBRARIES = {"jsonschema", "lazy_loader", "packaging", "yaml"}
OURS = ("segpipe.bundle.vet", "segpipe.common", "segpipe.errors")
LOOKED_UP = {("names.py", "monai.bundle")}  # where the names of a bundle are resolved


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield str(node.module)


def test_it_imports_nothing_but_what_it_says() -> None:
    files = sorted(Path(vet.__path__[0]).glob("**/*.py"))
    assert len(files) >= 6
    others = {
        (file.name, module)
        for file in files
        for module in imports(file)
        if module.partition(".")[0] not in sys.stdlib_module_names | LIBRARIES
        if not any(module == room or module.startswith(f"{room}.") for room in OURS)
    }
    assert others == LOOKED_UP
