"""What was decided on a case, as its ``result.json`` and its DICOM results say it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.common.files import sha256_of
from segpipe.quality.assessment import Assessment
from segpipe.quality.decisions import HOLD, QUALITY, REASONS, Decision, Rules, decide

if TYPE_CHECKING:
    from segpipe.dicom import Judgement

NOT_ASSESSED = "the quality model said nothing of the case"


@dataclass(frozen=True)
class Judged:
    """What was decided on a case.

    Attributes:
        assessment: that it was decided from; None where the bundle has no quality model, or it said nothing.
        decision: with its reasons.
        rules: that decided.
    """

    assessment: Assessment | None
    decision: Decision
    rules: Rules

    @classmethod
    def of(
        cls,
        quality: Mapping[str, Any] | Assessment | None,
        flags: Mapping[str, Any],
        rules: Rules,
        root: str | Path | None = None,
    ) -> Judged:
        """Decide on a case.

        Args:
            quality: what the quality model says of it, or None.
            flags: of the result.
            rules: that decide.
            root: of the bundle, which may have a quality model.

        Raises:
            DataError: what is said of its quality cannot be.
        """
        if quality is not None and not isinstance(quality, Assessment):
            quality = Assessment.from_dict(quality)
        has_model = root is not None and (Path(root) / QUALITY).is_file()
        return cls(quality, decide(quality, flags, rules, has_model), rules)

    @property
    def is_held(self) -> bool:
        """Whether its DICOM results go nowhere."""
        return self.decision.decision == HOLD

    def as_result(self) -> dict[str, Any]:
        """Return what ``result.json`` says of it: whatever was measured, so that other rules can decide anew."""
        return {
            "decision": self.decision.decision,
            "reasons": list(self.decision.reasons),
            "quality": None if self.assessment is None else self.assessment.as_dict(),
            "rules": None if self.decision.decision is None else self.rules.as_dict(),
        }

    def judgement(self, root: str | Path) -> Judgement | None:
        """Return what DICOM says of it; None where nothing was judged.

        Args:
            root: of the bundle, whose quality model is named by its hash.
        """
        if self.decision.decision is None:
            return None
        from segpipe.dicom import Judgement

        assessment = self.assessment or Assessment(patients=0, no_interval=NOT_ASSESSED)
        shown = assessment.without_bounds() if self.is_held else assessment
        model = Path(root) / QUALITY
        return Judgement(
            decision=self.decision.decision,
            reasons=tuple(
                (kind, REASONS[kind], words)
                for kind, words in zip(self.decision.kinds, self.decision.reasons, strict=True)
            ),
            findings=shown.findings,
            patients=shown.patients,
            patients_known=shown.patients_known,
            p_value=shown.p_value,
            distance=shown.distance,
            dice=shown.dice,
            dice_low=shown.dice_low,
            volume_ml=shown.volume_ml,
            level=shown.level,
            no_interval=shown.no_interval,
            rules=json.dumps(self.rules.as_dict(), sort_keys=True),
            model_sha256=sha256_of(model) if model.is_file() else "",
        )
