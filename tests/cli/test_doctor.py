"""What the doctor notes of machine, packages and libraries that may be broken, and what it must never print."""

from __future__ import annotations

import copy
import getpass
import json
import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from segpipe.cli import doctor
from segpipe.cli.app import run
from segpipe.cli.doctor import extras, notes, requirements, try_libraries
from segpipe.common.processes import no_answer
from segpipe.common.subprocesses import Ended

Change = Callable[[dict[str, Any]], object]
FINE: dict[str, Any] = {"imports": True, "seconds": 1.0, "error": None, "facts": {}}
BROKEN: dict[str, Any] = {"imports": False, "seconds": 1.0, "error": "ImportError: no libfoo.so", "facts": {}}
SOUND: dict[str, Any] = {
    "requirements": [{"package": "torch", "required": ">=2.10", "installed": "2.13", "extra": None, "state": "ok"}],
    "extras": [{"name": "openvino", "missing": []}, {"name": "sign", "missing": ["model-signing"]}],
    "libraries": {
        "torch": {**FINE, "facts": {"gpus": [{"name": "a GPU"}]}},
        "monai": FINE,
        "openvino": FINE,
        "dicom": {**FINE, "facts": {"codecs": {"JPEG-LS": True}}},
        "model-signing": BROKEN,
        "isolation": {**FINE, "facts": {"without_network": "possible", "without_files": "possible"}},
    },
    "system": {"python": "CPython 3.11.7"},
    "cpu": {"usable_cores": 4},
    "memory": {"available_gib": 16.0},
    "disks": [{"what": "shared memory", "free_gib": 1.0, "writable": True}],
    "limits": {"address_space_gib": None, "open_files": 1024},
    "settings": {"encoding": "UTF-8", "variables": {"OMP_NUM_THREADS": "4"}},
}


def test_of_a_sound_machine_nothing_is_noted() -> None:
    assert list(notes(SOUND, ">=3.10")) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found["requirements"][0].update(state="conflict", installed="1.0"), "torch 1.0 is not sup"),
        (lambda found: found["requirements"][0].update(state="missing"), "torch>=2.10 is not installed"),
        (lambda found: found["system"].update(python="CPython 3.9.1"), "Python 3.9.1 is not supported"),
        (lambda found: found["libraries"].update(monai=BROKEN), "monai does not work: ImportError: no libfoo.so"),
        (lambda found: found["libraries"].update(openvino=BROKEN), "openvino does not work"),
        (lambda found: found["libraries"]["dicom"]["facts"]["codecs"].update({"JPEG-LS": False}), "JPEG-LS"),
        (lambda found: found["libraries"]["isolation"]["facts"].update(without_files="no Landlock"), "(without files)"),
        (lambda found: found["memory"].update(available_gib=1.5), "1.5 GiB of memory"),
        (lambda found: found["disks"][0].update(free_gib=0.1), "shared memory: only 0.1 GiB"),
        (lambda found: found["disks"][0].update(writable=False), "cannot be written"),
        (lambda found: found["limits"].update(address_space_gib=8.0), "ulimit -v"),
        (lambda found: found["limits"].update(open_files=64), "ulimit -n leaves 64"),
        (lambda found: found["settings"].update(encoding="ANSI_X3.4-1968"), "PYTHONUTF8"),
        (lambda found: found["cpu"].update(usable_cores=2), "OMP_NUM_THREADS is 4, and 2 cores"),
    ],
)
def test_what_is_amiss_is_noted_alone(change: Change, words: str) -> None:
    found = copy.deepcopy(SOUND)
    change(found)
    (note,) = notes(found, ">=3.10")
    assert words in note


def test_without_an_installed_package_that_is_said() -> None:
    (note,) = notes({**SOUND, "requirements": []}, None)
    assert "not installed as a package" in note


def test_no_user_host_or_home_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home" / "jane.doe"
    (home / "patient_smith").mkdir(parents=True)
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "jdoe")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/jdoe/cache")
    monkeypatch.chdir(home / "patient_smith")
    error = f"OSError: {home}: denied; {home}/a.so, /data/jane.doe/b.so, {home}2, /x/jdoe.so"
    monkeypatch.setattr(doctor, "try_libraries", lambda: {"torch": {**BROKEN, "error": error}})
    assert getpass.getuser() == "jdoe"
    assert run(["doctor", "--json"]) == 0
    printed = capsys.readouterr().out
    assert "patient_smith" not in printed and socket.gethostname() not in printed
    found = json.loads(printed)
    assert {each["what"]: each["path"] for each in found["disks"]} == {
        "temporary files": "~",
        "cache": "/scratch/~/cache",
        "shared memory": "/dev/shm",
        "current folder": None,
    }
    shown = found["libraries"]["torch"]["error"]
    assert shown.startswith("OSError: ~: denied; ~/a.so, /data/~/b.so") and shown.endswith("/x/jdoe.so")
    assert run(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "torch does not work: OSError: ~" in shown and str(home) + "/" not in shown


def test_memory_of_a_control_group(tmp_path: Path) -> None:
    assert doctor.memory(tmp_path)["group_limit_gib"] is None
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.memory(tmp_path)["group_limit_gib"] is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str(2**29))
    assert doctor.memory(tmp_path)["group_limit_gib"] == 0.5
    (tmp_path / "memory.max").write_text(str(2**28))
    assert doctor.memory(tmp_path)["group_limit_gib"] == 0.2


def test_limits_are_those_of_the_shell() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        assert doctor.limits()["open_files"] == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("raise ImportError('libfoo.so:\\n not found')", "ImportError: libfoo.so: not found"),
        ("print('noise'); raise SystemError", "SystemError: "),
        ("import os; os.kill(os.getpid(), 4)", "the process crashed with SIGILL"),
        ("import os; os._exit(3)", "the process ended with code 3"),
        ("version = 1", "AttributeError"),
    ],
)
def test_a_broken_torch(
    content: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "PROBES", {"torch": doctor.PROBES["torch"]})
    found = try_libraries()["torch"]
    assert not found["imports"] and found["error"].startswith(error.strip()) and found["facts"] == {}
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""


@pytest.mark.slow
def test_what_is_here_imports() -> None:
    found = try_libraries()
    assert {name: library["error"] for name, library in found.items()} == dict.fromkeys(doctor.PROBES)
    assert found["torch"]["facts"]["cpu_capability"] and "CPU" in found["openvino"]["facts"]["devices"]
    assert set(found["isolation"]["facts"]) == {"without_network", "without_files"}
    assert set(found["dicom"]["facts"]["codecs"].values()) == {True}


def test_a_library_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging:
        def call(self, name: str, arguments: dict[str, Any], timeout_s: float) -> Ended:
            return Ended(-9, {"error": {"message": no_answer(timeout_s)}}, timeout_s, expired=True)

    monkeypatch.setattr(doctor, "Subprocesses", Hanging)
    monkeypatch.setattr("os.getloadavg", lambda: (14.25, 9.0, 7.0))
    found = try_libraries()["torch"]
    assert found["imports"] is None and found["seconds"] == 120
    (note,) = notes(
        {**SOUND, "libraries": {**SOUND["libraries"], "torch": {**found, "facts": {"gpus": [{}]}}}}, ">=3.10"
    )
    assert note.startswith("torch could not be tried: no answer in 120 s on a machine with load 14.2 for ")
    assert "does not work" not in note


LINES = [
    "numpy>=1.26",
    "torch<2,>=1",
    "no-such-package==1",
    "tomli>=2; python_version < '3.0'",
    "openvino>=2025.2; extra == 'openvino'",
    "absent; extra == 'more'",
    "numpy; extra == 'more'",
]


def test_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"numpy": "2.1.0", "torch": "2.13.0+cpu", "openvino": "2026.1.0rc1"}

    def version(package: str) -> str:
        if package not in here:
            raise PackageNotFoundError(package)
        return here[package]

    monkeypatch.setattr(doctor, "requires", lambda _: LINES)
    monkeypatch.setattr(doctor, "version", version)
    keys = ("package", "required", "installed", "extra", "state")

    def row(*values: str | None) -> dict[str, Any]:
        return dict(zip(keys, values, strict=True))

    found = requirements()
    assert found == [
        row("numpy", ">=1.26", "2.1.0", None, "ok"),
        row("torch", "<2,>=1", "2.13.0+cpu", None, "conflict"),
        row("no-such-package", "==1", None, None, "missing"),
        row("openvino", ">=2025.2", "2026.1.0rc1", "openvino", "ok"),
        row("absent", "", None, "more", "missing"),
        row("numpy", "", "2.1.0", "more", "ok"),
    ]
    assert extras(found) == [{"name": "openvino", "missing": []}, {"name": "more", "missing": ["absent"]}]


def test_without_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> Any:
        raise PackageNotFoundError

    monkeypatch.setattr(doctor, "requires", absent)
    monkeypatch.setattr(doctor, "metadata", absent)
    assert requirements() == [] and doctor.supported_pythons() is None
