"""The key of pseudonyms: one for a study or a site, so that its data sets name a patient and a file alike.

Hospital numbers, which files are often called by, are so few that a hash without a key is reversed by hashing them all.
Under one key a patient has one pseudonym in every import, whichever of its series were taken and wherever they were
written to.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from segpipe.errors import DataError, UsageError

KEY = "pseudonyms.key"
SHORTEST = 32  # characters


def default_key() -> Path:
    """Return where the key lies where none is named: ``segpipe/pseudonyms.key`` in the user's configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path("~/.config").expanduser()) / "segpipe" / KEY


def study_key(named: str | Path | None = None, earlier: Path | None = None) -> tuple[bytes, Path]:
    """Return the key of an import and its file, which is made, for its owner alone, where it is not there yet.

    Args:
        named: the file that the user names.
        earlier: folder of an earlier conversion that is gone on with: a key that lies in it names its patients.

    Raises:
        UsageError: it cannot be read or made.
        DataError: the file is no key.
    """
    path = Path(named) if named is not None else default_key()
    if named is None and earlier is not None and (earlier / KEY).is_file():
        path = earlier / KEY
    try:
        if not path.exists():
            _make(path)
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise UsageError(
            "cannot read or make the key of the pseudonyms",
            path=path,
            found=error.strerror,
            hint="name a file of your own with --key FILE",
        ) from error
    if len(text) < SHORTEST:
        raise DataError(
            "not a key of pseudonyms",
            path=path,
            expected=f"at least {SHORTEST} characters of text",
            hint="name another file with --key; one that is not there is made, and patients get new pseudonyms",
        )
    return text.encode(), path


def keyed_pseudonym(kind: str, word: str, key: bytes) -> str:
    """Return ``KIND-`` and 12 hex digits: HMAC-SHA256 of a word under the key."""
    return f"{kind}-{hmac.new(key, os.fsencode(word), hashlib.sha256).hexdigest()[:12]}"


def _make(path: Path) -> None:
    """Make a random key that appears whole: of two imports at once, both use that of the first."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(secrets.token_hex(32) + "\n")
        with contextlib.suppress(FileExistsError):
            Path(path).hardlink_to(name)
    finally:
        Path(name).unlink()
