"""What a report of a bug needs: facts of software and machine, and notes on what may be amiss with them.

`examine` gathers everything as plain values that name no host, user or home folder. Libraries, and what a process can
be denied, are tried in processes of their own, since a broken one may end or hang its process.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib
import locale
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from segpipe.common.memory import GROUPS, memory_here
from segpipe.common.processes import usable_cores
from segpipe.common.provenance import git_revision, processor
from segpipe.common.subprocesses import Subprocesses

Facts = dict[str, Any]

PATIENCE_S = 120
GIB = 2**30
LITTLE_GIB, LITTLE_SHARED_GIB = 2.0, 0.5  # data loaders hand over through shared memory
FEW_FILES = 256
EXTRA_OF = {"openvino": "openvino", "model-signing": "sign"}  # the extra that brings a library
CURRENT = "current folder"
VARIABLES = (
    *("LANG", "LC_ALL", "LC_CTYPE", "PYTHONUTF8", "PYTHONIOENCODING"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_AFFINITY", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "CUDA_VISIBLE_DEVICES"),
)


def examine() -> Facts:
    """Return everything that ``segpipe doctor`` prints, as its JSON schema has it."""
    from segpipe import __version__

    needs = requirements()
    facts: Facts = {
        "segpipe": {"version": __version__, "git_revision": git_revision()},
        "requirements": needs,
        "extras": extras(needs),
        "libraries": try_libraries(),
        "system": system(),
        "cpu": cpu(),
        "memory": memory(),
        "disks": disks(),
        "limits": limits(),
        "settings": {
            "encoding": locale.getpreferredencoding(False),
            "file_names": sys.getfilesystemencoding(),
            "terminal": getattr(sys.stdout, "encoding", None),
            "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        },
    }
    return _without_names({**facts, "notes": list(notes(facts, supported_pythons()))})


def requirements() -> list[Facts]:
    """Return each requirement of the installed segpipe with its state; none where it is not installed as a package."""
    from packaging.requirements import Requirement

    rows = []
    for line in _of_package(requires) or []:
        need, extra = Requirement(line), re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
        if need.marker and not need.marker.evaluate({"extra": extra[1] if extra else ""}):
            continue  # for another Python or system
        here = _of_package(version, need.name)
        fits = here is not None and need.specifier.contains(here, prereleases=True)
        state = "missing" if here is None else "ok" if fits else "conflict"
        row = {"package": need.name, "required": str(need.specifier), "installed": here}
        rows.append({**row, "extra": extra[1] if extra else None, "state": state})
    return rows


def supported_pythons() -> str | None:
    """Return the range of Python versions, as the installed segpipe states it."""
    package = _of_package(metadata)
    return package.get("Requires-Python") if package else None


def extras(needs: list[Facts]) -> list[Facts]:
    """Return each extra of segpipe, and what of it is missing."""
    names = dict.fromkeys(need["extra"] for need in needs if need["extra"])
    missing = [need for need in needs if need["state"] == "missing"]
    return [{"name": name, "missing": [need["package"] for need in missing if need["extra"] == name]} for name in names]


def try_libraries() -> dict[str, Facts]:
    """Try each of `PROBES` in a process, side by side: whether it imports, in which time, why not, and its facts.

    Whether it imports is None where it gave no answer in `PATIENCE_S`: a busy machine says nothing of a library.
    """
    processes = Subprocesses()

    def tried(name: str) -> Facts:
        ended = processes.call("segpipe.cli.doctor.probe", {"name": name}, timeout_s=PATIENCE_S)
        answer = ended.result or {"error": ended.reason, "facts": {}}
        works = None if ended.expired else answer["error"] is None
        return {"imports": works, "seconds": round(ended.seconds, 1), **answer}

    with ThreadPoolExecutor(len(PROBES)) as pool:
        return dict(zip(PROBES, pool.map(tried, PROBES), strict=True))


def probe(name: str) -> Facts:
    """Return the facts of a library, or why it does not work; called in a process of its own."""
    try:
        return {"error": None, "facts": PROBES[name]()}
    except Exception as error:  # noqa: BLE001 - a broken library raises anything
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500], "facts": {}}


def _torch() -> Facts:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        capability = f"{gpu.major}.{gpu.minor}"
        gpus.append({"name": gpu.name, "memory_gib": _gib(gpu.total_memory), "capability": capability})
    cpu_capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return {"cuda": torch.version.cuda, "cpu_capability": cpu_capability, "threads": threads, "gpus": gpus}


def _openvino() -> Facts:
    import openvino

    return {"devices": list(openvino.Core().available_devices)}


def _dicom() -> Facts:
    from segpipe.dicom import available_codecs

    return {"codecs": available_codecs()}


def _isolation() -> Facts:
    from segpipe.common.isolation import give_up_files, give_up_network

    network = give_up_network()
    files = give_up_files((), [tempfile.gettempdir()])
    return {"without_network": network or "possible", "without_files": files or "possible"}


def _imports(*modules: str) -> Callable[[], Facts]:
    def probe_imports() -> Facts:
        for module in modules:
            importlib.import_module(module)
        return {}

    return probe_imports


PROBES: dict[str, Callable[[], Facts]] = {
    "torch": _torch,
    "monai": _imports("monai.bundle", "monai.networks.nets"),
    "openvino": _openvino,
    "dicom": _dicom,
    "model-signing": _imports("model_signing.signing", "model_signing.verifying"),
    "isolation": _isolation,
}


def system() -> Facts:
    """Return operating system and Python, and whether this is a container or a virtual environment."""
    name = f"{platform.system()} {platform.release()}"
    with contextlib.suppress(OSError):
        name = f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {name}"
    return {
        "name": name,
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "virtual_environment": sys.prefix != sys.base_prefix,
        "container": any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")),
    }


def cpu() -> Facts:
    """Return the processor, its cores, those that this process may use, and the wide instructions it has."""
    table = Path("/proc/cpuinfo")
    flags = table.read_text().split() if table.is_file() else []
    instructions = [name for name in ("avx", "avx2", "fma", "avx512f", "amx_tile") if name in flags]
    counts = {"cores": os.cpu_count(), "usable_cores": usable_cores()}
    return {"processor": processor(), **counts, "instructions": instructions}


def memory(group: Path = GROUPS) -> Facts:
    """Return memory in GiB: of the machine, free, and what a control group (version 2 or 1) leaves of it."""
    import psutil

    ram, limit = psutil.virtual_memory(), memory_here(group).group
    return {
        "total_gib": _gib(ram.total),
        "available_gib": _gib(ram.available),
        "swap_free_gib": _gib(psutil.swap_memory().free),
        "group_limit_gib": None if limit is None else _gib(limit),
    }


def disks() -> list[Facts]:
    """Return space, in GiB, where files are made; the current folder's path, which may tell of data, is left out."""
    import psutil

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    places = {"temporary files": Path(tempfile.gettempdir()), "cache": cache, "shared memory": Path("/dev/shm")}
    with contextlib.suppress(OSError):  # the folder was deleted
        places[CURRENT] = Path.cwd()
    rows = []
    for use, path in places.items():
        if path.is_dir() or path == cache:
            existing = next((folder for folder in (path, *path.parents) if folder.is_dir()), path)
            usage = psutil.disk_usage(str(existing))
            size = {"free_gib": _gib(usage.free), "total_gib": _gib(usage.total)}
            shown = None if use == CURRENT else str(path)
            rows.append({"what": use, "path": shown, **size, "writable": os.access(existing, os.W_OK)})
    return rows


def limits() -> dict[str, float | None]:
    """Return what the shell's ``ulimit`` leaves this process; None where there is no limit."""
    import resource

    def limit(kind: int, unit: int = 1) -> float | None:
        soft, _ = resource.getrlimit(kind)
        return None if soft == resource.RLIM_INFINITY else round(soft / unit, 1) if unit > 1 else soft

    return {
        "address_space_gib": limit(resource.RLIMIT_AS, GIB),
        "file_size_gib": limit(resource.RLIMIT_FSIZE, GIB),
        "open_files": limit(resource.RLIMIT_NOFILE),
        "processes": limit(resource.RLIMIT_NPROC),
    }


def notes(facts: Facts, pythons: str | None) -> Iterator[str]:
    """Yield what may be amiss, each in a sentence.

    Args:
        facts: what `examine` gathered.
        pythons: range of Python versions that segpipe supports; None where it is not installed as a package.
    """
    yield from _notes_on_packages(facts, pythons)
    yield from _notes_on_libraries(facts)
    yield from _notes_on_machine(facts)


def _notes_on_packages(facts: Facts, pythons: str | None) -> Iterator[str]:
    from packaging.specifiers import SpecifierSet

    python = facts["system"]["python"].split()[-1]
    if pythons is None:
        yield "segpipe is not installed as a package, so its requirements were not looked at: pip install ."
    elif not SpecifierSet(pythons).contains(python, prereleases=True):
        yield f"Python {python} is not supported: segpipe needs {pythons}"
    for need in facts["requirements"]:
        requirement = f"{need['package']}{need['required']}"
        if need["state"] == "conflict":
            yield f"{need['package']} {need['installed']} is not supported: segpipe needs {requirement}"
        elif need["state"] == "missing" and need["extra"] is None:
            yield f"{requirement} is not installed"


def _notes_on_libraries(facts: Facts) -> Iterator[str]:
    complete = {extra["name"] for extra in facts["extras"] if not extra["missing"]}
    answer = {name: library["facts"] for name, library in facts["libraries"].items()}
    for name, library in facts["libraries"].items():
        if not library["imports"] and EXTRA_OF.get(name) in {None, *complete}:
            known = "does not work" if library["imports"] is False else "could not be tried"
            yield f"{name} {known}: {library['error']}"
    for codec, available in answer.get("dicom", {}).get("codecs", {}).items():
        if not available:
            yield f"DICOM files in {codec} cannot be read: their decoder is missing"
    for layer, possible in answer.get("isolation", {}).items():
        if possible != "possible":
            yield f"bundles are verified less isolated than they could be ({layer.replace('_', ' ')}): {possible}"
    if answer.get("torch", {}).get("gpus") == [] and Path("/dev/nvidia0").exists():
        yield "there is a GPU of NVIDIA, and this torch does not see it: install one that is built for its driver"


def _notes_on_machine(facts: Facts) -> Iterator[str]:
    memory, limits, settings, cores = facts["memory"], facts["limits"], facts["settings"], facts["cpu"]["usable_cores"]
    if memory["available_gib"] < LITTLE_GIB:
        yield f"only {memory['available_gib']} GiB of memory are free"
    for disk in facts["disks"]:
        if disk["free_gib"] < (LITTLE_SHARED_GIB if disk["what"] == "shared memory" else LITTLE_GIB):
            yield f"{disk['what']}: only {disk['free_gib']} GiB are free"
        if not disk["writable"]:
            yield f"{disk['what']}: the folder cannot be written to"
    if limits["address_space_gib"] is not None:
        yield f"ulimit -v leaves {limits['address_space_gib']} GiB of addresses: libraries may fail to load"
    if limits["open_files"] is not None and limits["open_files"] < FEW_FILES:
        yield f"ulimit -n leaves {limits['open_files']} open files"
    if settings["encoding"].lower().replace("-", "") != "utf8":
        yield f"text is read as {settings['encoding']}, not UTF-8: set PYTHONUTF8=1"
    threads = settings["variables"].get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > cores:
        yield f"OMP_NUM_THREADS is {threads}, and {cores} cores may be used"


def _without_names(value: Any) -> Any:
    """Return plain values with the home folder as ``~`` in each text, and the user's name in no path."""
    home, users = str(Path.home()), {Path.home().name}
    with contextlib.suppress(OSError, KeyError, ImportError):
        users.add(getpass.getuser())
    at_home = re.compile(rf"(?<![\w.~]){re.escape(home)}(?![\w.-])")
    named = re.compile(rf"(?<=[/\\])(?:{'|'.join(re.escape(user) for user in users if user)})(?![\w.-])")

    def cleaned(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: cleaned(item) for key, item in part.items()}
        if isinstance(part, list):
            return [cleaned(item) for item in part]
        return named.sub("~", at_home.sub("~", part)) if isinstance(part, str) else part

    return cleaned(value)


def _of_package(read: Callable[[str], Any], package: str = "segpipe") -> Any:
    try:
        return read(package)
    except PackageNotFoundError:
        return None


def _gib(size: float) -> float:
    return round(size / GIB, 1)
