from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.common import files
from segpipe.data import fetch
from segpipe.data.fetch import Source, compare_files, download, unpack
from segpipe.data.importers.to_manifest import add_hashes, find_dataset, to_manifest
from segpipe.data.manifest import save_manifest
from segpipe.errors import DataError, RefusedError, UsageError

NAME = "msd_task04_hippocampus"
FOLDER = "Task04_Hippocampus"
CONTENT = np.random.default_rng(0).bytes(700_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``content`` with Range; ``cut`` breaks every answer off after so many bytes."""

    content = CONTENT
    ranges = True
    cut: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{FOLDER}.tar"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        total = len(self.server.content)
        if start >= total:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        end = total if self.server.cut is None else start + self.server.cut
        self.wfile.write(self.server.content[start:end])

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()


def test_a_broken_download_is_kept_and_continued(server, tmp_path):
    target = tmp_path / "a.tar"
    server.cut = 300_000
    with pytest.raises(UsageError, match="connection broke") as caught:
        download(server.url, target, MD5)
    assert "run it again" in (caught.value.hint or "")
    assert not target.exists() and (tmp_path / "a.tar.partial").stat().st_size == 300_000
    server.cut = None
    seen: list[tuple[int, int | None]] = []
    assert download(server.url, target, MD5, lambda done, total: seen.append((done, total))) == target
    assert server.asked == [None, "bytes=300000-"]
    assert target.read_bytes() == CONTENT and not (tmp_path / "a.tar.partial").exists()
    assert seen[0][0] > 300_000 and seen[-1] == (len(CONTENT), len(CONTENT))
    download(server.url, target, MD5)
    assert len(server.asked) == 2


def test_a_server_without_range_starts_anew_and_a_complete_part_needs_nothing(server, tmp_path):
    partial = tmp_path / "a.tar.partial"
    partial.write_bytes(CONTENT[:1000])
    server.ranges = False
    assert download(server.url, tmp_path / "a.tar", MD5).read_bytes() == CONTENT
    (tmp_path / "a.tar").rename(partial)
    server.ranges = True
    assert download(server.url, tmp_path / "a.tar", MD5).read_bytes() == CONTENT


def test_a_damaged_part_is_thrown_away(server, tmp_path):
    (tmp_path / "a.tar.partial").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="damaged"):
        download(server.url, tmp_path / "a.tar", MD5)
    assert list(tmp_path.iterdir()) == []
    assert download(server.url, tmp_path / "a.tar", MD5).read_bytes() == CONTENT


def test_no_network_and_an_error_of_the_server(server, tmp_path):
    server.content = b""
    with pytest.raises(UsageError, match="refuses") as caught:
        download(server.url, tmp_path / "a.tar", MD5)
    assert "--from" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no connection") as caught:
        download("http://127.0.0.1:1/a.tar", tmp_path / "a.tar", MD5)
    assert "--from" in (caught.value.hint or "")


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../out"),
        member("a/../../out"),
        member("/tmp/out"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("link", tarfile.LNKTYPE, "good"),
        member("pipe", tarfile.FIFOTYPE),
        member("device", tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name} {info.type!r}",
)
def test_archives_that_reach_out_are_refused(tmp_path, evil):
    archive = tar_of(tmp_path / "a.tar", (member("good"), b"x"), (evil, b""))
    with pytest.raises(RefusedError, match="should not"):
        unpack(archive, tmp_path / "inside" / "folder")
    assert not (tmp_path / "inside" / "out").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2"])
def test_a_damaged_archive_is_bad_data_whatever_its_compression(tmp_path, kind):
    path = tmp_path / f"a.tar.{kind}"
    (tmp_path / "noise").write_text(random.Random(0).randbytes(100_000).hex())
    with tarfile.open(path, f"w:{kind}") as tar:
        tar.add(tmp_path / "noise", "noise")
    content = bytearray(path.read_bytes())
    content[40:60] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        unpack(path, tmp_path / "out")


def test_unpacking_passes_over_what_macos_adds_and_names_what_is_no_archive(tmp_path):
    archive = tar_of(tmp_path / "a.tar", (member("d/x"), b"x"), (member("d/._x"), b"y"))
    unpack(archive, tmp_path / "f")
    assert [path.name for path in (tmp_path / "f" / "d").iterdir()] == ["x"]
    archive.write_bytes(b"<html>")
    with pytest.raises(DataError, match="cannot be read"):
        unpack(archive, tmp_path / "g")


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data set that stands in for the public one, with its shipped manifest."""
    root = tmp_path / "original" / FOLDER
    for name in ("h_1", "h_2"):
        for part in ("imagesTr", "labelsTr"):
            (root / part).mkdir(parents=True, exist_ok=True)
            nib.save(
                nib.Nifti1Image(np.full((3, 3, 3), len(part), np.uint8), np.eye(4)), root / part / f"{name}.nii.gz"
            )
    listed = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("h_1", "h_2")]
    document = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a"}, "training": listed}
    (root / "dataset.json").write_text(json.dumps(document))
    manifest = to_manifest(find_dataset(root))
    add_hashes(manifest, root)
    shipped = tmp_path / "shipped.json"
    save_manifest(manifest, shipped)
    monkeypatch.setattr(fetch, "shipped_manifest", lambda name: shipped if name == NAME else None)
    monkeypatch.setattr(fetch, "find_source", lambda name: Source(FOLDER, "http://127.0.0.1:1/x.tar", "0" * 32))
    return root


def pack(root: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(root, root.name)
    return path


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != FOLDER)


@pytest.mark.parametrize("kind", ["folder", "folder above", "archive"])
def test_command_from_what_is_there(original, tmp_path, kind, capsys):
    sources = {"folder": original, "folder above": original.parent, "archive": pack(original, tmp_path / "p.tgz")}
    out = tmp_path / "out"
    assert run(["fetch", NAME, str(out), "--from", str(sources[kind]), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["data"] == str(out / FOLDER) and document["schema_version"] == 1
    assert (out / FOLDER / "imagesTr" / "h_2.nii.gz").is_file() and left_over(out) == []
    assert run(["check", document["manifest"]]) == 3  # constant images and copies: it was read
    assert run(["fetch", NAME, str(out)]) == 0  # there already: verified, not fetched again


def test_command_downloads_verifies_and_removes_the_archive(original, server, tmp_path, monkeypatch):
    server.content = pack(original, tmp_path / "p.tar").read_bytes()
    source = Source(FOLDER, server.url, hashlib.md5(server.content).hexdigest())
    monkeypatch.setattr(fetch, "find_source", lambda name: source)
    out = tmp_path / "out"
    assert run(["fetch", NAME, str(out)]) == 0
    assert (out / FOLDER / "manifest.json").is_file() and left_over(out) == []


def test_missing_and_changed_files_are_named_and_nothing_stays(original, tmp_path, capsys):
    (original / "labelsTr" / "h_2.nii.gz").unlink()
    out = tmp_path / "out"
    assert run(["fetch", NAME, str(out), "--from", str(original)]) == 3
    assert "labelsTr/h_2.nii.gz" in capsys.readouterr().err
    assert list(out.iterdir()) == []
    (original / "labelsTr" / "h_2.nii.gz").write_bytes(b"other")
    assert run(["fetch", NAME, str(out), "--from", str(pack(original, tmp_path / "p.tgz"))]) == 3
    assert "differ" in capsys.readouterr().err and list(out.iterdir()) == []


def test_without_a_shipped_list_the_md5_and_the_dataset_json_decide(original, tmp_path):
    with pytest.raises(DataError, match="another one"):
        fetch.fetch_dataset("other", tmp_path / "o", pack(original, tmp_path / "p.tgz"), lambda *_: None)
    (original / "imagesTr" / "h_1.nii.gz").unlink()
    with pytest.raises(DataError, match="missing"):
        compare_files(original, "other")


def test_no_network_no_such_source_no_dataset(original, tmp_path, capsys):
    assert run(["fetch", NAME, str(tmp_path / "out")]) == 2
    assert "--from" in capsys.readouterr().err
    assert run(["fetch", NAME, str(tmp_path / "out"), "--from", str(tmp_path / "nowhere")]) == 2
    (tmp_path / "empty").mkdir()
    assert run(["fetch", NAME, str(tmp_path / "out"), "--from", str(tmp_path / "empty")]) == 3
    (tmp_path / "file").write_text("")
    assert run(["fetch", NAME, str(tmp_path / "file" / "out"), "--from", str(original)]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_sources_are_those_of_monai():
    source = fetch.find_source(NAME)
    assert source.folder == FOLDER and source.url.endswith(f"{FOLDER}.tar") and len(source.md5) == 32
    with pytest.raises(UsageError, match="no such public"):
        fetch.find_source("msd_task99")
    assert fetch.shipped_manifest(NAME) is not None and fetch.shipped_manifest("msd_task09_spleen") is None


@pytest.mark.skipif("SEGPIPE_DATA" not in os.environ, reason="SEGPIPE_DATA does not name a folder of real scans")
@pytest.mark.realdata
def test_the_real_folder_passes_the_comparison():
    compare_files(Path(os.environ["SEGPIPE_DATA"]) / FOLDER, NAME)


@pytest.mark.parametrize("kind", ["folder", "archive", "download"])
def test_a_full_disk_is_named_with_the_file_and_what_it_takes(original, server, tmp_path, monkeypatch, capsys, kind):
    archive = pack(original, tmp_path / "p.tgz")
    server.content = archive.read_bytes()
    md5 = hashlib.md5(server.content).hexdigest()
    monkeypatch.setattr(fetch, "find_source", lambda name: Source(FOLDER, server.url, md5))
    sources = {"folder": ["--from", str(original)], "archive": ["--from", str(archive)], "download": []}

    if kind == "archive":
        opened = Path.open

        def full(path: Path, mode: str = "r", **named: Any) -> Any:
            to_full = path.name == "h_1.nii.gz" and mode == "wb"
            return opened(Path("/dev/full") if to_full else path, mode, **named)

        monkeypatch.setattr(Path, "open", full)
    else:
        monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    assert run(["fetch", NAME, str(tmp_path / "out"), *sources[kind], "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"] == "cannot write the output" and error["found"] == "No space left on device"
    assert re.match(r"[\d,]+ bytes, [\d,]+ are free", error["expected"])
    if kind == "archive":
        assert error["path"].endswith("/h_1.nii.gz")
    assert left_over(tmp_path / "out") == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_small_file_system(original, tmp_path, capsys, kind):
    disk = tmp_path / "disk"
    disk.mkdir()
    (original / "imagesTr" / "noise.nii.gz").write_bytes(random.Random(0).randbytes(300_000))
    source = original if kind == "folder" else pack(original, tmp_path / "p.tgz")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        assert run(["fetch", NAME, str(disk), "--from", str(source), "--json"]) == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["found"] == "No space left on device" and "bytes, " in error["expected"]
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)
