"""The folder of a store: a file a case, named by all that it was made from.

    STORE/store.json            says that it is one
    STORE/cases/KEY.case        a prepared case
    STORE/seen/NAME.json        size, times and SHA-256 of a source file, so that it is hashed once

A key is the SHA-256 of what the case was made from: the hashes of its files, its transforms, the versions of what
computed it and of this format. So a changed file or transform is another case, and folds, seeds and variants share
those that are the same. Neither a path nor a name of a file stands in a store: `seen` names it by the hash of its path.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.common.files import cache_folder, cannot_write, read_json, require_space, sha256_of, write_json
from segpipe.common.folder_lock import LOCK, locked
from segpipe.common.nifti_bytes import header_of_pair, voxels_of_pair
from segpipe.errors import DataError, SegpipeError, UsageError
from segpipe.store.case_file import FORMAT, CaseFile, Volume, write_case

MARK, CASES, SEEN, ENDING = "store.json", "cases", "seen", ".case"
WAIT_S = 24 * 3600.0  # for another process to end with a case
SETTLED_NS = 2 * 10**9  # a file that changed later than this before it was hashed may change again at the same time
Prepared = tuple[Mapping[str, Volume], Mapping[str, Any]]
"""The volumes of a case, and what else it has."""


@dataclass(frozen=True)
class StoreFacts:
    """What a store holds: ``cases`` of them, in ``bytes`` of files."""

    cases: int
    bytes: int


def default_store() -> Path:
    """Return the store of this user, in `cache_folder`."""
    return cache_folder() / "store"


class Store:
    """A store, made where it is not there.

    Args:
        folder: its place.

    Raises:
        UsageError: the folder holds something else, a store of another version, or cannot be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        if not _is_store(self.folder):
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds images, for its owner alone
                others = [entry for entry in self.folder.iterdir() if not entry.name.startswith(".")]
            except OSError as error:
                raise cannot_write(self.folder, error) from error
            if others and not _is_store(self.folder):  # which another process may just have begun
                hint = "name a new or empty folder, or a store, with --store"
                raise UsageError("the folder is no store of prepared cases", path=self.folder, hint=hint)
            write_json(self.folder / MARK, {"store": "prepared cases of segpipe", "format": FORMAT})

    def prepare(
        self,
        jobs: Sequence[tuple[Mapping[str, Any], Callable[[], Prepared]]],
        made_by: Mapping[str, Any],
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> list[CaseFile]:
        """Return the file of each case; those that are missing or damaged are made, one after the other.

        Another process that prepares the same waits for a case and finds it made; one that is killed leaves whole
        cases, and nothing else.

        Args:
            jobs: what a case is made from, as a data dictionary whose paths are those of its files, and what makes it.
            made_by: transforms and versions, plain values.
            progress: called with the number of cases that are there and of all.

        Raises:
            UsageError: the disk is full, with what the rest takes; or a file is not there.
            DataError: a file was changed while it was read, or what makes the case says so.
        """
        keys = [self._key(item, made_by) for item, _ in jobs]
        files = [self._open(key) for key in keys]
        sizes: list[int] = []
        missing = [index for index, file in enumerate(files) if file is None]
        for done, index in enumerate(missing):
            progress(len(jobs) - len(missing) + done, len(jobs))
            if sizes:
                require_space(self.folder, sum(sizes) // len(sizes) * (len(missing) - done))
            files[index] = self._made(keys[index], *jobs[index], made_by, sizes)
        progress(len(jobs), len(jobs))
        return [file for file in files if file is not None]

    def _made(
        self,
        key: str,
        item: Mapping[str, Any],
        make: Callable[[], Prepared],
        made_by: Mapping[str, Any],
        sizes: list[int],
    ) -> CaseFile:
        busy = UsageError("another process prepares cases of this store", path=self.folder, hint="wait until it ends")
        with locked(self.folder, busy, wait_s=WAIT_S):
            file = self._open(key)  # by the process that was waited for
            if file is None:
                volumes, facts = make()
                if self._key(item, made_by) != key:
                    raise DataError(
                        "a file of the case was changed while it was read",
                        case_id=item.get("case_id"),
                        hint="begin again when nothing changes it any more",
                    )
                sizes.append(write_case(self._path(key), volumes, facts))
                file = CaseFile(self._path(key))
        return file

    def _path(self, key: str) -> Path:
        return self.folder / CASES / f"{key}{ENDING}"

    def _open(self, key: str) -> CaseFile | None:
        """Return a case that is there and whole."""
        with suppress(FileNotFoundError, DataError):
            return CaseFile(self._path(key))
        return None

    def _key(self, item: Mapping[str, Any], made_by: Mapping[str, Any]) -> str:
        content = {"format": FORMAT, "made_by": made_by, "case": self._with_hashes(dict(item))}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def _with_hashes(self, value: Any) -> Any:
        """Return plain values with a file's hash for its path."""
        if isinstance(value, Mapping):
            return {str(key): self._with_hashes(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._with_hashes(part) for part in value]
        if isinstance(value, (str, os.PathLike)) and os.sep in os.fspath(value) and Path(value).is_file():
            path = Path(value)
            paired = path.suffix.lower() in (".hdr", ".img")
            files = (header_of_pair(path), voxels_of_pair(path)) if paired else (path,)
            return {"sha256": [self._hash(file) for file in files if file.is_file()]}
        return value

    def _hash(self, path: Path) -> str:
        """Return a file's SHA-256; that of a file that did not change is known from before."""
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
        record, now = self.folder / SEEN / f"{name}.json", _state(path)
        with suppress(SegpipeError):
            known = read_json(record)
            if isinstance(known, dict) and known.get("state") == now and isinstance(known.get("sha256"), str):
                return str(known["sha256"])
        digest = sha256_of(path)
        if time.time_ns() - max(now["mtime_ns"], now["ctime_ns"]) > SETTLED_NS and _state(path) == now:
            write_json(record, {"state": now, "sha256": digest})
        return digest


def store_facts(folder: str | Path) -> StoreFacts:
    """Return what a store holds.

    Raises:
        UsageError: there is none.
    """
    files = [*(_require_store(folder) / CASES).glob(f"*{ENDING}")]
    return StoreFacts(len(files), sum(file.stat().st_size for file in files))


def remove_store(folder: str | Path) -> StoreFacts:
    """Remove a store, and nothing else that lies in its folder; return what it held.

    Raises:
        UsageError: there is none, a training prepares cases in it, or it cannot be removed.
    """
    held, root = store_facts(folder), _require_store(folder)
    hint = "wait until it ends; a training that has begun reads from the store to its end"
    try:
        with locked(root, UsageError("a training prepares cases of this store", path=root, hint=hint)):
            for part in (CASES, SEEN):
                for file in [*(root / part).glob("*"), *(root / part).glob(".*.partial")]:
                    file.unlink(missing_ok=True)
                with suppress(FileNotFoundError):
                    (root / part).rmdir()
            (root / MARK).unlink()
            (root / LOCK).unlink()
        with suppress(OSError):  # something else lies in it
            root.rmdir()
    except OSError as error:
        raise cannot_write(error.filename or root, error) from error
    return held


def _state(path: Path) -> dict[str, int]:
    facts = path.stat()
    return {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "ctime_ns": facts.st_ctime_ns}


def _is_store(folder: Path) -> bool:
    if not (folder / MARK).is_file():
        return False
    mark = read_json(folder / MARK, "mark of a store")
    if not isinstance(mark, dict) or mark.get("format") != FORMAT:
        raise UsageError(
            "the store is of another version",
            path=folder,
            found=f"format {mark.get('format') if isinstance(mark, dict) else mark!r:.50}",
            expected=f"format {FORMAT}",
            hint="name another folder with --store",
        )
    return True


def _require_store(folder: str | Path) -> Path:
    root = Path(folder).absolute()
    if not (root / MARK).is_file():
        raise UsageError("no store of prepared cases there", path=root, hint="check the path")
    return root
