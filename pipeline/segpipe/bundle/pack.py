"""A bundle as one file: a zip archive whose bytes depend on the bundle's content alone."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import stat
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from segpipe.bundle.disclosure import find_disclosures, machine_words
from segpipe.bundle.exporting import NAME, VERSION
from segpipe.bundle.supported_subset import read_members
from segpipe.bundle.tensors import WEIGHTS, read_state, safetensors_bytes
from segpipe.bundle.vet import (
    INFERENCE,
    SIGNATURE,
    SUMS,
    Verdict,
    fingerprint,
    hash_files,
    plain,
    read_mapping,
    sums_text,
    unpacked,
    vet_unpacked,
)
from segpipe.common.files import sha256_of, write_whole
from segpipe.errors import RefusedError, UsageError

EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip archive can name
_UNIX = 3
_MODE = stat.S_IFREG | 0o644
Content = Mapping[str, "Path | bytes"]


@dataclass(frozen=True)
class Packed:
    """A packed bundle.

    Attributes:
        file: the archive.
        sha256: of the archive.
        name: of the bundle, and of the one folder in the archive.
        version: of the bundle.
        content_sha256: names what is packed, as results name a bundle.
        files: number of files in it.
    """

    file: Path
    sha256: str
    name: str
    version: str
    content_sha256: str
    files: int


def pack_bundle(
    bundle: str | Path,
    out: str | Path | None = None,
    *,
    safetensors: bool = False,
    allow: Collection[str] = (),
    publish: bool = False,
    overwrite: bool = False,
) -> Packed:
    """Write a bundle as one zip file, whole or not at all; the bundle itself is only read.

    The archive has one folder, named as the bundle. Names are sorted, nothing is compressed, times and permissions are
    always the same: equal content gives equal bytes, wherever and whenever it is packed.

    Args:
        bundle: its folder, or a zip file of one.
        out: the archive; default ``NAME_vVERSION.zip`` in the current directory.
        safetensors: add ``models/model.safetensors``, the same tensors as in ``models/model.pt``; of an ensemble
            ``models/member_0.safetensors`` and so on.
        allow: names admitted beside the list, as `segpipe bundle verify` takes them.
        publish: refuse a bundle in which something could name a patient or a place.
        overwrite: replace a file that is already there.

    Raises:
        UsageError: not a bundle, or the place of the archive is taken or cannot be written to.
        RefusedError: the bundle is not as its SHA256SUMS says, has none, does not pass the static checks, or names
            somebody.
        DataError: the weights cannot be written as safetensors.
    """
    with unpacked(bundle) as (root, findings):
        verdict = vet_unpacked(root, findings, allow)
        if root is None or verdict.refused or not verdict.intact:
            raise _refusal(Path(bundle), verdict)
        disclosed = find_disclosures(root, machine_words()) if publish else []
        if disclosed:
            raise RefusedError(
                "the bundle could name a patient or a place, and is not packed",
                path=bundle,
                findings=plain(disclosed),
                hint="take it out of run, manifest or options, and export again",
            )
        if not re.fullmatch(NAME, verdict.name):
            raise UsageError("this name of a bundle cannot be a folder's", found=verdict.name, expected=NAME)
        named = f"_v{verdict.version}" if re.fullmatch(VERSION, verdict.version) else ""
        archive = Path(out if out is not None else f"{verdict.name}{named}.zip")
        _require_free(archive, Path(bundle), overwrite)
        sums = hash_files(root)
        content: dict[str, Path | bytes] = {
            name: root / name for name in (*sums, SUMS, SIGNATURE) if (root / name).is_file()
        }
        if safetensors:
            added = _as_safetensors(root)
            content.update(added)
            sums.update({name: hashlib.sha256(each).hexdigest() for name, each in added.items()})
            content[SUMS] = sums_text(sums).encode()
        write_archive(archive, verdict.name, content)
        return Packed(archive, sha256_of(archive), verdict.name, verdict.version, fingerprint(sums), len(content))


def write_archive(archive: Path, folder: str, content: Content) -> None:
    """Write files below one folder into a zip archive: sorted, stored, with fixed times and permissions.

    Args:
        archive: the file to be written.
        folder: name of the one folder.
        content: path in the folder to the file that is read, or to bytes.

    Raises:
        UsageError: it cannot be written, or the disk is full.
    """
    with write_whole(archive) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as packed:
        for name in sorted(content):
            source = content[name]
            member = zipfile.ZipInfo(f"{folder}/{name}", EPOCH)
            member.create_system = _UNIX
            member.external_attr = _MODE << 16
            member.file_size = len(source) if isinstance(source, bytes) else source.stat().st_size
            with (
                io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as reading,
                packed.open(member, "w") as writing,
            ):
                shutil.copyfileobj(reading, writing, 1 << 20)


def _as_safetensors(root: Path) -> dict[str, bytes]:
    """Return the weights once more, by the name of the file that they become."""
    if (root / SIGNATURE).is_file():
        raise UsageError(
            "a signed bundle cannot get another file",
            path=root / SIGNATURE,
            hint="pack it with --safetensors first, unpack and sign that",
        )
    config = next((root / file for file in INFERENCE if (root / file).is_file()), None)
    files = (read_members(read_mapping(config, "inference config")) if config else ()) or (WEIGHTS,)
    gone = next((file for file in files if not (root / file).is_file()), None)
    if gone is not None:
        raise UsageError("the bundle has no weights to write as safetensors", path=root / gone)
    return {
        f"{file.removesuffix('.pt')}.safetensors": safetensors_bytes(read_state(root / file), root / file)
        for file in files
    }


def _refusal(bundle: Path, verdict: Verdict) -> RefusedError:
    if not verdict.findings:
        return RefusedError(
            f"the bundle has no {SUMS}",
            path=bundle,
            expected="a line of SHA-256 and path for every file",
            hint="take a bundle that `segpipe export` wrote, or write the file with `sha256sum`",
        )
    return RefusedError(
        "the bundle does not pass the static checks, and is not packed",
        path=bundle,
        findings=plain(verdict.findings),
        hint="admit a name with --allow where you know what it does",
    )


def _require_free(archive: Path, bundle: Path, overwrite: bool) -> None:
    place = archive.resolve()
    if bundle.is_dir() and place.is_relative_to(bundle.resolve()):
        raise UsageError("the file would lie within the bundle", path=archive, hint="choose a place outside it")
    if place == bundle.resolve():
        raise UsageError("the file is the bundle itself", path=archive, hint="choose another place")
    if archive.is_dir() or (archive.exists() and not overwrite):
        raise UsageError(
            "the place for the file is taken",
            path=archive,
            found="a folder" if archive.is_dir() else "a file",
            hint="choose another place" if archive.is_dir() else "replace it with --overwrite",
        )
