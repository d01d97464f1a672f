"""What a run record says of the machine and the software, without naming host or user."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from segpipe.common.processes import tied, usable_cores

BFLOAT16 = {"amx": "amx_bf16", "avx512_bf16": "avx512_bf16"}  # kind of CPU to the flag that the system names
PACKAGES = ("segpipe", "monai", "torch", "pytorch-ignite", "numpy", "nibabel", "scipy", "SimpleITK", "pydicom")


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that a result depends on."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def git_revision() -> str | None:
    """Return the commit of the checkout that this runs from, ``+changes`` where it is not clean; None elsewhere.

    As it was when this process first asked: the code that it runs does not change with the files.
    """
    return _revision_of(Path(__file__).resolve().parents[3])


@functools.cache
def _revision_of(folder: Path) -> str | None:
    if not (folder / ".git").exists():
        return None
    try:
        revision = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--", "pipeline", "configs")
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+changes" if changed else "")


def hardware() -> dict[str, Any]:
    """Return processor, cores for this process, memory and GPUs."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": processor(),
        "cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_kind": cpu_kind(),
        "gpus": gpus,
    }


def environment() -> dict[str, Any]:
    """Return versions, revision, system and hardware."""
    return {
        "versions": versions(),
        "git_revision": git_revision(),
        "system": f"{platform.system()} {platform.machine()}",
        "hardware": hardware(),
    }


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        tied(["git", "-C", str(folder), *arguments]), capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def processor() -> str:
    """Return what the processor is called."""
    return _of_processor("model name") or platform.processor() or platform.machine()


def cpu_kind() -> str:
    """Return with what this CPU multiplies matrices of bfloat16: ``amx``, ``avx512_bf16`` or ``neither``."""
    flags = _of_processor("flags").split()
    return next((kind for kind, flag in BFLOAT16.items() if flag in flags), "neither")


@functools.cache
def _of_processor(name: str) -> str:
    """Return what the system says of the first core, empty where it says nothing."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.split(":", 1)[0].strip() == name:
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""
