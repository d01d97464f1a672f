"""Files: written whole or not at all, read with errors that a user understands, and hashed."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from segpipe.common.partial import partial_file
from segpipe.errors import DataError, UsageError

BLOCK = 1 << 20


def sha256_of(path: str | Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    return digest_of(path, "sha256")


def digest_of(path: str | Path, algorithm: str) -> str:
    """Return the hex digest of a file's bytes, e.g. ``md5`` where a publisher gives nothing better."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def absolute_path(path: Any, expected: str) -> Path:
    """Return a path that a user gave, absolute, so that another current folder later changes nothing.

    Raises:
        UsageError: it is no ``str`` or ``Path``, or empty.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise UsageError("not a path", found=repr(path), expected=expected)
    return Path(path).absolute()


def cache_folder() -> Path:
    """Return ``$SEGPIPE_CACHE``, or ``segpipe`` in the user's cache folder (XDG Base Directory Specification)."""
    own = os.environ.get("SEGPIPE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "segpipe"


def network_cache(sha256: str) -> Path:
    """Return where the converted networks of a bundle are kept: apart, so that no other bundle can put one there."""
    return cache_folder() / "openvino" / sha256


@contextmanager
def write_whole(path: str | Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of ``path`` and rename it over ``path`` when the block ends well.

    A crash, a full disk or an exception leaves the old file (or none), never half of one.

    Raises:
        UsageError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    name = partial_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # with its mode at once: where a process is isolated, none can be changed
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        name.replace(path)
    except BaseException as error:
        name.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def require_writable(folder: str | Path) -> None:
    """Make a folder where it is not there, and try it, before the work that fills it begins.

    Raises:
        UsageError: it cannot be made or written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write(folder, error) from error


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes into a folder that is made where it is not there.

    Raises:
        UsageError: it cannot be written: the disk is full, with the bytes that it takes.
        OSError: the source cannot be read.
    """
    with source.open("rb") as reading:
        copy_stream(reading, target, os.fstat(reading.fileno()).st_size)


def copy_stream(reading: IO[bytes], target: Path, size: int) -> None:
    """Write what is left of a stream, ``size`` bytes, as `copy_file` does."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        writing = target.open("wb", buffering=0)
    except OSError as error:
        raise cannot_write(target, error, size) from error
    with writing:
        while block := reading.read(BLOCK):
            rest = memoryview(block)
            try:
                while rest:
                    rest = rest[writing.write(rest) :]
            except OSError as error:
                raise cannot_write(target, error, size) from error


def require_space(folder: Path, needed: int) -> None:
    """Refuse to begin what there is no space for.

    Raises:
        UsageError: with what is free and what it takes.
    """
    free = free_bytes(folder)
    if free is not None and needed > free:
        raise cannot_write(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), needed)


def free_bytes(path: Path) -> int | None:
    """Return what is free on the disk of a path, which need not be there; None where nobody can tell."""
    folder = next((parent for parent in (path, *path.parents) if parent.is_dir()), None)
    with suppress(OSError):
        return None if folder is None else shutil.disk_usage(folder).free
    return None


def cannot_write(path: str | Path, error: OSError, needed: int | None = None) -> UsageError:
    """Return the error of an output that cannot be written, in the same words everywhere.

    Args:
        path: of the output.
        error: what the system says.
        needed: bytes that it takes, where they are known.
    """
    if isinstance(error, shutil.Error):  # of `copytree`: its first failure
        _, failed, why = (error.args[0] or [("", path, "")])[0]
        path, found = failed, str(why)
    else:
        found = error.strerror or str(error) or type(error).__name__
    expected = None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        most = free_bytes(Path(path))
        free = "" if most is None else f", {most:,} are free"
        expected = f"{needed:,} bytes{free}" if needed is not None else f"more space{free and free + ' (bytes)'}"
    return UsageError(
        "cannot write the output",
        path=path,
        found=found,
        expected=expected,
        hint="choose another place, free some space or ask for write permission, then run it again",
    )


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with write_whole(path) as stream:
        stream.write(content)


def write_text(path: str | Path, text: str, mode: int | None = None) -> None:
    """Write UTF-8 text, whole or not at all."""
    with write_whole(path, mode) as stream:
        stream.write(text.encode())


def write_json(path: str | Path, document: Any) -> None:
    """Write indented JSON with a final newline, whole or not at all. NaN is refused."""
    write_text(path, json_text(document))


def json_text(document: Any) -> str:
    """Return what `write_json` writes."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: list[str]) -> None:
    """Write rows as CSV (empty cell for None), whole or not at all."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if row.get(name) is None else row[name] for name in columns})
    write_text(path, buffer.getvalue())


def read_json(path: str | Path, noun: str = "JSON file", damaged: str | None = None) -> Any:
    """Read JSON.

    Args:
        path: of the file.
        noun: what it is, for errors.
        damaged: what to do where it cannot be parsed, for errors.

    Raises:
        UsageError: there is no such file.
        DataError: it is not JSON; the message names line and column.
    """

    def parse(text: str) -> Any:
        document = json.loads(text)
        if "\\u" in text:  # half a surrogate pair could never be written again
            json.dumps(document, ensure_ascii=False).encode()
        return document

    return _parse(Path(path), noun, parse, damaged)


def read_yaml(path: str | Path, noun: str = "YAML file") -> Any:
    """Read YAML (so JSON too); errors as in `read_json`, and where a name is given twice: one value would be lost."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            if twice := [name for name in names if names.count(name) > 1]:
                raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
            return super().construct_mapping(node, deep)

    def parse(text: str) -> Any:
        try:
            return yaml.load(text, Loader)
        except yaml.YAMLError as error:
            raise ValueError(str(error).replace("\n", " ")) from error

    return _parse(Path(path), noun, parse)


def _parse(path: Path, noun: str, parse: Callable[[str], Any], damaged: str | None = None) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"no such {noun}", path=path, hint="check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the {noun} is not UTF-8 text", path=path, found=str(error), hint=damaged) from error
    except OSError as error:
        raise UsageError(f"cannot read the {noun}", path=path, found=error.strerror) from error
    try:
        return parse(text)
    except ValueError as error:
        found = " ".join(str(error).split())
        raise DataError(f"the {noun} cannot be parsed", path=path, found=found, hint=damaged) from error
    except RecursionError as error:
        raise DataError(f"the {noun} cannot be parsed", path=path, found="nested too deeply", hint=damaged) from error
