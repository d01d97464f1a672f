"""What a process that was isolated can still reach, and what it says where the kernel does not help."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segpipe.common import isolation

TRIES = """
import ctypes, importlib.util, json, os, socket, subprocess, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("isolation", {file!r})
isolation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(isolation)
work, outside, port, parent = Path({work!r}), Path({outside!r}), {port}, {parent}
ways = dict(
    network=isolation.leave_network,
    calls=isolation.forbid_calls,
    files=lambda: isolation.give_up_files([*isolation.SYSTEM, sys.prefix, sys.base_prefix], [work]),
)
(work / "here").write_text("here")
said = {{name: ways[name]() if name in {layers} else "not asked for" for name in ways}}
isolation.set_limits(2**30, 50)

def attempt(what):
    try:
        what()
        return True
    except (OSError, MemoryError):
        return False

def connect():
    socket.create_connection(("127.0.0.1", port), timeout=5).close()

said["attempts"] = {{
    "connects": attempt(connect),
    "asks_a_name_server": attempt(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("1.1.1.1", 53))),
    "speaks_to_a_service": attempt(lambda: socket.socket(socket.AF_UNIX).connect(str(outside / "service"))),
    "writes_outside": attempt(lambda: (outside / "new").write_text("x")),
    "changes_outside": attempt(lambda: os.truncate(outside / "secret", 0)),
    "reads_outside": attempt(lambda: (outside / "secret").read_text()),
    "lists_outside": attempt(lambda: os.listdir(outside)),
    "reads_passwords": attempt(lambda: open("/etc/shadow").read()),
    "reads_the_parent": attempt(lambda: open(f"/proc/{{parent}}/environ").read()),
    "runs_a_program": attempt(lambda: subprocess.run(["/bin/true"], check=True)),
    "takes_much_memory": attempt(lambda: bytearray(2**31)),
    "signals_the_parent": attempt(lambda: os.kill(parent, 0)),
    "forks": attempt(lambda: os.fork() or os._exit(0)),
    "changes_rights_outside": attempt(lambda: os.chmod(outside / "secret", 0o600)),
    "changes_times_outside": attempt(lambda: os.utime(outside / "secret")),
    "links_outside": attempt(lambda: os.link(outside / "secret", work / "linked")),
    "makes_a_link": attempt(lambda: os.symlink("/etc/passwd", work / "link")),
    "makes_a_pipe": attempt(lambda: os.mkfifo(work / "pipe")),
    "writes_own": attempt(lambda: (work / "own").write_text("x")),
    "makes_own_folders": attempt(lambda: (work / "deep" / "er").mkdir(parents=True)),
    "reads_packages": attempt(lambda: Path(json.__file__).read_text()),
    "signals_itself": attempt(lambda: os.kill(os.getpid(), 0)),
    "starts_a_thread": attempt(lambda: __import__("threading").Thread(target=print).start()),
}}
print("\\n" + json.dumps(said))
"""
STILL = {"writes_own", "makes_own_folders", "reads_packages", "signals_itself", "starts_a_thread"}
OF_CALLS = {
    "speaks_to_a_service",
    "runs_a_program",
    "forks",
    "signals_the_parent",
    "changes_outside",
    "changes_rights_outside",
    "changes_times_outside",
    "makes_a_pipe",
}
OF_FILES = {
    "links_outside",
    "makes_a_link",
    "makes_a_pipe",
    "writes_outside",
    "changes_outside",
    "reads_outside",
    "lists_outside",
    "reads_passwords",
    "reads_the_parent",
    "runs_a_program",
}


@pytest.mark.parametrize("layers", [("network",), ("calls",), ("files",), ("network", "calls", "files")])
def test_an_isolated_process_reaches_its_own_folder_and_packages_alone(layers: tuple[str, ...], tmp_path: Path) -> None:

    work, outside = tmp_path / "work", tmp_path / "outside"
    work.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as service:
        service.bind(str(outside / "service"))
        service.listen()
        code = TRIES.format(
            file=isolation.__file__,
            work=str(work),
            outside=str(outside),
            port=server.getsockname()[1],
            layers=layers,
            parent=os.getpid(),
        )
        done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, cwd=work)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    reached = {name for name, worked in said["attempts"].items() if worked}
    assert reached >= STILL
    assert "takes_much_memory" not in reached
    if said["network"] is None or said["calls"] is None:
        assert not reached & {"connects", "asks_a_name_server"}
    if said["calls"] is None:
        assert not reached & OF_CALLS
    if said["files"] is None:
        assert not reached & OF_FILES
        assert (outside / "secret").read_text() == "secret"
    if layers == ("network", "calls", "files") and [said[name] for name in layers] == [None] * 3:
        assert reached == STILL


class Kernel:
    """A C library whose calls answer as told."""

    def __init__(self, **answers: int) -> None:
        self.answers = answers

    def unshare(self, flags: int) -> int:
        ctypes.set_errno(1)
        return self.answers["user"] if flags & isolation.NEW_USER else self.answers["network"]

    def syscall(self, number: int, *_: Any) -> int:
        ctypes.set_errno(38)
        return self.answers["landlock"]

    def prctl(self, option: int, *_: Any) -> int:
        ctypes.set_errno(22)
        return self.answers["seccomp"] if option == isolation.PR_SET_SECCOMP else 0


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_kernel_that_does_not_help_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nothing = {"user": -1, "network": -1, "landlock": -1, "seccomp": -1}
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Kernel(**nothing))
    left = "the kernel does not let this user make a network namespace (EPERM)"
    assert isolation.leave_network() == left
    assert isolation.give_up_network() == f"{left}; seccomp: Invalid argument"
    assert isolation.give_up_files([], [tmp_path]) == "the kernel has no Landlock"
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Kernel(**{**nothing, "seccomp": 0}))
    assert isolation.give_up_network() is None
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Kernel(**{**nothing, "network": 0}))
    assert isolation.give_up_network() is None  # root, where user namespaces are off


def test_other_systems_have_their_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert isolation.give_up_network() == "darwin has no network namespaces; darwin has no seccomp"
    assert isolation.give_up_files([], [tmp_path]) == "darwin has no Landlock"
