"""Key pairs to sign bundles with: elliptic-curve keys in PEM files, made and read here."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.files import write_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

CURVES = ("secp256r1", "secp384r1", "secp521r1")  # those of OpenSSF model signing
PRIVATE, PUBLIC = ".pem", ".pub.pem"
PASSWORD = "SEGPIPE_KEY_PASSWORD"


@contextlib.contextmanager
def signing_library() -> Iterator[None]:
    """Where the signing packages are imported and used; what they print is dropped.

    Raises:
        UsageError: one of them is not installed.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except ImportError as error:
        raise UsageError(
            "keys and signatures need packages that are not installed", found=str(error),
            hint="pip install 'segpipe[sign]'",
        ) from error  # fmt: skip


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
                "there is such a file already",
                path=path,
                hint="choose another name: no key is ever overwritten",
            )
    with signing_library():
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
    """Hex SHA-256 of a public key in PEM: what ``sha256sum`` gives of the file that `make_keys` writes.

    Raises:
        UsageError: no such file, not a public key of a known curve, or a package is not installed.
    """
    with signing_library():
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
    with signing_library():
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
    """Whether the file of a private key says that it is encrypted."""
    return b"ENCRYPTED" in _read(key)


def _read(key: Path) -> bytes:
    try:
        return key.read_bytes()
    except OSError as error:
        raise UsageError(
            "cannot read the key", path=key, found=error.strerror, hint="check the path"
        ) from error


def _fingerprint(public: Any, key: Path) -> str:
    if getattr(getattr(public, "curve", None), "name", None) not in CURVES:
        raise _not_a_key(key, "public or private")
    return hashlib.sha256(_pem(public)).hexdigest()


def _pem(public: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _not_a_key(key: Path, kind: str) -> UsageError:
    return UsageError(
        f"not a {kind} key", path=key, expected=f"PEM, elliptic curve, {' or '.join(CURVES)}",
        hint="make a key pair with `segpipe bundle keygen`",
    )  # fmt: skip
