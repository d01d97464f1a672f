"""`import segpipe` is quick, and its names stay functions and classes whatever else was imported."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

NAMES = [
    "Bundle",
    "Segmentation",
    "errors",
    "evaluate",
    "export",
    "open_bundle",
    "plan",
    "predict",
    "read_dicom",
    "train",
]
IMPORT = """
import sys
import segpipe
heavy = sorted({"torch", "monai", "numpy", "pydantic", "typer"} & set(sys.modules))
found = {"heavy": heavy, "names": sorted(segpipe.__all__), "there": sorted(set(segpipe.__all__) & set(dir(segpipe)))}
"""
WALK = """
import importlib, pkgutil
from inspect import ismodule as is_module
for module in pkgutil.walk_packages(segpipe.__path__, "segpipe."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
found["modules"] = {
    name: shadowed
    for name, module in sorted(sys.modules.items())
    if name.partition(".")[0] == "segpipe" and hasattr(module, "__path__")
    if (shadowed := [each for each in getattr(module, "__all__", ()) if is_module(getattr(module, each))])
}
"""


def answer(program: str) -> Any:
    program += "\nimport json; print(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_package_is_light_and_lists_its_names() -> None:
    assert answer(IMPORT) == {"heavy": [], "names": NAMES, "there": NAMES}


@pytest.mark.slow
def test_no_module_hides_a_public_name_of_any_door() -> None:
    assert answer(IMPORT + WALK)["modules"] == {"segpipe": ["errors"]}
