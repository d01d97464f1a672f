"""The memory of control groups: of a container, of a batch job, and of the machine where there is none."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from segpipe.common import memory
from segpipe.common.memory import Memory, memory_here
from segpipe.common.processes import child_environment, tied

MB = 10**6


def group(folder: Path, names: tuple[str, str], limit: object, used: int, dropped: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    if dropped:
        (folder / "memory.stat").write_text(f"anon 5\n{dropped}\n")


V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_without_groups_it_is_the_machine(tmp_path: Path) -> None:
    here = memory_here(tmp_path / "none", tmp_path / "no file")
    assert here.total == psutil.virtual_memory().total and here.group is None and 0 < here.free <= here.total


def test_a_container_sees_its_own_group_as_the_mount(tmp_path: Path) -> None:
    group(tmp_path, V2, 400 * MB, 150 * MB, f"inactive_file {50 * MB}")
    (tmp_path / "own").write_text("0::/\n")
    assert memory_here(tmp_path, tmp_path / "own") == Memory(400 * MB, 300 * MB, 400 * MB)


@pytest.mark.parametrize(
    ("version", "names", "dropped", "row"),
    [(2, V2, "inactive_file", "0::/jobs/one"), (1, V1, "total_inactive_file", "7:cpu,memory:/jobs/one")],
)
def test_the_narrowest_of_a_group_and_those_around_it_counts(
    version: int, names: tuple[str, str], dropped: str, row: str, tmp_path: Path
) -> None:
    root = tmp_path / "groups" if version == 2 else tmp_path / "groups" / "memory"
    group(root, names, "max" if version == 2 else 2**63 - 4096, 0)
    group(root / "jobs", names, 300 * MB, 250 * MB, f"{dropped} {10 * MB}")
    group(root / "jobs" / "one", names, 200 * MB, 20 * MB)
    (tmp_path / "own").write_text(f"1:name=systemd:/x\n{row}\n")
    assert memory_here(tmp_path / "groups", tmp_path / "own") == Memory(200 * MB, 60 * MB, 200 * MB)


def test_a_group_that_is_full_has_nothing_left(tmp_path: Path) -> None:
    group(tmp_path, V2, 100 * MB, 130 * MB)
    assert memory_here(tmp_path, tmp_path / "own").free == 0


COUNTED = """
import resource
import numpy
from segpipe.common import memory

def resident():
    row = next(row for row in open("/proc/self/status") if row.startswith("VmRSS:"))
    return int(row.split()[1]) * 1024

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        numpy.zeros(BYTES // 8).fill(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

BYTES = 100 * 2**20
faults(1)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not the GNU C library")


def _ran(code: str) -> list[int]:
    done = subprocess.run(
        tied([sys.executable, "-c", COUNTED + code]),
        capture_output=True,
        text=True,
        env=child_environment(),
        check=True,
    )
    return [int(word) for word in done.stdout.split()]


@glibc
def test_arrays_taken_again_and_again_cost_no_pages_where_freed_memory_is_kept() -> None:
    plain, kept, after = _ran(
        "print(faults(4))\nwith memory.freed_memory_kept():\n    faults(1)\n    print(faults(4))\nprint(faults(4))"
    )
    assert kept * 20 < plain and kept * 20 < after


@glibc
def test_what_is_kept_can_be_returned() -> None:
    before, kept, returned = _ran(
        "start = resident()\nassert memory.keep_freed_memory()\nfaults(2)\nprint(start, resident())\n"
        "memory.return_freed_memory()\nprint(resident())"
    )
    assert kept - before > 90 * 2**20 and returned - before < 20 * 2**20


@glibc
def test_all_is_returned_at_the_end() -> None:
    before, after = _ran(
        "start = resident()\nwith memory.freed_memory_kept():\n    faults(2)\nprint(start, resident())"
    )
    assert after - before < 20 * 2**20


def test_another_c_library_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _name: object())
    assert not memory.keep_freed_memory()
    with memory.freed_memory_kept():
        memory.return_freed_memory()
