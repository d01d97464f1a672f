"""What is known of who and how a case was scanned, where it is: as a manifest has it, and as a header says it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

OLDEST = 90.0  # years; who is older counts as this, since so few are


class Covariates(BaseModel):
    """Of a case; what is not known is left out.

    >>> from segpipe.data import Covariates
    >>> Covariates(age_years=93, sex="F").known
    {'age_years': 90.0, 'sex': 'F'}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    age_years: float | None = Field(None, ge=0, le=130, description="At the scan; whoever is above 90 counts as 90.")
    sex: Literal["F", "M", "O"] | None = Field(None, description="As DICOM has it.")
    maker: str | None = Field(None, min_length=1, max_length=64, description="Of the scanner, e.g. SIEMENS.")
    field_strength_t: float | None = Field(None, gt=0, le=25, description="Of an MR scanner, in tesla.")
    kernel: str | None = Field(None, min_length=1, max_length=64, description="Of a CT's reconstruction.")
    contrast_phase: str | None = Field(
        None, min_length=1, max_length=64, description="Such as native or portal venous."
    )
    body_part: str | None = Field(None, min_length=1, max_length=64, description="As DICOM's BodyPartExamined.")
    position: str | None = Field(None, min_length=1, max_length=16, description="As DICOM's PatientPosition, e.g. HFS.")

    @property
    def known(self) -> dict[str, str | float]:
        """Return what is known, words in capitals, so that spelling makes no other population."""
        found: dict[str, str | float] = {}
        for name, value in self.model_dump(exclude_none=True).items():
            found[name] = " ".join(value.upper().split()) if isinstance(value, str) else float(value)
        if "age_years" in found:
            found["age_years"] = min(float(found["age_years"]), OLDEST)
        return found
