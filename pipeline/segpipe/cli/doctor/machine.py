"""The machine as a process sees it: processor, memory, disks, limits and settings, without naming host or user."""

from __future__ import annotations

import contextlib
import locale
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from segpipe.common.processes import usable_cores
from segpipe.common.provenance import processor

GIB = 2**30
CURRENT = "current folder"
INSTRUCTIONS = ("avx", "avx2", "fma", "avx512f", "amx_tile")
THREADS = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "KMP_BLOCKTIME",
    "KMP_AFFINITY",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "CUDA_VISIBLE_DEVICES",
)
LOCALES = ("LANG", "LC_ALL", "LC_CTYPE", "PYTHONUTF8", "PYTHONIOENCODING")
LIMITS = {
    "address_space_gib": "RLIMIT_AS",
    "file_size_gib": "RLIMIT_FSIZE",
    "open_files": "RLIMIT_NOFILE",
    "processes": "RLIMIT_NPROC",
}


def system() -> dict[str, Any]:
    """Operating system, Python, and whether this is a container or a virtual environment."""
    name = f"{platform.system()} {platform.release()}"
    with contextlib.suppress(OSError, AttributeError):  # no such file; Python 3.9
        name = f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {name}"
    marks = ("/.dockerenv", "/run/.containerenv")
    return {
        "name": name,
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "virtual_environment": sys.prefix != sys.base_prefix,
        "container": any(Path(mark).exists() for mark in marks),
    }


def cpu() -> dict[str, Any]:
    """Processor, cores that there are and that this process may use, and the wide instructions it has."""
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
    }


def memory(group: Path = Path("/sys/fs/cgroup")) -> dict[str, Any]:
    """Memory of the machine, what is free, and what a control group (version 2, else 1) leaves of it, in GiB."""
    import psutil

    limit = None
    for file in (group / "memory.max", group / "memory" / "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            limit = int(file.read_text())
            break
    found, swap = psutil.virtual_memory(), psutil.swap_memory()
    return {
        "total_gib": _gib(found.total),
        "available_gib": _gib(found.available),
        "swap_free_gib": _gib(swap.free),
        "group_limit_gib": _gib(limit) if limit is not None and limit < found.total else None,
    }


def disks() -> list[dict[str, Any]]:
    """Free space, in GiB, where files are made; the path of the current folder, which may tell of data, is left out."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    places = {"temporary files": Path(tempfile.gettempdir()), "cache": cache, "shared memory": Path("/dev/shm")}
    with contextlib.suppress(OSError):  # the folder was deleted
        places[CURRENT] = Path.cwd()
    return [_disk(what, path) for what, path in places.items() if path.is_dir() or what == "cache"]


def _disk(what: str, path: Path) -> dict[str, Any]:
    there = next((folder for folder in (path, *path.parents) if folder.is_dir()), path)
    usage = shutil.disk_usage(there)
    return {
        "what": what,
        "path": None if what == CURRENT else str(path),
        "free_gib": _gib(usage.free),
        "total_gib": _gib(usage.total),
        "writable": os.access(there, os.W_OK),
    }


def limits() -> dict[str, float | None]:
    """What the shell's ``ulimit`` leaves this process; None where there is no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return {}
    found: dict[str, float | None] = {}
    for name, constant in LIMITS.items():
        with contextlib.suppress(AttributeError, OSError, ValueError):
            limit, _ = resource.getrlimit(getattr(resource, constant))
            unlimited = limit == resource.RLIM_INFINITY
            found[name] = None if unlimited else _gib(limit) if name.endswith("_gib") else limit
    return found


def settings() -> dict[str, Any]:
    """Encodings, and the variables that change languages and threads."""
    return {
        "encoding": locale.getpreferredencoding(False),
        "file_names": sys.getfilesystemencoding(),
        "terminal": getattr(sys.stdout, "encoding", None),
        "variables": {name: os.environ[name] for name in (*LOCALES, *THREADS) if name in os.environ},
    }


def _gib(size: float) -> float:
    return round(size / GIB, 1)
