"""Every file below a folder is found once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from make import series, write

from segpipe.cli.app import run
from segpipe.dicom.scanning import scan, walk
from segpipe.errors import UsageError


def test_hidden_files_and_folders(tmp_path: Path) -> None:
    for name in (".hidden", ".folder/file", "a/b/c/deep"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    base, files, odd = walk([tmp_path])
    assert base == tmp_path
    assert [str(path.relative_to(tmp_path)) for path in files] == [".folder/file", ".hidden", "a/b/c/deep"]
    assert odd == []


def test_loops_of_links_end_and_files_keep_their_real_names(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "file").touch()
    (tmp_path / "a").symlink_to(tmp_path / "z", target_is_directory=True)
    (tmp_path / "z" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "link").symlink_to(tmp_path / "z" / "file")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    _, files, odd = walk([tmp_path])
    assert files == [tmp_path / "z" / "file"]
    assert {(one.path.name, one.detail) for one in odd} == {
        ("broken", "a link to nothing"),
        ("pipe", "not a regular file"),
        ("link", "a link to a file that is there already"),
    }


def test_links_out_of_the_tree_are_followed(tmp_path: Path) -> None:
    write(series(), tmp_path / "archive")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "today").symlink_to(tmp_path / "archive")
    assert [one.state for one in scan(tmp_path / "work").series] == ["loaded"]


def test_one_file_several_roots_and_overlapping_ones(tmp_path: Path) -> None:
    paths = write(series(), tmp_path / "a" / "b")
    assert walk([paths[0]]) == (tmp_path / "a" / "b", [paths[0]], [])
    base, files, _ = walk([tmp_path / "a", tmp_path / "a" / "b", paths[0]])
    assert (base, files) == (tmp_path / "a", paths)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        walk([tmp_path / "no"])


@contextmanager
def deep(top: Path, names: list[str], content: bytes) -> Iterator[None]:
    """A file below so many folders, made step by step since its path may be longer than a system call takes."""
    handle = os.open(top, os.O_RDONLY)
    try:
        for name in names:
            os.mkdir(name, dir_fd=handle)
            handle, above = os.open(name, os.O_RDONLY, dir_fd=handle), handle
            os.close(above)
        file = os.open("deep.dcm", os.O_CREAT | os.O_WRONLY, dir_fd=handle)
        os.write(file, content)
        os.close(file)
        yield
    finally:
        os.close(handle)
        os.system(f"cd {top} && rm -rf {names[0]}")  # which knows no longest path


@pytest.mark.parametrize("names", [["d"] * 1200, ["long" * 60] * 20, ["x" * 255] * 15 + ["y" * 240]])
def test_a_path_that_is_too_deep_is_one_failure(
    names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(series(), tmp_path / "good")
    with deep(tmp_path, names, b"\0" * 128 + b"DICM" + b"junk"):
        found = scan(tmp_path)
        assert run(["scan", str(tmp_path)]) == 0
        assert run(["convert", str(tmp_path), str(tmp_path / "out")]) == 0
    assert "1 unreadable" in capsys.readouterr().out
    assert [one.state for one in found.series] == ["loaded"]
    assert [one.file_class for one in found.passed_over] == ["unreadable"]
