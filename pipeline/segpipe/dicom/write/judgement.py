"""What DICOM results say of the quality of a case, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segpipe.dicom.write.stored_object import LONG_STRING


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What is said of a case; all of it enters the UIDs of its results.

    Attributes:
        decision: ``ok``, ``look`` or ``hold``.
        reasons: of each its code, what that means, and the words of this case.
        findings: what is unusual, in words.
        patients: calibration patients; where these are unknown, calibration cases.
        patients_known: which of both; the hash of the quality model tells it, so UIDs need not.
        p_value, distance: of the case among the calibration cases, where they are known.
        dice: predicted, by label; ``dice_low`` its lower bound.
        volume_ml: interval of the true volume, by label.
        level: of bounds and intervals, a share.
        no_interval: why these are not given; None where they are.
        rules: what decided, as JSON.
        model_sha256: names the content of the quality model.
    """

    decision: str
    reasons: tuple[tuple[str, str, str], ...] = ()
    findings: tuple[str, ...] = ()
    patients: int = 0
    patients_known: bool = field(default=True, repr=False)
    p_value: float | None = None
    distance: float | None = None
    dice: Mapping[str, float] = field(default_factory=dict)
    dice_low: Mapping[str, float] = field(default_factory=dict)
    volume_ml: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    level: float = 0.9
    no_interval: str | None = None
    rules: str = ""
    model_sha256: str = ""

    def in_a_line(self) -> str:
        """Say the decision where one value has to say it all."""
        return f"Decision {self.decision}; automatic, not verified, not for diagnosis"[:LONG_STRING]

    def in_words(self) -> str:
        """Say the decision and its reasons, as far as 1024 characters go."""
        return "; ".join([self.in_a_line(), *(words for _, _, words in self.reasons)])[:1024]
