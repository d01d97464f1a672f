"""What the doctor notes of a machine and an installation, and what it must never print."""

from __future__ import annotations

import copy
import getpass
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segpipe.cli.app import run
from segpipe.cli.doctor import doctor_report as report
from segpipe.cli.doctor import machine
from segpipe.cli.doctor.doctor_report import notes

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
    monkeypatch.setattr(report, "try_all", lambda: {"torch": {**BROKEN, "error": error}})
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
    assert machine.memory(tmp_path)["group_limit_gib"] is None
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory(tmp_path)["group_limit_gib"] is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str(2**29))
    assert machine.memory(tmp_path)["group_limit_gib"] == 0.5
    (tmp_path / "memory.max").write_text(str(2**30))
    assert machine.memory(tmp_path)["group_limit_gib"] == 1.0


def test_limits_are_those_of_the_shell() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        assert machine.limits()["open_files"] == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
