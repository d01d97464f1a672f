"""The memory of control groups: of a container, of a batch job, and of the machine where there is none."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from segpipe.common.memory import Memory, memory_here

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
