"""The folder of a store: what is made once, what is noticed, and what is left when a process is killed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segpipe.common.folder_lock import locked
from segpipe.errors import DataError, UsageError
from segpipe.store import store_folder
from segpipe.store.case_file import Volume
from segpipe.store.store_folder import Prepared, Store, remove_store, store_facts

MADE_BY = {"transforms": ["a"], "versions": {"monai": "1"}}


@pytest.fixture
def sources(tmp_path: Path) -> list[dict[str, Any]]:
    """Three cases, whose files last changed some time ago."""
    items = []
    for name in "abc":
        for kind in ("image", "label"):
            path = tmp_path / "data" / f"{name}_{kind}.bin"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(f"{name} {kind}".encode() * 5)
        items.append({"case_id": name} | {k: str(tmp_path / "data" / f"{name}_{k}.bin") for k in ("image", "label")})
    return items


class Making:
    """Makes volumes out of bytes, and counts how often."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def jobs(self, items: list[dict[str, Any]]) -> list[tuple[Mapping[str, Any], Callable[[], Prepared]]]:
        return [(item, lambda item=item: self.make(item)) for item in items]

    def make(self, item: Mapping[str, Any]) -> Prepared:
        self.made.append(item["case_id"])
        content = np.frombuffer(Path(item["image"]).read_bytes(), np.uint8).reshape(1, 1, 5, -1)
        return {"image": Volume(content)}, {"case_id": item["case_id"]}


def content(store: Store, items: list[dict[str, Any]], making: Making, made_by: Mapping[str, Any] = MADE_BY) -> list:
    return [bytes(case.read("image").reshape(-1)) for case in store.prepare(making.jobs(items), made_by)]


def test_a_case_is_made_once_and_anew_when_anything_of_it_changes(tmp_path: Path, sources) -> None:
    store, making, steps = Store(tmp_path / "store"), Making(), []
    expected = [Path(item["image"]).read_bytes() for item in sources]
    store.prepare(making.jobs(sources), MADE_BY, lambda done, total: steps.append((done, total)))
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)] and making.made == ["a", "b", "c"]
    making.made.clear()
    assert content(Store(tmp_path / "store"), sources[1:], making) == expected[1:] and not making.made
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "data", moved)
    there = [{k: v.replace(str(tmp_path / "data"), str(moved)) for k, v in item.items()} for item in sources]
    assert content(store, there, making) == expected and not making.made
    content(store, sources, making, {**MADE_BY, "transforms": ["b"]})
    content(store, [{**sources[0], "annotated_labels": [1]}], making)
    assert making.made == ["a", "b", "c", "a"]
    making.made.clear()
    path = Path(sources[1]["image"])
    facts = path.stat()
    path.write_bytes(b"B" * facts.st_size)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as if it had never changed
    assert content(store, sources, making)[1] == b"B" * facts.st_size and making.made == ["b"]
    assert store_facts(tmp_path / "store").cases == 8


def test_a_file_is_hashed_once_while_it_stays(tmp_path: Path, sources, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(store_folder, "SETTLED_NS", 0)
    monkeypatch.setattr(store_folder, "sha256_of", lambda path: hashed.append(path.name) or path.read_bytes().hex())
    for _ in range(2):
        content(Store(tmp_path / "store"), sources[:1], Making())
    assert sorted(hashed) == ["a_image.bin", "a_label.bin"]
    Path(sources[0]["label"]).write_bytes(b"another one")
    content(Store(tmp_path / "store"), sources[:1], Making())
    assert hashed[2:4] == ["a_label.bin"] * len(hashed[2:4]) and len(hashed) > 2
    names = " ".join(path.name + path.read_text(errors="replace") for path in (tmp_path / "store").rglob("*.json"))
    assert "a_image" not in names and str(tmp_path) not in names


def test_a_file_that_just_changed_is_hashed_again(tmp_path: Path, sources) -> None:
    content(Store(tmp_path / "store"), sources, Making())
    assert not [*(tmp_path / "store" / "seen").glob("*")]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, sources) -> None:
    making = Making()

    def make() -> Prepared:
        made = making.make(sources[0])
        Path(sources[0]["image"]).write_bytes(b"other")
        return made

    with pytest.raises(DataError, match="changed while it was read") as caught:
        Store(tmp_path / "store").prepare([(sources[0], make)], MADE_BY)
    assert caught.value.case_id == "a" and store_facts(tmp_path / "store").cases == 0


def test_a_damaged_case_is_made_again(tmp_path: Path, sources) -> None:
    store, making = Store(tmp_path / "store"), Making()
    expected = content(store, sources, making)
    for file in (tmp_path / "store" / "cases").iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    assert content(store, sources, making) == expected and making.made == ["a", "b", "c"] * 2


def test_a_disk_that_is_too_small_is_refused_with_figures(
    tmp_path: Path, sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    content(Store(tmp_path / "one"), sources[:1], Making())
    size, usage = store_facts(tmp_path / "one").bytes, shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=size + 1))
    with pytest.raises(UsageError, match="cannot write") as caught:
        content(Store(tmp_path / "store"), sources, Making())
    assert caught.value.expected == f"{2 * size:,} bytes, {size + 1:,} are free"
    assert store_facts(tmp_path / "store").cases == 1  # one fitted, and the rest did not


def _fill(folder: Path, items: list[dict[str, Any]], log: Path) -> None:
    making = Making()

    def slowly(item: Mapping[str, Any]) -> Prepared:
        with log.open("a") as stream:
            stream.write(item["case_id"])
        time.sleep(0.3)
        return making.make(item)

    Store(folder).prepare([(item, lambda item=item: slowly(item)) for item in items], MADE_BY)


def test_two_processes_share_the_work_and_a_killed_one_leaves_whole_cases(tmp_path: Path, sources) -> None:
    context, log = multiprocessing.get_context("fork"), tmp_path / "log"
    first, second = (context.Process(target=_fill, args=(tmp_path / "store", sources, log)) for _ in range(2))
    first.start()
    deadline = time.monotonic() + 20
    while (log.read_text() if log.exists() else "") != "ab" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert store_facts(tmp_path / "store").cases == 1
    second.start()
    third = context.Process(target=_fill, args=(tmp_path / "store", sources, log))
    third.start()
    second.join()
    third.join()
    assert second.exitcode == third.exitcode == 0
    assert sorted(log.read_text()) == ["a", "b", "b", "c"]  # b twice: the first did not end with it
    assert content(Store(tmp_path / "store"), sources, Making()) == [
        Path(item["image"]).read_bytes() for item in sources
    ]


def test_removing_takes_the_store_and_nothing_else(tmp_path: Path, sources) -> None:
    store = Store(tmp_path / "store")
    content(store, sources, Making())
    (tmp_path / "store" / "notes.txt").write_text("mine")
    with (
        locked(store.folder, UsageError("busy")),
        pytest.raises(UsageError, match="a training prepares cases of this store"),
    ):
        remove_store(store.folder)
    assert remove_store(store.folder).cases == 3
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["notes.txt"]
    with pytest.raises(UsageError, match="no store of prepared cases there"):
        remove_store(store.folder)
    content(Store(tmp_path / "second"), sources, Making())
    remove_store(tmp_path / "second")
    assert not (tmp_path / "second").exists() and (tmp_path / "data").is_dir()


def test_a_folder_that_holds_something_else_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(UsageError, match="no store of prepared cases"):
        Store(tmp_path)
    (tmp_path / "new").mkdir()
    Store(tmp_path / "new")
    (tmp_path / "new" / "store.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="another version") as caught:
        Store(tmp_path / "new")
    assert caught.value.found == "format 99"
