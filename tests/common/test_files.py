"""Files are whole or absent, private where asked, and what cannot be read is said with its place."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.common import files
from segpipe.common.files import (
    cannot_write,
    digest_of,
    read_json,
    read_yaml,
    sha256_of,
    write_csv,
    write_json,
    write_text,
    write_whole,
)
from segpipe.errors import DataError, UsageError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_digests_equal_those_of_hashlib(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 7)  # more than one block
    (tmp_path / "f").write_bytes(content)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(content).hexdigest()
    assert digest_of(tmp_path / "f", "md5") == hashlib.md5(content).hexdigest()


def test_nothing_is_seen_before_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "f.json"
    with write_whole(path) as stream:
        stream.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert listing(path.parent) == ["f.json"]


@pytest.mark.parametrize("raised", [ValueError("ours"), KeyboardInterrupt(), SystemExit(3)])
def test_a_block_that_fails_keeps_the_old_file(raised: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(type(raised)), write_whole(path) as stream:
        stream.write(b"half of the new")
        raise raised
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["f"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "f"
    path.write_text("old")
    monkeypatch.setattr(*((os, "fsync", full) if step == "fsync" else (Path, "replace", full)))
    with pytest.raises(UsageError) as caught:
        write_text(path, "new")
    assert caught.value.found == "No space left on device"
    assert caught.value.path == str(path)
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["f"]


@pytest.mark.parametrize("place", ["file/below", "folder"])
def test_a_place_that_cannot_be_written_to(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot write") as caught:
        write_text(tmp_path / place, "y")
    assert caught.value.exit_code == 2
    assert listing(tmp_path) == ["file", "folder"]


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_arguments: object) -> None:  # root may write anywhere, so that a chmod would prove nothing
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch, pytest.raises(UsageError) as caught:
        patch.setattr(files.os, "open", denied)
        write_json(tmp_path / "f", {})
    assert caught.value.found == "Permission denied"


def test_a_full_disk_is_named_with_the_file_and_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(b"x" * 3_000_000)
    files.copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()
    with pytest.raises(UsageError) as caught:
        files.copy_file(source, Path("/dev/full"))
    assert (caught.value.path, caught.value.found) == ("/dev/full", "No space left on device")
    assert str(caught.value.expected).startswith("3,000,000 bytes, ")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(UsageError) as caught:
        files.require_space(tmp_path / "not/there", 11)
    assert caught.value.expected == "11 bytes, 10 are free"
    files.require_space(tmp_path, 10)
    assert cannot_write(tmp_path, OSError(errno.ENOSPC, "full")).expected == "more space, 10 are free (bytes)"
    assert cannot_write(tmp_path, OSError(errno.EACCES, "no")).expected is None


def test_a_source_that_breaks_is_no_full_disk(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        files.copy_stream(Broken(), tmp_path / "f", 1)


def test_the_first_failure_of_a_tree_is_named(tmp_path: Path) -> None:
    error = shutil.Error([("/a/x", "/b/x", "[Errno 28] No space left on device: '/b/x'"), ("/a/y", "/b/y", "no")])
    told = cannot_write(tmp_path, error)
    assert told.path == "/b/x" and "No space left" in str(told.found)


@pytest.mark.parametrize(("mode", "umask", "expected"), [(0o600, 0, 0o600), (None, 0o022, 0o644), (None, 0o077, 0o600)])
def test_modes_follow_the_wish_and_else_the_umask(mode: int | None, umask: int, expected: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "f", "x", mode)
        assert os.umask(umask) == umask  # left as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == expected


@settings(max_examples=40)
@given(document=plain)
def test_json_comes_back_as_it_was(document: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round.json"
    write_json(path, document)
    assert read_json(path) == document
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_knows_no_nan_and_keeps_the_old_file(value: float, tmp_path: Path) -> None:
    write_json(tmp_path / "f", {"dice": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "f", {"dice": value})
    assert json.loads((tmp_path / "f").read_text()) == {"dice": 1}
    assert listing(tmp_path) == ["f"]


def test_csv_has_the_columns_in_order_and_nothing_for_none(tmp_path: Path) -> None:
    rows = [{"b": 0, "a": None, "c": "not asked for"}, {"a": 'x, "y"\nz'}]
    write_csv(tmp_path / "f.csv", rows, ["a", "b"])
    text = (tmp_path / "f.csv").read_text()
    assert text.splitlines()[:2] == ["a,b", ",0"]
    with (tmp_path / "f.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == [{"a": "", "b": "0"}, {"a": 'x, "y"\nz', "b": ""}]


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_is_not_there_is_a_usage_error(read: object, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    for place in ("absent", ".", "file/below"):
        with pytest.raises(UsageError, match="no such task") as caught:
            read(tmp_path / place, "task")  # type: ignore[operator]
        assert caught.value.path == str(tmp_path / place)


@pytest.mark.parametrize(
    ("read", "text", "where"),
    [
        (read_json, '{"a": 1,\n "b": }', "line 2 column 7"),
        (read_json, "", "line 1 column 1"),
        (read_yaml, "a: 1\nb: [1, 2\nc: 3\n", "line 3, column"),
        (read_yaml, "a: 1\n\tb: 2\n", "line 2, column 1"),
        (read_yaml, "!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        (read_json, "[" * 100_000, "nested too deeply"),
        (read_yaml, "[" * 2_000, "nested too deeply"),
    ],
)
def test_what_cannot_be_parsed_is_said_with_its_place(read: object, text: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(DataError, match="the task cannot be parsed") as caught:
        read(tmp_path / "f", "task")  # type: ignore[operator]
    assert where in str(caught.value.found)
    assert "\n" not in str(caught.value.found)


def test_what_is_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b'{"name": "\xff\xfe"}')
    with pytest.raises(DataError, match="not UTF-8"):
        read_json(tmp_path / "f")


def test_a_name_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("outer:\n  hold: 0.9\n  look: 1\n  hold: 0.5\n")
    with pytest.raises(DataError, match="cannot be parsed") as caught:
        read_yaml(tmp_path / "rules.yaml")
    assert "hold is given twice" in str(caught.value.found) and "line 2" in str(caught.value.found)
    (tmp_path / "rules.yaml").write_text("base: &base {hold: 0.9}\nsite:\n  <<: *base\n  look: 1\n")
    assert read_yaml(tmp_path / "rules.yaml")["site"] == {"hold": 0.9, "look": 1}


def test_yaml_reads_json_too(tmp_path: Path) -> None:
    write_json(tmp_path / "f", {"a": [1, 2.5, None, "x"]})
    assert read_yaml(tmp_path / "f") == {"a": [1, 2.5, None, "x"]}
