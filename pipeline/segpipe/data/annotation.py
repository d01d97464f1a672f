"""Who made a label map and from what: kept with the case, so that nobody measures a model on labels that it drew."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from segpipe.errors import UsageError

PSEUDONYM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_SHA256 = r"^[0-9a-f]{64}$"


class StartBundle(BaseModel):
    """The bundle that drew the label map which somebody corrected."""

    model_config = ConfigDict(extra="forbid")

    name: str
    version: str
    sha256: str = Field(pattern=_SHA256)


class StartMap(BaseModel):
    """The label map that somebody began with."""

    model_config = ConfigDict(extra="forbid")

    of: Literal["prediction", "label"] = Field(description="Drawn by a model, or the label map that the case had.")
    sha256: str | None = Field(None, pattern=_SHA256, description="Of its file; null where nobody knows.")
    bundle: StartBundle | None = Field(None, description="That drew it, where a model did.")


class Annotation(BaseModel):
    """One label map of a case: who made it, when, and what it began with."""

    model_config = ConfigDict(extra="forbid")

    annotator: str = Field(description="A pseudonym; who that is stands elsewhere.")
    date: str = Field(description="When it was taken into the manifest or saved, in UTC.")
    sha256: str = Field(pattern=_SHA256, description="Of the file that came back.")
    start: StartMap | None = Field(None, description="Null where it was drawn from scratch.")
    changed_voxels: int | None = Field(None, ge=0, description="That differ from the start map, where it is there.")
    minutes: float | None = Field(None, ge=0, description="That it took in all sessions, where somebody counted.")

    @field_validator("annotator")
    @classmethod
    def _pseudonym(cls, value: str) -> str:
        if not PSEUDONYM.match(value):
            raise ValueError(f"annotator {value!r}: letters, digits, '.', '_' and '-', no name of a person")
        return value


def checked_annotator(name: str | None) -> str:
    """Return who annotates.

    Raises:
        UsageError: nobody is named, or not by a word that can be a pseudonym.
    """
    if name is None or not PSEUDONYM.match(name):
        raise UsageError(
            "who made the corrections?" if name is None else "not a pseudonym",
            found=name and f"{len(name)} characters",
            expected="up to 64 letters, digits, '.', '_' and '-', such as reader-2",
            hint="--annotator reader-2; keep the list of who that is elsewhere",
        )
    return name
