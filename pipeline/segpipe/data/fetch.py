"""Public data sets: download with resume, verify, unpack safely, compare with the list of files.

Addresses and MD5 sums of the Medical Segmentation Decathlon are those of MONAI's ``DecathlonDataset``.
"""

from __future__ import annotations

import gzip
import http.client
import lzma
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from segpipe.common.console import some_of
from segpipe.common.files import cannot_write, copy_file, copy_stream, digest_of, require_space, sha256_of, write_text
from segpipe.common.partial import Partial
from segpipe.data.importers import find_dataset
from segpipe.data.manifest import Manifest, load_manifest, shipped_manifest
from segpipe.errors import DataError, RefusedError, UsageError

BLOCK = 1 << 18
TIMEOUT_S = 30
OFFLINE = "without a network, get the archive by other means and name it with --from"
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Source:
    """Where a public data set lies; ``folder`` is the name of the folder that its archive holds."""

    folder: str
    url: str
    md5: str


def find_source(name: str) -> Source:
    """Return the public source of a data set such as ``msd_task04_hippocampus``.

    Raises:
        UsageError: no such data set.
    """
    from monai.apps.datasets import DecathlonDataset

    known = {f"msd_{task.lower()}": task for task in DecathlonDataset.resource}
    if name not in known:
        raise UsageError("no such public data set", found=name, expected=", ".join(known))
    task = known[name]
    return Source(task, DecathlonDataset.resource[task], DecathlonDataset.md5[task])


def fetch_dataset(
    name: str, destination: str | Path, local: str | Path | None = None, progress: Progress = lambda done, total: None
) -> Path:
    """Get a public data set and return its folder, with manifest.json in it where one comes with this package.

    Args:
        name: e.g. ``msd_task04_hippocampus``.
        destination: folder to put the data set's folder into.
        local: a folder or an archive that is there already; nothing is downloaded then.
        progress: called with bytes done and in all (None where not known).

    Raises:
        UsageError: no such data set, no network, no such folder or archive, no place to write to.
        DataError: the download is damaged, or files are missing or differ from the list.
        RefusedError: an archive with links or with paths that lead out of it.
    """
    source = find_source(name)
    folder = Path(destination) / source.folder
    if folder.exists():
        compare_files(folder, name)
    else:
        _fetch(source, name, folder, None if local is None else Path(local), progress)
    shipped, manifest = shipped_manifest(name), folder / "manifest.json"
    if shipped is not None and not manifest.exists():
        write_text(manifest, shipped.read_text(encoding="utf-8"))
    return folder


def _fetch(source: Source, name: str, final: Path, local: Path | None, progress: Progress) -> None:
    if local is not None and not local.exists():
        raise UsageError("no such folder or archive", path=local, hint="check the path given to --from")
    destination = final.parent
    try:
        with Partial(destination) as partial:
            temporary = partial.folder / source.folder
            if local is not None and local.is_dir():
                _copy(_data_folder(local, source), temporary)
            else:
                archive = local or download(source.url, destination / Path(source.url).name, source.md5, progress)
                if local is not None and shipped_manifest(name) is None:
                    require_md5(archive, source.md5)  # where files have listed hashes, those decide
                unpack(archive, temporary)
            folder = _data_folder(temporary, source)
            compare_files(folder, name)
            folder.rename(final)
            if local is None:
                archive.unlink()
    except OSError as error:
        raise cannot_write(destination, error) from error


def _copy(source: Path, target: Path) -> None:
    """Copy all but hidden files; where there is too little space, before a byte is written.

    Raises:
        UsageError: they cannot be read or written.
    """
    paths = [path for path in sorted(source.rglob("*")) if path.is_file()]
    names = [path.relative_to(source) for path in paths]
    files = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    require_space(target.parent, sum((source / name).stat().st_size for name in files))
    for name in files:
        try:
            copy_file(source / name, target / name)
        except OSError as error:
            raise UsageError("cannot read the data set", path=source / name, found=error.strerror) from error


def download(url: str, target: Path, md5: str, progress: Progress = lambda done, total: None) -> Path:
    """Download a file; what an earlier attempt left in ``TARGET.partial`` is continued.

    Raises:
        UsageError: no network, the server refuses, or the connection broke (what came is kept).
        DataError: the MD5 sum differs; the file is removed.
    """
    if target.is_file():
        require_md5(target, md5)
        return target
    partial = target.with_name(f"{target.name}.partial")
    start = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            _receive(response, partial, start if response.status == 206 else 0, url, progress)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:  # 416: nothing is left to be sent
            raise UsageError("the server refuses the download", path=url, found=error, hint=OFFLINE) from error
    except urllib.error.URLError as error:
        raise UsageError("no connection to the server", path=url, found=error.reason, hint=OFFLINE) from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _broken(url, type(error).__name__) from error
    try:
        require_md5(partial, md5)
    except DataError:
        partial.unlink()
        raise
    return partial.rename(target)


def require_md5(path: Path, md5: str) -> None:
    """Refuse a file with another MD5 sum.

    Raises:
        DataError: it differs.
    """
    found = digest_of(path, "md5")
    if found != md5:
        raise DataError(
            "the archive is damaged or another one",
            path=path,
            found=f"MD5 {found}",
            expected=f"MD5 {md5}",
            hint="fetch it again",
        )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive (compressed or not) of plain files into a new folder.

    Raises:
        DataError: not a tar archive, or truncated.
        RefusedError: links, devices, or paths that lead out of the folder.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise RefusedError("the archive holds what it should not", path=archive, found=member.name)
                stream = tar.extractfile(member)
                if stream is None or path.name.startswith("."):  # folders, and what macOS adds
                    continue
                copy_stream(stream, folder / path, member.size)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise DataError("the archive cannot be read", path=archive, found=error, hint="fetch it again") from error


def compare_files(folder: Path, name: str) -> None:
    """Compare a folder with the shipped manifest of the data set, else with its own ``dataset.json``.

    Raises:
        DataError: files are missing or differ, by name.
    """
    shipped = shipped_manifest(name)
    if shipped is None:
        find_dataset(folder)
        return
    manifest = load_manifest(shipped)
    missing = [path for case in manifest.cases() for path in case.paths if not (folder / path).is_file()]
    changed = [] if missing else _changed(folder, manifest)
    if missing or changed:
        raise DataError(
            f"{len(missing or changed)} files are missing" if missing else f"{len(changed)} files differ from the list",
            path=folder,
            found=some_of(missing or changed),
            expected=f"the files of {name}",
            hint="remove the folder and fetch it again, or name a complete one with --from",
        )


def _changed(folder: Path, manifest: Manifest) -> list[str]:
    listed = [item for case in manifest.cases() for item in (case.sha256 or {}).items()]
    return [path for path, digest in listed if sha256_of(folder / path) != digest]


def _data_folder(folder: Path, source: Source) -> Path:
    """Return the folder with ``dataset.json``: this one, or the one below it."""
    below = [path.parent for path in folder.glob("*/dataset.json")]
    for place in (folder, folder / source.folder, *(below if len(below) == 1 else [])):
        if (place / "dataset.json").is_file():
            return place
    raise DataError("there is no dataset.json", path=folder, expected=f"{source.folder}/dataset.json")


def _receive(response: http.client.HTTPResponse, partial: Path, start: int, url: str, progress: Progress) -> None:
    length = response.headers.get("Content-Length")
    total = start + int(length) if length and length.isdecimal() else None
    done = start
    require_space(partial.parent, 0 if total is None else total - start)
    with partial.open("ab" if start else "wb") as stream:
        while block := response.read(BLOCK):
            try:
                stream.write(block)
            except OSError as error:
                raise cannot_write(partial, error, total) from error
            done += len(block)
            progress(done, total)
    if total is not None and done < total:
        raise _broken(url, f"{done} of {total} bytes")


def _broken(url: str, found: str) -> UsageError:
    return UsageError(
        "the connection broke", path=url, found=found, hint=f"run it again to continue where it ended; {OFFLINE}"
    )
