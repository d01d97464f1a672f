"""What a result folder says of its cases, checked: its files may come from elsewhere, or have been changed by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from segpipe.common.files import read_json
from segpipe.common.result_folder import MAPPING, read_lines
from segpipe.errors import DataError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Record = TypeVar("Record", bound=BaseModel)


class BundleRecord(BaseModel):
    """The bundle that drew a label map, as far as the result says it."""

    name: str | None = None
    version: str | None = None
    sha256: Sha256 | None = None


class QualityRecord(BaseModel):
    """What a quality model said: the Dice of each label, null where it could not tell."""

    dice: dict[str, float | None] | None = None


class ResultRecord(BaseModel):
    """``result.json`` of a case, as far as others than `predict` read it."""

    bundle: BundleRecord | None = None
    labels: dict[str, int] | None = None
    regions: int | None = None
    sha256: dict[str, Sha256] | None = None
    source_sha256: list[Sha256] | None = None
    quality: QualityRecord | None = None
    decision: str | None = None
    released: Any = None


class _MappedCase(BaseModel):
    id: str
    paths: list[str] = []


def read_result(path: Path) -> ResultRecord:
    """Read ``result.json`` of a case.

    Raises:
        DataError: it is none; the error names the file and the field.
    """
    return checked(ResultRecord, read_json(path, "result"), path)


def read_sources(root: Path) -> dict[str, tuple[Path, ...]]:
    """Return the files of each case of a result folder, by ``mapping.jsonl``; none where it is not there.

    Raises:
        DataError: a line is none of ours.
    """
    lines = [
        checked(_MappedCase, line, root / MAPPING)
        for line in _documents(root / MAPPING)
        if "refused" not in line and "id" in line
    ]
    return {line.id: tuple(map(Path, line.paths)) for line in lines}


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read a file of JSON lines, none where it is not there.

    Raises:
        DataError: a line is JSON, but no such record.
    """
    return [checked(kind, line, path) for line in _documents(path)]


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    return (line for line in read_lines(path) if isinstance(line, dict))


def checked(kind: type[Record], document: Any, path: Path) -> Record:
    """Return a document as a record.

    Raises:
        DataError: it is none; the error says which field, and not what stands in it.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise DataError(
            "not as `segpipe` writes it",
            path=path,
            found=f"{field}: {first['msg']}",
            hint="mend the file, or take it from where it was made",
        ) from None
