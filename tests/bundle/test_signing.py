"""Keys and signatures: what each refuses, that no network is asked, and that the standard's own command agrees."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from small_bundle import copy, small_bundle

from segpipe.bundle.open import open_bundle
from segpipe.bundle.signing import (
    LARGEST,
    check_signature,
    fingerprint_of,
    is_encrypted,
    make_keys,
    sign_bundle,
    unlock,
)
from segpipe.bundle.verify import Verification, verify_bundle
from segpipe.bundle.vet.documents import write_sums
from segpipe.cli.app import run
from segpipe.errors import RefusedError, UsageError

ROOT = Path(__file__).parents[2]
PASSWORD = "drei Wörter, lang"
Keys = tuple[Path, Path]
Spoil = Callable[[Path], object]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a network was asked for")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys") / "clinic")


@pytest.fixture(scope="module")
def signed(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = small_bundle(tmp_path_factory.mktemp("signed") / "tiny")
    sign_bundle(root, keys[0])
    return root


def signature_check(verdict: Verification) -> tuple[str, str]:
    (check,) = (check for check in verdict.checks if check.name == "signature")
    return check.status, check.detail


# Keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lab", "lab.pem", "lab.pub.pem", "lab.2024"])
def test_a_key_pair(name: str, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "new" / name)
    stem = name.removesuffix(".pem").removesuffix(".pub")
    assert (private.name, public.name) == (f"{stem}.pem", f"{stem}.pub.pem")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"BEGIN PRIVATE KEY" in private.read_bytes() and b"BEGIN PUBLIC KEY" in public.read_bytes()
    assert unlock(private, "left unused") == (None, fingerprint_of(public))
    assert fingerprint_of(public) == hashlib.sha256(public.read_bytes()).hexdigest()


@pytest.mark.parametrize("there", ["lab.pem", "lab.pub.pem"])
def test_no_key_is_overwritten(there: str, tmp_path: Path) -> None:
    (tmp_path / there).write_text("old")
    with pytest.raises(UsageError, match="already"):
        make_keys(tmp_path / "lab")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(there, "old")]


def test_a_password(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "lab", PASSWORD)
    assert is_encrypted(private) and PASSWORD.encode() not in private.read_bytes()
    assert unlock(private, PASSWORD) == (PASSWORD.encode(), fingerprint_of(public))
    with pytest.raises(UsageError, match="password is not that"):
        unlock(private, "another")
    with pytest.raises(UsageError, match="needs its password"):
        unlock(private, None)
    root = small_bundle(tmp_path / "tiny")
    sign_bundle(root, private, PASSWORD)
    assert check_signature(root, public) == fingerprint_of(public)


def test_what_is_no_key(keys: Keys, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    foreign = [rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP256K1())]
    for number, key in enumerate(foreign):
        (tmp_path / f"{number}.pem").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    (tmp_path / "text.pem").write_text("no key")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UsageError, match="not a public"):
            fingerprint_of(path)
        with pytest.raises(UsageError, match="not a private"):
            unlock(path, None)
    with pytest.raises(UsageError, match="private key"):
        fingerprint_of(keys[0])
    with pytest.raises(UsageError, match="not a private key"):
        unlock(keys[1], None)
    with pytest.raises(UsageError, match="cannot read the key"):
        fingerprint_of(tmp_path / "absent.pem")


# Signing -------------------------------------------------------------------------------------------------------


def test_a_signature_covers_every_file_and_says_nothing_of_the_machine(signed: Path, keys: Keys) -> None:
    document = json.loads((signed / "model.sig").read_text())
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    resources = {each["name"]: each["digest"] for each in statement["predicate"]["resources"]}
    files = [path for path in signed.rglob("*") if path.is_file() and path.name != "model.sig"]
    assert resources == {
        path.relative_to(signed).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    assert document["verificationMaterial"]["publicKey"]["hint"] == fingerprint_of(keys[1])
    assert statement["subject"][0]["name"] == "tiny" and str(signed.parent) not in json.dumps(statement)


def test_a_signature_does_not_change_what_the_bundle_is(signed: Path, tmp_path: Path) -> None:
    plain = copy(signed, tmp_path / "plain")
    (plain / "model.sig").unlink()
    assert open_bundle(plain).sha256 == open_bundle(signed).sha256
    assert "model.sig" not in (signed / "SHA256SUMS").read_text()
    before = (signed / "SHA256SUMS").read_text()
    write_sums(copied := copy(signed, tmp_path / "copied"))
    assert (copied / "SHA256SUMS").read_text() == before


def test_what_cannot_be_signed(signed: Path, keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="signed already"):
        sign_bundle(signed, keys[0])
    root = copy(signed, tmp_path / "tiny")
    sign_bundle(root, keys[0], overwrite=True)
    (root / "model.sig").unlink()
    shutil.copy(keys[0], root / "docs" / "key.pem")
    with pytest.raises(RefusedError, match="lies in the bundle"):
        sign_bundle(root, root / "docs" / "key.pem")
    with pytest.raises(RefusedError, match=r"docs/key.pem was added"):
        sign_bundle(root, keys[0])
    (root / "docs" / "key.pem").unlink()
    (root / "docs" / "link").symlink_to(keys[0])
    with pytest.raises(RefusedError, match="a link"):
        sign_bundle(root, keys[0])
    for path in (tmp_path, tmp_path / "absent", signed / "SHA256SUMS"):
        with pytest.raises(UsageError, match="not a bundle folder"):
            sign_bundle(path, keys[0])
    assert not (root / "model.sig").exists()


# Verifying -----------------------------------------------------------------------------------------------------


def replaced(file: str, old: bytes, new: bytes) -> Spoil:
    return lambda root: (root / file).write_bytes((root / file).read_bytes().replace(old, new))


def added(file: str) -> Spoil:
    def spoil(root: Path) -> None:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("{}")

    return spoil


def statement_changed(root: Path) -> None:
    """The statement, under its old signature, leaves a folder out."""
    document = json.loads((root / "model.sig").read_text())
    payload = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    payload["predicate"]["serialization"]["ignore_paths"].append("docs")
    document["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    (root / "model.sig").write_text(json.dumps(document))


SPOILT: dict[str, tuple[Spoil, str]] = {
    "a changed file": (replaced("LICENSE", b"CC0", b"CC1"), "LICENSE"),
    "a changed file with new sums": (
        lambda root: (replaced("LICENSE", b"CC0", b"CC1")(root), write_sums(root)),
        "SHA256SUMS",
    ),
    "sums taken away": (lambda root: (root / "SHA256SUMS").unlink(), "SHA256SUMS"),
    "a removed file": (lambda root: (root / "LICENSE").unlink(), "LICENSE"),
    "an added file": (added("docs/more.md"), "docs/more.md"),
    "an added file that git knows": (added(".git/hooks/post-checkout"), ".git/hooks/post-checkout"),
    "an added .gitattributes": (added(".gitattributes"), ".gitattributes"),
    "a second signature": (added("docs/model.sig"), "docs/model.sig"),
    "a folder as the signature": (
        lambda root: ((root / "model.sig").unlink(), added("model.sig/evil.json")(root)),
        "not signed",
    ),
    "no signature": (lambda root: (root / "model.sig").unlink(), "not signed"),
    "another statement": (statement_changed, "not valid"),
    "not JSON": (lambda root: (root / "model.sig").write_bytes(b"\xff\x00"), "not valid"),
    "deep JSON": (lambda root: (root / "model.sig").write_text("[" * 200_000), "not valid"),
    "empty JSON": (lambda root: (root / "model.sig").write_text("{}"), "not valid"),
    "cut short": (lambda root: (root / "model.sig").write_bytes((root / "model.sig").read_bytes()[:900]), "not valid"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_not_as_it_was_signed(how: str, signed: Path, keys: Keys, tmp_path: Path) -> None:
    spoil, named = SPOILT[how]
    root = copy(signed, tmp_path / "tiny")
    assert check_signature(root, keys[1])
    spoil(root)
    with pytest.raises(RefusedError) as caught:
        check_signature(root, keys[1])
    assert named in str(caught.value)
    verdict = verify_bundle(root, key=keys[1])
    assert verdict.exit_code == 5 and not verdict.trusted and verdict.signed_by is None
    assert signature_check(verdict)[0] == ("absent" if how == "no signature" else "refused") or "folder" in how


def test_a_signature_that_names_no_key(
    signed: Path, keys: Keys, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy(signed, tmp_path / "tiny")
    other, _ = make_keys(tmp_path / "other")
    for private, valid in ((keys[0], True), (other, False)):
        sign_bundle(root, private, overwrite=True)
        document = json.loads((root / "model.sig").read_text())
        del document["verificationMaterial"]["publicKey"]["hint"]
        (root / "model.sig").write_text(json.dumps(document))
        if valid:
            assert check_signature(root, keys[1]) == fingerprint_of(keys[1])
        else:
            with pytest.raises(RefusedError, match="not valid"):
                check_signature(root, keys[1])
    assert capsys.readouterr().out == ""  # the package prints a warning


def test_a_large_signature_is_not_read(signed: Path, keys: Keys, tmp_path: Path) -> None:
    root = copy(signed, tmp_path / "tiny")
    with (root / "model.sig").open("r+b") as stream:
        stream.truncate(LARGEST + 1)
    with pytest.raises(RefusedError, match="not valid"):
        check_signature(root, keys[1])


def test_the_verdict(signed: Path, keys: Keys, tmp_path: Path) -> None:
    verdict = verify_bundle(signed, key=keys[1])
    assert verdict.findings == [] and verdict.exit_code == 0 and verdict.trusted
    assert signature_check(verdict) == ("passed", f"by the key {fingerprint_of(keys[1])}")
    assert verdict.as_dict()["signed_by"] == fingerprint_of(keys[1]) in verdict.words
    unasked = verify_bundle(signed)
    assert signature_check(unasked)[0] == "not run" and "--key" in signature_check(unasked)[1]
    assert unasked.exit_code == 0 and not unasked.trusted and "not trusted" in unasked.words
    other = verify_bundle(signed, key=make_keys(tmp_path / "other")[1])
    assert signature_check(other) == ("refused", "the bundle was signed with another key") and not other.trusted


def test_a_signed_bundle_that_is_refused_is_not_trusted(keys: Keys, tmp_path: Path) -> None:
    root = small_bundle(tmp_path / "tiny", sums=False)
    (root / "configs/evil.json").write_text('{"a": {"_target_": "os.system", "command": "true"}}')
    write_sums(root)
    sign_bundle(root, keys[0])
    verdict = verify_bundle(root, key=keys[1])
    assert signature_check(verdict)[0] == "passed" and verdict.exit_code == 5 and not verdict.trusted


def test_a_signed_bundle_as_a_zip_file(signed: Path, keys: Keys, tmp_path: Path) -> None:
    packed = Path(shutil.make_archive(str(tmp_path / "tiny"), "zip", signed.parent, "tiny"))
    assert verify_bundle(packed, key=keys[1]).trusted


@pytest.mark.slow
def test_the_command_of_the_standard_agrees(signed: Path, keys: Keys, tmp_path: Path) -> None:
    def standard(*words: object) -> int:
        command = [sys.executable, "-m", "model_signing", *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode

    root = copy(signed, tmp_path / "tiny")
    verify = ("verify", "key", root, "--signature", root / "model.sig", "--public_key", keys[1])
    assert standard(*verify) == 0
    (root / "model.sig").unlink()
    assert standard("sign", "key", root, "--signature", root / "model.sig", "--private_key", keys[0]) == 0
    assert check_signature(root, keys[1]) == fingerprint_of(keys[1])
    (root / ".gitignore").write_text("*")
    assert standard(*verify) == 0  # why `check_signature` does not take its defaults
    with pytest.raises(RefusedError, match="not as it was signed"):
        check_signature(root, keys[1])


def test_what_a_signature_leaves_out_must_not_be_there(keys: Keys, tmp_path: Path) -> None:
    from model_signing import hashing, signing

    root = small_bundle(tmp_path / "tiny")
    config = signing.Config().use_elliptic_key_signer(private_key=keys[0])
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=["model.sig", "models"]))
    config.sign(root, root / "model.sig")
    with pytest.raises(RefusedError, match=r"models/model.pt"):
        check_signature(root, keys[1])


# Commands ------------------------------------------------------------------------------------------------------


def document(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    code = run([*map(str, words), "--json"])
    printed = json.loads(capsys.readouterr().out)
    schema = json.loads((ROOT / "docs/schemas/bundle.schema.json").read_text())
    Draft202012Validator(schema).validate(printed)
    return code, printed


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGPIPE_KEY_PASSWORD", PASSWORD)
    code, made = document(capsys, "bundle", "keygen", tmp_path / "lab")
    assert code == 0 and made["encrypted"] and is_encrypted(Path(made["private_key"]))
    root = small_bundle(tmp_path / "tiny")
    code, unsigned = document(capsys, "bundle", "verify", root, "--key", made["public_key"])
    assert (code, unsigned["trusted"], unsigned["signed_by"]) == (5, False, None)
    code, signed = document(capsys, "bundle", "sign", root, "--key", made["private_key"])
    assert code == 0 and signed["signed_by"] == made["fingerprint"]
    code, verified = document(capsys, "bundle", "verify", root, "--key", made["public_key"])
    assert (code, verified["trusted"], verified["signed_by"]) == (0, True, made["fingerprint"])
    assert run(["bundle", "keygen", str(tmp_path / "lab")]) == 2
    monkeypatch.delenv("SEGPIPE_KEY_PASSWORD")
    assert run(["bundle", "sign", str(root), "--key", made["private_key"], "--overwrite"]) == 2
    shown = capsys.readouterr()
    assert PASSWORD not in shown.out + shown.err and "SEGPIPE_KEY_PASSWORD" in shown.err


def test_without_the_packages(
    signed: Path, keys: Keys, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for words in (["verify", signed, "--key", keys[1]], ["sign", signed, "--key", keys[0], "--overwrite"]):
        assert run(["bundle", *map(str, words)]) == 2
        assert "pip install 'segpipe[sign]'" in capsys.readouterr().err
    assert run(["bundle", "verify", str(signed)]) == 0
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    assert run(["bundle", "keygen", str(tmp_path / "lab")]) == 2
    assert "segpipe[sign]" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
