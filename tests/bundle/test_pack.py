"""A packed bundle: the same bytes for the same content, wherever it lay; and what is not packed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from segpipe.bundle import Bundle, open_bundle
from segpipe.bundle.pack import EPOCH, pack_bundle
from segpipe.bundle.tensors import read_state, tensors_sha256
from segpipe.bundle.verify import verify_bundle
from segpipe.bundle.vet.bundle_files import unpacked
from segpipe.bundle.vet.documents import write_sums
from segpipe.cli.app import run
from segpipe.common.files import sha256_of
from segpipe.errors import RefusedError, UsageError

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.root, tmp_path / "copy"))


def test_two_copies_pack_to_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    first = pack_bundle(bundle.root, tmp_path / "one.zip")
    elsewhere = tmp_path / "far" / "away" / "renamed"
    elsewhere.mkdir(parents=True)
    for path in sorted(bundle.root.rglob("*"), reverse=True):  # made in another order, at other times
        if path.is_file():
            target = elsewhere / path.relative_to(bundle.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            target.chmod(0o600)
            os.utime(target, (10**9, 10**9))
    second = pack_bundle(elsewhere, tmp_path / "two.zip")
    assert first.sha256 == second.sha256 == sha256_of(tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert first.content_sha256 == bundle.sha256


@pytest.mark.parametrize("tool", ["zipfile", "unzip"])
def test_unpacked_and_packed_again_it_is_the_same(bundle: Bundle, tmp_path: Path, tool: str) -> None:
    packed = pack_bundle(bundle.root, tmp_path / "one.zip")
    place = tmp_path / "unpacked"
    if tool == "unzip":
        if shutil.which("unzip") is None:
            pytest.skip("needs unzip")
        subprocess.run(["unzip", "-q", str(packed.file), "-d", str(place)], check=True)
    else:
        zipfile.ZipFile(packed.file).extractall(place)
    assert [path.name for path in place.iterdir()] == [bundle.name]
    assert open_bundle(place / bundle.name).sha256 == bundle.sha256
    assert pack_bundle(place / bundle.name, tmp_path / "two.zip").sha256 == packed.sha256
    assert pack_bundle(packed.file, tmp_path / "three.zip").sha256 == packed.sha256


def test_its_members_are_sorted_stored_and_bare(bundle: Bundle, tmp_path: Path) -> None:
    archive = zipfile.ZipFile(pack_bundle(bundle.root, tmp_path / "one.zip").file)
    members = archive.infolist()
    names = [member.filename for member in members]
    files = [path.relative_to(bundle.root).as_posix() for path in bundle.root.rglob("*") if path.is_file()]
    assert names == sorted(f"{bundle.name}/{file}" for file in files)
    for member in members:
        assert (member.date_time, member.compress_type, member.extra, member.comment) == (EPOCH, 0, b"", b"")
        assert member.external_attr >> 16 == stat.S_IFREG | 0o644 and member.create_system == 3
    assert archive.testzip() is None and archive.comment == b""


def test_verify_takes_it(bundle: Bundle, tmp_path: Path) -> None:
    packed = pack_bundle(bundle.root, tmp_path / "one.zip")
    verdict = verify_bundle(packed.file)
    assert not verdict.refused and verdict.intact and verdict.sha256 == bundle.sha256


def test_safetensors_are_added_and_listed_in_the_archive_alone(bundle: Bundle, copy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    packed = pack_bundle(copy, tmp_path / "one.zip", safetensors=True)
    assert open_bundle(copy).sha256 == bundle.sha256 != packed.content_sha256
    assert not (copy / "models" / "model.safetensors").exists()
    with unpacked(packed.file) as (root, findings):
        assert root is not None and not findings
        opened = open_bundle(root)
        assert opened.intact and opened.sha256 == packed.content_sha256
        state = read_state(root / "models" / "model.pt")
        assert tensors_sha256(load_file(root / "models" / "model.safetensors")) == tensors_sha256(state)
        assert pack_bundle(root, tmp_path / "two.zip").sha256 == packed.sha256
        assert pack_bundle(root, tmp_path / "three.zip", safetensors=True).sha256 == packed.sha256
    assert not verify_bundle(packed.file).refused


def spoil(copy: Path, how: str) -> None:
    if how == "changed":
        with (copy / "docs" / "README.md").open("a") as stream:
            stream.write("!")
    elif how == "added":
        (copy / "docs" / "more.md").write_text("more")
    elif how == "removed":
        (copy / "LICENSE").unlink()
    elif how == "unlisted":
        (copy / "SHA256SUMS").unlink()
    elif how == "linked":
        (copy / "docs" / "link.md").symlink_to(copy / "LICENSE")
    elif how == "payload":
        config = json.loads((copy / "configs" / "inference.json").read_text())
        (copy / "configs" / "inference.json").write_text(json.dumps({**config, "x": {"_target_": "os.system"}}))
        write_sums(copy)


@pytest.mark.parametrize("how", ["changed", "added", "removed", "unlisted", "linked", "payload"])
def test_what_would_be_refused_is_not_packed(copy: Path, tmp_path: Path, how: str, capsys: Capture) -> None:
    spoil(copy, how)
    assert run(["bundle", "pack", str(copy), "-o", str(tmp_path / "one.zip")]) == 5
    assert not (tmp_path / "one.zip").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_a_name_that_is_allowed_is_packed(copy: Path, tmp_path: Path) -> None:
    spoil(copy, "payload")
    with pytest.raises(RefusedError, match=r"inference\.json .*os\.system") as refusal:
        pack_bundle(copy, tmp_path / "one.zip")
    assert "posix.system" in {finding["name"] for finding in refusal.value.findings}
    assert pack_bundle(copy, tmp_path / "one.zip", allow=["os.system"]).files > 0


def test_command_line(bundle: Bundle, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["bundle", "pack", str(bundle.root), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["action"], document["file"]) == ("pack", "tiny_mri_v0.1.0.zip")
    assert document["file_sha256"] == sha256_of(tmp_path / document["file"])
    assert document["bundle"]["sha256"] == bundle.sha256
    assert run(["bundle", "pack", str(bundle.root)]) == 2
    assert "taken" in capsys.readouterr().err
    assert run(["bundle", "pack", str(bundle.root), "--overwrite", "--safetensors"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert sha256_of(tmp_path / document["file"]) in out and document["file_sha256"] not in out


@pytest.mark.parametrize("place", ["{}/copy/one.zip", "{}", "{}/copy"])
def test_places_that_cannot_be(copy: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(UsageError):
        pack_bundle(copy, place.format(tmp_path), overwrite=True)
    assert open_bundle(copy).intact


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a"):
        pack_bundle(tmp_path, tmp_path / "one.zip")
    with pytest.raises(UsageError, match="not a bundle"):
        pack_bundle(tmp_path / "absent.zip", tmp_path / "one.zip")


def test_a_full_disk_leaves_the_older_file(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.zip").write_bytes(b"older")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    assert run(["bundle", "pack", str(bundle.root), "-o", str(tmp_path / "one.zip"), "--overwrite"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["one.zip"]
    assert (tmp_path / "one.zip").read_bytes() == b"older"


def test_a_signed_bundle_gets_no_other_file(copy: Path, tmp_path: Path) -> None:
    (copy / "model.sig").write_text("{}")
    with pytest.raises(UsageError, match="signed"):
        pack_bundle(copy, tmp_path / "one.zip", safetensors=True)
    names = zipfile.ZipFile(pack_bundle(copy, tmp_path / "one.zip").file).namelist()
    assert "tiny_mri/model.sig" in names
