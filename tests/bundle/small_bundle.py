"""A small bundle for the tests of vetting, and ways to spoil it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from segpipe.bundle.vet.bundle_files import Finding
from segpipe.bundle.vet.documents import write_sums
from tiny_bundle import write_bundle

LOGGING = """[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=plain
[logger_root]
level=INFO
handlers=console
[handler_console]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stdout,)
[formatter_plain]
format=%(asctime)s %(message)s
"""


def small_bundle(root: Path, sums: bool = True) -> Path:
    """A bundle that passes: complete metadata, plain weights, a logging configuration, SHA256SUMS."""
    write_bundle(root)
    change_json(
        root / "configs/metadata.json",
        lambda metadata: metadata.update(
            monai_version=version("monai"),
            pytorch_version=version("torch").partition("+")[0],
            numpy_version=version("numpy"),
            changelog={"0.1.0": "first"},
            required_packages_version={},
            license="CC0-1.0",
            intended_use="Tests.",
        ),
    )
    (root / "configs/logging.conf").write_text(LOGGING)
    (root / "LICENSE").write_text("CC0")
    (root / "docs").mkdir()
    (root / "docs/README.md").write_text("# tiny\n\nA card.\n")
    if sums:
        write_sums(root)
    return root


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def copy(root: Path, to: Path) -> Path:
    shutil.copytree(root, to, symlinks=True)
    return to


def places(findings: list[Finding]) -> set[tuple[str, str]]:
    return {(each.file, each.place) for each in findings}
