"""Signatures with a local key: OpenSSF model signing (an in-toto statement in a DSSE envelope), without a network.

``model.sig`` lies in the bundle and covers every other file of it, SHA256SUMS included. The command of the
``model-signing`` package verifies it as well.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from pipeline.bundle.archive import METADATA, vet_folder
from pipeline.bundle.finding import shown
from pipeline.bundle.keys import fingerprint_of, signing_library, unlock
from pipeline.bundle.sums import SIGNATURE, check_sums
from pipeline.errors import RefusedError, UsageError
from pipeline.files import write_whole

LARGEST = 32 * 2**20  # of a signature, which takes some 200 bytes a file
_HINT = "do not use this copy; ask whoever made it for the bundle and the key"


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
        raise RefusedError(
            "the private key lies in the bundle", path=key, hint="move it where only you can read it"
        )
    for finding in vet_folder(root):
        raise RefusedError(
            f"the bundle cannot be signed: {finding.reason}", path=root / finding.file, found=finding.text
        )
    check_sums(root)
    if (root / SIGNATURE).exists() and not overwrite:
        raise UsageError(
            "the bundle is signed already", path=root / SIGNATURE, hint="--overwrite signs it anew"
        )
    with signing_library(), tempfile.TemporaryDirectory() as aside:
        from model_signing import signing

        password_bytes: Any = secret  # said to be text, and handed on to where bytes are needed
        config = signing.Config().use_elliptic_key_signer(private_key=key, password=password_bytes)
        written = Path(aside) / SIGNATURE
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
            "the bundle is not signed", path=signature, found="no such file",
            expected=f"a signature by the key {signer}", hint="ask whoever made it for a signed copy",
        )  # fmt: skip
    if signature.stat().st_size > LARGEST:
        raise RefusedError(
            "the signature is not valid", path=signature, found=f"more than {LARGEST >> 20} MiB"
        )
    with signing_library():
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
    """Hashing of every file of a bundle but its signature.

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
        return RefusedError(
            "the bundle was signed with another key", path=signature, expected=signer, hint=_HINT
        )
    if words.startswith("Signature mismatch"):
        differences = words.removeprefix("Signature mismatch: ").strip("[]")
        found = re.sub(r": Expected 'Digest.*?Actual 'Digest\(.*?\)'", "", differences)
        return RefusedError(
            "the bundle is not as it was signed", path=signature, found=shown(found), hint=_HINT
        )
    return RefusedError(
        "the signature is not valid", path=signature, found=shown(" ".join(words.split())) or "it does not verify",
        expected=f"a signature by the key {signer}", hint=_HINT,
    )  # fmt: skip
