"""A process of its own for what a bundle would run: no network, no files but its own, no other process, bounded.

This file is also the program of that process, and imports nothing but the standard library, since rights are given up
before anything else is loaded or a second thread exists:

- seccomp (Linux, seccomp(2)): no sockets, so that no service of this machine is spoken to either; no programs and no
  further processes, so that nothing is left behind; no signals to others; no rights, owners or times of files changed;
- Landlock (Linux 5.13, landlock(7)): reads installed packages and what it was given, writes to its own folders alone;
- user and network namespaces (Linux, unshare(2)), where they are asked for or seccomp cannot be had: no network;
- setrlimit(2): memory, processor time, size of a file, as asked for; no core dump.

It reads one line of JSON, a request as `isolate` takes it, and hands over to the function that the request names, with
the request and what of the isolation was had.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # <linux/sched.h>
THREAD = 0x00010000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38  # <linux/prctl.h>
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on every architecture
PATH_BENEATH = 1
READ = 1 << 2 | 1 << 3  # <linux/landlock.h>: a file, a folder
WRITE_FILE, EXECUTE = 1 << 1, 1 << 0
FIRST_RIGHTS, RENAME_ACROSS, TRUNCATE = (1 << 13) - 1, 1 << 13, 1 << 14
SPECIAL = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12  # making devices, sockets, pipes and links
SCOPES = 1 << 0 | 1 << 1  # abstract sockets, signals to others
_SYSTEM = """
    /usr /lib /lib64 /opt /nix/store /gnu/store /sys/devices /sys/fs/cgroup /proc/self /proc/sys /proc/cpuinfo
    /proc/meminfo /proc/stat /etc/ld.so.cache /etc/localtime /etc/mime.types /dev/urandom
"""
SYSTEM = tuple(_SYSTEM.split())
GPU_NODES = ("nvidiactl", "nvidia[0-9]*", "nvidia-uvm*", "nvidia-modeset", "nvidia-caps/*", "dri/renderD*")  # of /dev
GPU_FACTS = ("/proc/driver/nvidia", "/proc/devices", "/proc/modules", "/sys/bus/pci", "/sys/module", "/sys/class/drm")
FILE_BYTES = 2**31
UNIX = 1  # AF_UNIX
LOAD, IF_EQUAL, IF_AT_LEAST, IF_ANY, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # <linux/bpf_common.h>
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # <linux/seccomp.h>, struct seccomp_data; both are little-endian
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
OTHER_CALLS = 0x40000000  # x86_64: the same calls by other numbers
# <asm/unistd_64.h> and <asm-generic/unistd.h>
_X86_64 = """
    execve 59 execveat 322 fork 57 vfork 58 ptrace 101 process_vm_readv 310 process_vm_writev 311 io_uring_setup 425
    tkill 200 pidfd_send_signal 424 pidfd_open 434 pidfd_getfd 438 truncate 76 chmod 90 fchmod 91 fchmodat 268
    fchmodat2 452 chown 92 fchown 93 lchown 94 fchownat 260 setxattr 188 lsetxattr 189 fsetxattr 190 removexattr 197
    lremovexattr 198 fremovexattr 199 setxattrat 463 removexattrat 466 file_setattr 469 utime 132 utimes 235
    futimesat 261 utimensat 280 add_key 248 request_key 249 keyctl 250 bpf 321 userfaultfd 323 perf_event_open 298
    open_by_handle_at 304 mount 165 umount2 166 mknod 133 mknodat 259
"""
_AARCH64 = """
    execve 221 execveat 281 ptrace 117 process_vm_readv 270 process_vm_writev 271 io_uring_setup 425 tkill 130
    pidfd_send_signal 424 pidfd_open 434 pidfd_getfd 438 truncate 45 fchmod 52 fchmodat 53 fchmodat2 452 fchownat 54
    fchown 55 setxattr 5 lsetxattr 6 fsetxattr 7 removexattr 14 lremovexattr 15 fremovexattr 16 setxattrat 463
    removexattrat 466 file_setattr 469 utimensat 88 add_key 217 request_key 218 keyctl 219 bpf 280 userfaultfd 282
    perf_event_open 241 open_by_handle_at 265 mount 40 umount2 39 mknodat 33
"""
# by machine: AUDIT_ARCH, calls that are denied, those that signal the process of their first argument, those that send
MACHINES = {
    "x86_64": (0xC000003E, _X86_64, (62, 234, 129, 297), (42, 44, 46, 307), {"socket": 41, "clone": 56}),
    "aarch64": (0xC00000B7, _AARCH64, (129, 131, 138, 240), (203, 206, 211, 269), {"socket": 198, "clone": 220}),
}
CLONE3 = 435
Report = dict[str, str | None]


def isolate(request: Mapping[str, Any]) -> Report:
    """Isolate this process, which has one thread, as far as the kernel lets it.

    Args:
        request: ``work`` (folder to work in and write to), ``readable`` and ``writable`` (further files and folders),
            ``gpu`` (whether GPUs are used), ``namespaces`` (leave the network by these as well), ``memory_bytes``
            and ``seconds``; what is not there is not asked for.

    Returns:
        For ``network``, ``files`` and ``calls`` (seccomp) None where it was had, else why not.
    """
    os.chdir(request["work"])
    left = leave_network() if request.get("namespaces") else "not asked for"
    calls = forbid_calls(gpu=bool(request.get("gpu")))
    if calls and not request.get("namespaces"):
        left = leave_network()
    devices = gpu_nodes() if request.get("gpu") else []
    readable = [*SYSTEM, *(GPU_FACTS if devices else ()), *request.get("readable", ())]
    files = give_up_files(readable, [request["work"], *request.get("writable", ())], devices)
    set_limits(request.get("memory_bytes"), request.get("seconds"))
    return {"network": left and calls and f"{left}; {calls}", "files": files, "calls": calls}


def in_words(report: Mapping[str, str | None]) -> tuple[str, str | None]:
    """Return what of the isolation was had, ``none`` for nothing, and why not the rest."""
    network, files = report["network"], report["files"]
    had = [*([] if network else ["no network"]), *([] if files else ["no other files, no programs"])]
    return ", ".join(had) or "none", "; ".join(filter(None, (network, files))) or None


def is_isolated(report: Mapping[str, str | None]) -> bool:
    """Return whether any of the layers was had that count: seccomp or Landlock."""
    return report["calls"] is None or report["files"] is None


def give_up_network() -> str | None:
    """Leave the network in both ways; return None where one of them is possible here, else why neither is."""
    left, forbidden = leave_network(), forbid_calls()
    return left and forbidden and f"{left}; {forbidden}"


def leave_network() -> str | None:
    """Move to namespaces without network, as a process of one thread can; None, or why it is not possible here."""
    if sys.platform != "linux":
        return f"{sys.platform} has no network namespaces"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_USER | NEW_NETWORK) == 0:
        return None
    why = errno.errorcode.get(ctypes.get_errno(), "unknown")
    if libc.unshare(NEW_NETWORK) == 0:  # root, where user namespaces are off
        return None
    return f"the kernel does not let this user make a network namespace ({why})"


def forbid_calls(gpu: bool = False) -> str | None:
    """Make no sockets, programs and processes from now on, and change no file but by writing to it.

    Args:
        gpu: sockets within this machine are made, as CUDA does, and nothing can be sent through them.

    Returns:
        None, or why that cannot be had here.
    """
    if sys.platform != "linux":
        return f"{sys.platform} has no seccomp"
    if os.uname().machine not in MACHINES:
        return f"no filter of system calls is known for {os.uname().machine}"
    steps = _filter(os.uname().machine, os.getpid(), gpu)
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    head = struct.pack("@HP", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, 2, head, 0, 0) != 0:
        return f"seccomp: {os.strerror(ctypes.get_errno())}"
    return None


def _filter(machine: str, pid: int, gpu: bool) -> list[tuple[int, int, int, int]]:
    """Return the program: code, steps to skip where it holds, steps to skip where it does not, value."""
    architecture, denied, signals, sending, number_of = MACHINES[machine]
    deny, absent, allow = ((RETURN, 0, 0, verdict) for verdict in (ERRNO | errno.EACCES, ERRNO | errno.ENOSYS, ALLOW))

    def only_if(call: int, code: int, value: int) -> list[tuple[int, int, int, int]]:
        return [(IF_EQUAL, 0, 4, call), (LOAD, 0, 0, FIRST_ARGUMENT), (code, 0, 1, value), allow, deny]

    steps = [(LOAD, 0, 0, ARCHITECTURE), (IF_EQUAL, 1, 0, architecture), deny, (LOAD, 0, 0, NUMBER)]
    steps += [(IF_AT_LEAST, 0, 1, OTHER_CALLS), deny, (IF_EQUAL, 0, 1, CLONE3), absent]  # whose flags cannot be seen
    for call in (*map(int, denied.split()[1::2]), *(sending if gpu else (number_of["socket"],))):
        steps += [(IF_EQUAL, 0, 1, call), deny]
    steps += only_if(number_of["clone"], IF_ANY, THREAD)
    for call in signals:
        steps += only_if(call, IF_EQUAL, pid)
    return [*steps, *(only_if(number_of["socket"], IF_EQUAL, UNIX) if gpu else []), allow]


def give_up_files(
    readable: Iterable[str | Path], writable: Iterable[str | Path], devices: Iterable[str | Path] = ()
) -> str | None:
    """Keep only what is named of the file system; None, or the reason why it is not possible here.

    Args:
        readable: files and folders.
        writable: folders, in which plain files and folders can be made.
        devices: that are read, written and controlled.
    """
    if sys.platform != "linux":
        return f"{sys.platform} has no Landlock"
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return "the kernel has no Landlock"
    handled = FIRST_RIGHTS | (RENAME_ACROSS if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    attributes = struct.pack("=QQQ", handled, 0, SCOPES if version >= 6 else 0)
    ruleset = libc.syscall(CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return f"Landlock: {os.strerror(ctypes.get_errno())}"
    for path in readable:
        _allow(libc, ruleset, path, READ)
    for path in ("/dev/null", *devices):
        _allow(libc, ruleset, path, READ | WRITE_FILE)
    for path in writable:
        _allow(libc, ruleset, path, handled & ~EXECUTE & ~SPECIAL)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.syscall(RESTRICT_SELF, ruleset, 0) != 0:
        return f"Landlock: {os.strerror(ctypes.get_errno())}"
    os.close(ruleset)
    return None


def _allow(libc: Any, ruleset: int, path: str | Path, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):  # not on this machine
        return
    if not os.path.isdir(path):  # noqa: PTH112 - there may be many
        rights &= EXECUTE | WRITE_FILE | 1 << 2 | TRUNCATE  # of a file, no others are taken
    libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, handle), 0)
    os.close(handle)


def gpu_nodes(root: Path = Path("/dev")) -> list[str]:
    """Return the device files of the GPUs of this machine."""
    return sorted(str(path) for pattern in GPU_NODES for path in root.glob(pattern))


def set_limits(memory_bytes: int | None, seconds: int | None) -> None:
    """Bound what the process may take; memory is what it writes to, as torch reserves far more than it uses."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    limits = {"RLIMIT_CORE": 0}  # which would hold what was in memory
    if memory_bytes is not None:
        limits["RLIMIT_DATA"] = memory_bytes
    if seconds is not None:
        limits |= {"RLIMIT_CPU": seconds, "RLIMIT_FSIZE": FILE_BYTES}
    for name, value in limits.items():
        with suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))


def import_path() -> list[str]:
    """Return where this process finds packages, this one first, but for folders where the user works or lives."""
    own = Path(__file__).resolve().parents[2]
    private = (Path.cwd(), Path.home())
    entries = dict.fromkeys(Path(entry).resolve() for entry in sys.path if entry)
    others = [path for path in entries if not any(folder.is_relative_to(path) for folder in private)]
    return [str(path) for path in dict.fromkeys((own, *others))]


def libraries() -> list[str]:
    """Return where installed code lies for this process, beside the folders that it imports from."""
    places = [sys.prefix, sys.base_prefix, sys.exec_prefix, *os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    return [place for place in places if place]


def main() -> None:
    """Isolate this process as the first line of its standard input asks, and go on with the function named there."""
    line = b""
    while not line.endswith(b"\n"):  # not a byte more, which is for whom it goes on with
        block = os.read(0, 1 << 16)
        if not block:
            return
        line += block
    request = json.loads(line)
    sys.path[:] = request["sys_path"]
    request["readable"] = [*request.get("readable", ()), *libraries(), *sys.path]
    report = isolate(request)
    module, _, name = request["then"].partition(":")
    getattr(import_module(module), name)(request, report)


if __name__ == "__main__":
    main()
