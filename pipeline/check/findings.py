"""What can be wrong with a data set, each kind with its severity."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning"]

KINDS: dict[str, Severity] = {
    "missing_file": "error",
    "unreadable_file": "error",
    "hash_differs": "error",
    "refused_series": "error",
    "not_a_volume": "error",
    "wrong_channels": "error",
    "channel_geometry_differs": "error",
    "label_geometry_differs": "error",
    "not_finite": "error",
    "constant_image": "error",
    "fractional_label": "error",
    "unknown_label": "error",
    "empty_label": "warning",
    "identical_image": "error",
    "identical_label": "warning",
    "patient_in_two_splits": "error",
    "patient_with_unlabelled_test": "warning",
    "outlying_spacing": "warning",
    "outlying_orientation": "warning",
    "single_slice": "warning",
    "series_note": "warning",
    "no_air": "warning",
    "undeclared_padding": "warning",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or looks wrong, with one case.

    Attributes:
        case_id: the case; the first one where several take part.
        kind: a key of `KINDS`.
        found: what is there; never a path.
        expected: what should be there, where that can be said.
        part: ``image``, ``image 0`` (a channel) or ``label``, where it is about one file.
    """

    case_id: str
    kind: str
    found: str
    expected: str | None = None
    part: str | None = None

    @property
    def severity(self) -> Severity:
        """``error`` or ``warning``."""
        return KINDS[self.kind]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"severity": self.severity, **asdict(self)}
