"""Whose a bundle is: elliptic-curve key pairs in PEM files, and signatures by OpenSSF model signing, offline.

``model.sig`` (an in-toto statement in a DSSE envelope) lies in the bundle and covers every other file of it, SHA256SUMS
included. The command of the ``model-signing`` package verifies it as well. The packages are an extra: each function
imports them itself and raises UsageError where one is not installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.bundle.vet import METADATA, SIGNATURE, check_sums, shown, vet_folder
from segpipe.common.files import write_whole
from segpipe.common.partial import temporary_folder
from segpipe.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

CURVES = ("secp256r1", "secp384r1", "secp521r1")  # those of OpenSSF model signing
PRIVATE, PUBLIC = ".pem", ".pub.pem"
PASSWORD = "SEGPIPE_KEY_PASSWORD"
LARGEST = 32 * 2**20  # of a signature, which takes some 200 bytes a file
_HINT = "do not use this copy; ask whoever made it for the bundle and the key"


def make_keys(prefix: str | Path, password: str | None = None) -> tuple[Path, Path]:
    """Make a key pair on NIST P-256: ``PREFIX.pem``, which its owner keeps, and ``PREFIX.pub.pem``, for everyone.

    Args:
        prefix: path without a suffix.
        password: to encrypt the private key with; None leaves it plain.

    Returns:
        The file of the private key (mode 0600) and that of the public key.

    Raises:
        UsageError: one of the files is there already or cannot be written, or a package is not installed.
    """
    stem = str(prefix).removesuffix(PUBLIC).removesuffix(PRIVATE)
    private, public = Path(stem + PRIVATE), Path(stem + PUBLIC)
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise UsageError(
                "there is such a file already", path=path, hint="choose another name: no key is ever overwritten"
            )
    with _signing_packages():
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        lock: Any = serialization.NoEncryption()
        if password:
            lock = serialization.BestAvailableEncryption(password.encode())
        content = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
        with write_whole(private, mode=0o600) as stream:
            stream.write(content)
        with write_whole(public) as stream:
            stream.write(_pem(key.public_key()))
    return private, public


def fingerprint_of(key: Path) -> str:
    """Return the hex SHA-256 of a public key in PEM: what ``sha256sum`` gives of the file that `make_keys` writes.

    Raises:
        UsageError: no such file, not a public key of a known curve, or a package is not installed.
    """
    with _signing_packages():
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization

        content = _read(key)
        if b"PRIVATE KEY" in content:
            raise UsageError("this is a private key", path=key, expected=f"the public key, NAME{PUBLIC}")
        try:
            public = serialization.load_pem_public_key(content)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise _not_a_key(key, "public") from error
        return _fingerprint(public, key)


def unlock(key: Path, password: str | None) -> tuple[bytes | None, str]:
    """Try a private key.

    Args:
        key: its file.
        password: that it is encrypted with; it is left unused where the key is plain.

    Returns:
        The password as it is needed, and the `fingerprint_of` the public key that belongs to it.

    Raises:
        UsageError: no such file, not a private key of a known curve, a wrong password, or a package is missing.
    """
    secret = password.encode() if password and is_encrypted(key) else None
    if secret is None and is_encrypted(key):
        raise UsageError("the private key needs its password", path=key, hint=f"set {PASSWORD}")
    with _signing_packages():
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization

        try:
            private = serialization.load_pem_private_key(_read(key), secret)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            if secret:
                raise UsageError("the password is not that of the private key", path=key) from error
            raise _not_a_key(key, "private") from error
        return secret, _fingerprint(private.public_key(), key)


def is_encrypted(key: Path) -> bool:
    """Return whether the file of a private key says that it is encrypted."""
    return b"ENCRYPTED" in _read(key)


def sign_bundle(root: Path, key: Path, password: str | None = None, overwrite: bool = False) -> str:
    """Write ``model.sig`` over all files of a bundle folder.

    Args:
        root: the folder.
        key: file of the private key.
        password: of the key, where it is encrypted.
        overwrite: whether to replace a signature.

    Returns:
        The fingerprint of the key.

    Raises:
        UsageError: not a bundle folder, not a key, a wrong password, a signature is there, or no package.
        RefusedError: the files are not those of SHA256SUMS, one is a link, or the private key lies among them.
    """
    if not (root / METADATA).is_file():
        hint = "sign the folder, then pack it: the zip file takes the signature along"
        raise UsageError("not a bundle folder", path=root, expected=f"a folder with {METADATA}", hint=hint)
    secret, signer = unlock(key, password)
    if key.resolve().is_relative_to(root.resolve()):
        raise RefusedError("the private key lies in the bundle", path=key, hint="move it where only you can read it")
    for finding in vet_folder(root):
        raise RefusedError(
            f"the bundle cannot be signed: {finding.reason}", path=root / finding.file, found=finding.text
        )
    check_sums(root)
    if (root / SIGNATURE).exists() and not overwrite:
        raise UsageError("the bundle is signed already", path=root / SIGNATURE, hint="--overwrite signs it anew")
    with _signing_packages(), temporary_folder() as aside:
        from model_signing import signing

        password_bytes: Any = secret  # said to be text, and handed on to where bytes are needed
        config = signing.Config().use_elliptic_key_signer(private_key=key, password=password_bytes)
        written = aside / SIGNATURE
        config.set_hashing_config(_every_file()).sign(root.resolve(), written)
        with write_whole(root / SIGNATURE) as stream:
            stream.write(written.read_bytes())
    return signer


def check_signature(root: Path, key: Path) -> str:
    """Make sure that a bundle is as the owner of a key signed it.

    Args:
        root: folder of the bundle, of which only bytes are read.
        key: file of the public key.

    Returns:
        The fingerprint of the key.

    Raises:
        RefusedError: no signature, one of another key, or a file that was changed, added or removed since.
        UsageError: not a public key, or no package.
    """
    signer, signature = fingerprint_of(key), root / SIGNATURE
    if not signature.is_file():
        raise RefusedError(
            "the bundle is not signed",
            path=signature,
            found="no such file",
            expected=f"a signature by the key {signer}",
            hint="ask whoever made it for a signed copy",
        )
    if signature.stat().st_size > LARGEST:
        raise RefusedError("the signature is not valid", path=signature, found=f"more than {LARGEST >> 20} MiB")
    with _signing_packages():
        from model_signing import verifying

        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
        try:
            config.set_hashing_config(_every_file()).verify(root.resolve(), signature)
        except (OSError, MemoryError, ImportError):
            raise
        except Exception as error:  # whatever it breaks on, it is not a valid signature
            raise _refusal(signature, signer, str(error)) from error
    return signer


def _every_file() -> Any:
    """Return the hashing of every file of a bundle but its signature.

    The package would leave out what git knows by name, and what the signature itself says: here such a file is one
    that nobody signed.
    """
    from model_signing import hashing

    class EveryFile(hashing.Config):
        def add_ignored_paths(self, **_paths: object) -> None:
            """Leave out nothing more."""

    return EveryFile().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _refusal(signature: Path, signer: str, words: str) -> RefusedError:
    if words.startswith("Key mismatch"):
        return RefusedError("the bundle was signed with another key", path=signature, expected=signer, hint=_HINT)
    if words.startswith("Signature mismatch"):
        differences = words.removeprefix("Signature mismatch: ").strip("[]")
        found = re.sub(r": Expected 'Digest.*?Actual 'Digest\(.*?\)'", "", differences)
        return RefusedError("the bundle is not as it was signed", path=signature, found=shown(found), hint=_HINT)
    return RefusedError(
        "the signature is not valid",
        path=signature,
        found=shown(" ".join(words.split())) or "it does not verify",
        expected=f"a signature by the key {signer}",
        hint=_HINT,
    )


def _read(key: Path) -> bytes:
    try:
        return key.read_bytes()
    except OSError as error:
        raise UsageError("cannot read the key", path=key, found=error.strerror, hint="check the path") from error


def _fingerprint(public: Any, key: Path) -> str:
    if getattr(getattr(public, "curve", None), "name", None) not in CURVES:
        raise _not_a_key(key, "public or private")
    return hashlib.sha256(_pem(public)).hexdigest()


def _pem(public: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _not_a_key(key: Path, kind: str) -> UsageError:
    return UsageError(
        f"not a {kind} key",
        path=key,
        expected=f"PEM, elliptic curve, {' or '.join(CURVES)}",
        hint="make a key pair with `segpipe bundle keygen`",
    )


@contextlib.contextmanager
def _signing_packages() -> Iterator[None]:
    """Import and use the signing packages in this block; what they print is dropped.

    Raises:
        UsageError: one of them is not installed.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except ImportError as error:
        raise UsageError(
            "keys and signatures need packages that are not installed",
            found=str(error),
            hint="pip install 'segpipe[sign]'",
        ) from error
