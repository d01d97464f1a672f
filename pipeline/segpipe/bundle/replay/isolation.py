"""A process of its own for what a bundle would run: no network, no files but its own, no programs, bounded.

This file is also the program of that process, and imports nothing but the standard library, since rights are given up
before anything else is loaded:

- user and network namespaces (Linux, unshare(2)): no network interface, no rights beyond its own files;
- seccomp (Linux, seccomp(2)): no sockets, so that no service of this machine is spoken to either, and no programs;
- Landlock (Linux 5.13, landlock(7)): reads installed packages and its own folder, writes there, starts no programs;
- setrlimit(2): memory, processor time, size of a file; no core dump.

The first line that it prints says what of that was had. Then it turns its standard output over to a file, so that what
runs later cannot say anything else, and calls `segpipe.bundle.replay.child`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # <linux/sched.h>
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38  # <linux/prctl.h>
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on every architecture
PATH_BENEATH = 1
READ = 1 << 2 | 1 << 3  # <linux/landlock.h>: a file, a folder
FIRST_RIGHTS, RENAME_ACROSS, TRUNCATE = (1 << 13) - 1, 1 << 13, 1 << 14
EXECUTE = 1 << 0
SCOPES = 1 << 0 | 1 << 1  # abstract sockets, signals to others
_SYSTEM = """
    /usr /lib /lib64 /opt /nix/store /gnu/store /sys/devices /sys/fs/cgroup /proc/self /proc/sys /proc/cpuinfo
    /proc/meminfo /proc/stat /etc/ld.so.cache /etc/localtime /etc/mime.types /dev/urandom
"""
SYSTEM = tuple(_SYSTEM.split())
FILE_BYTES = 2**31
# <linux/audit.h>; socket, execve, execveat, ptrace, process_vm_readv, process_vm_writev, io_uring_setup
DENIED = {
    "x86_64": (0xC000003E, (41, 59, 322, 101, 310, 311, 425)),
    "aarch64": (0xC00000B7, (198, 221, 281, 117, 270, 271, 425)),
}
LOAD, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # <linux/bpf_common.h>
ALLOW, DENY = 0x7FFF0000, 0x00050000 | errno.EACCES  # <linux/seccomp.h>
OTHER_CALLS = 0x40000000  # x86_64: the same calls by other numbers


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


def forbid_calls() -> str | None:
    """Make no sockets and start no programs from now on; None, or why that cannot be had here."""
    if sys.platform != "linux":
        return f"{sys.platform} has no seccomp"
    if os.uname().machine not in DENIED:
        return f"no filter of system calls is known for {os.uname().machine}"
    architecture, denied = DENIED[os.uname().machine]
    tests = [(IF_AT_LEAST, OTHER_CALLS), *((IF_EQUAL, number) for number in denied)]
    steps = [(LOAD, 0, 0, 4), (IF_EQUAL, 1, 0, architecture), (RETURN, 0, 0, DENY), (LOAD, 0, 0, 0)]
    steps += [(code, len(tests) - place, 0, number) for place, (code, number) in enumerate(tests)]
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENY)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    head = struct.pack("@HP", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, 2, head, 0, 0) != 0:
        return f"seccomp: {os.strerror(ctypes.get_errno())}"
    return None


def give_up_files(readable: Iterable[str | Path], writable: Path) -> str | None:
    """Keep only what is named of the file system; None, or the reason why it is not possible here."""
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
    _allow(libc, ruleset, "/dev/null", READ | 1 << 1)
    _allow(libc, ruleset, writable, handled & ~EXECUTE)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.syscall(RESTRICT_SELF, ruleset, 0) != 0:
        return f"Landlock: {os.strerror(ctypes.get_errno())}"
    os.close(ruleset)
    return None


def _allow(libc: Any, ruleset: int, path: str | Path, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not on this machine
        return
    if not Path(path).is_dir():
        rights &= EXECUTE | 1 << 1 | 1 << 2 | TRUNCATE  # of a file, no others are taken
    libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, handle), 0)
    os.close(handle)


def set_limits(memory_bytes: int, seconds: int) -> None:
    """Bound what the process may take; memory is what it writes to, as torch reserves far more than it uses."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    limits = {"RLIMIT_DATA": memory_bytes, "RLIMIT_CPU": seconds, "RLIMIT_FSIZE": FILE_BYTES, "RLIMIT_CORE": 0}
    for name, value in limits.items():
        with suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))


def readable(request: dict[str, Any]) -> list[str]:
    """Return where installed code lies, and the copy of the bundle."""
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    places = [*request["sys_path"], sys.prefix, sys.base_prefix, sys.exec_prefix, *libraries, request["bundle"]]
    return [*SYSTEM, *(place for place in places if place)]


def main() -> None:
    """Isolate this process, say how far, and go on with `segpipe.bundle.replay.child`."""
    request = json.loads(sys.stdin.buffer.read())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    work = Path(request["work"])
    os.chdir(work)
    network, files = give_up_network(), give_up_files(readable(request), work)
    set_limits(request["memory_bytes"], request["seconds"])
    sys.path[:] = request["sys_path"]
    from segpipe.bundle.replay.child import replay, surroundings

    report = {"network": network, "files": files, "surroundings": surroundings()}
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()
    os.dup2(2, 1)
    replay(request)


if __name__ == "__main__":
    main()
