"""From an assessment to a decision: `ok`, `look` or `hold`, with its reasons in words, by rules that a site can set.

A decision says whether a person has to look at a result before it goes further; it verifies nothing clinically.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from segpipe.common.console import of_patients
from segpipe.common.files import read_json, read_yaml
from segpipe.errors import DataError, UsageError
from segpipe.quality.assessment import Assessment, least_p_value

OK: Literal["ok"] = "ok"
LOOK: Literal["look"] = "look"
HOLD: Literal["hold"] = "hold"
QUALITY = "configs/quality.json"  # of a bundle
NO_QUALITY_MODEL = "not judged: the bundle has no quality model"
REASONS = {  # name of a rule, of at most 16 characters as a code value of DICOM has, to its meaning
    "empty": "All labels are empty",
    "far": "Far from the calibration cases",
    "low_dice": "Low predicted Dice",
    "unusual": "Unusual among the calibration patients",
    "absent": "A label is empty that no calibration case was without",
    "far_spacing": "Spacing far from the training data",
    "no_orientation": "The image does not say which side is which",
    "population": "Outside of the calibration patients",
    "no_distance": "Distance from the calibration cases unknown",
    "not_assessed": "The quality model could not judge it",
}
RANGES = {
    "hold_distance": (0.0, math.inf),
    "hold_dice": (0.0, 1.0),
    "look_p_value": (0.0, 1.0),
    "look_dice": (0.0, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is held and what is to be looked at; None for a rule that is not to be used.

    >>> from segpipe.quality import Rules
    >>> Rules.parse({"hold_dice": 0.6}, "rules.yaml").hold_dice
    0.6

    Attributes:
        hold_distance: held at this distance or farther.
        hold_dice: held where the predicted Dice of a label is below.
        hold_empty: held where every label is empty.
        look_p_value: to be looked at with this p-value or a smaller one, or farther than every calibration patient.
        look_dice: to be looked at where the predicted Dice of a label is below.
        look_absent: to be looked at where a label is empty that no calibration case was without.
        look_far_spacing: to be looked at where the spacing is far from that of the training cases.
        look_orientation_unknown: to be looked at where the image does not say which side is which.
        look_population: to be looked at where age, sex or scanner are known and none of the calibration patients'.
    """

    hold_distance: float | None = 2.0
    hold_dice: float | None = 0.5
    hold_empty: bool = True
    look_p_value: float | None = 0.03
    look_dice: float | None = 0.7
    look_absent: bool = True
    look_far_spacing: bool = True
    look_orientation_unknown: bool = True
    look_population: bool = True

    @classmethod
    def parse(cls, document: Any, path: str | Path | None = None, before: Rules | None = None) -> Rules:
        """Judge rules as a document has them.

        Args:
            document: a mapping of the attributes; None for an empty one.
            path: of the file, for errors.
            before: the rules that hold where the document says nothing; None for the defaults.

        Raises:
            UsageError: no mapping, an unknown key, or a value of another type or out of range.
        """
        rules = before or cls()
        if document is None:
            return rules
        if not isinstance(document, Mapping):
            raise UsageError("these are no rules", path=path, found=type(document).__name__, expected="key: value")
        known = [part.name for part in fields(cls)]
        for key, value in document.items():
            if key not in known:
                raise UsageError("there is no such rule", path=path, found=repr(key), expected=", ".join(known))
            _require_fits(key, value, path)
        values: dict[str, Any] = {key: float(value) if type(value) is int else value for key, value in document.items()}
        return replace(rules, **values)

    def as_dict(self) -> dict[str, Any]:
        """Return them as plain JSON has them."""
        return asdict(self)


def _require_fits(key: str, value: Any, path: str | Path | None) -> None:
    if key not in RANGES:
        if not isinstance(value, bool):
            raise UsageError(f"{key} is a switch", path=path, found=repr(value), expected="true or false")
        return
    low, high = RANGES[key]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if value is not None and not (is_number and low <= value <= high):
        span = f"a number of {low:g} or more" if high == math.inf else f"a number from {low:g} to {high:g}"
        hint = "null switches the rule off"
        raise UsageError(f"{key} is not so", path=path, found=repr(value), expected=span, hint=hint)


def read_rules(path: str | Path, before: Rules | None = None) -> Rules:
    """Read the rules of a site from YAML or JSON; what the file does not name stays as it is.

    Raises:
        UsageError: no such file, or as `Rules.parse`.
        DataError: it is not YAML.
    """
    return Rules.parse(read_yaml(path, "file of rules"), path, before)


def shipped_rules(root: Path) -> Rules:
    """Return the rules that come with a bundle's quality model (``rules`` of its ``configs/quality.json``), else ours.

    Raises:
        DataError: they are none, or the file is not JSON.
    """
    path = root / QUALITY
    if not path.is_file():
        return Rules()
    document = read_json(path, "quality model")
    try:
        return Rules.parse(document.get("rules") if isinstance(document, Mapping) else document, path)
    except UsageError as error:
        hint = "get the bundle again"
        raise DataError(error.message, path=path, found=error.found, expected=error.expected, hint=hint) from error


@dataclass(frozen=True)
class Decision:
    """What is to be done with a result.

    Attributes:
        decision: ``ok``, ``look`` or ``hold``; None where nothing was judged.
        reasons: in words, those to hold first; why nothing was judged where it was not.
        kinds: of each reason the name of its rule, of `REASONS`; empty where nothing was judged.
    """

    decision: Literal["ok", "look", "hold"] | None
    reasons: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


def decide(assessment: Assessment | None, flags: Mapping[str, Any], rules: Rules, has_model: bool = False) -> Decision:
    """Decide on a result.

    >>> from segpipe.quality import Assessment, Rules, decide
    >>> decide(Assessment(patients=96, p_value=0.4, distance=0.6, dice={"liver": 0.41}), {}, Rules()).reasons
    ('predicted Dice of liver 0.41, below 0.5',)

    Args:
        assessment: of the quality model; None where the bundle has none, or it could not judge the case.
        flags: of the result: ``empty``, ``far_spacing``, ``orientation_unknown``.
        rules: that decide.
        has_model: whether the bundle has a quality model: where it said nothing of the case, a person has to look.
    """
    if assessment is None and has_model:
        return Decision(LOOK, ("not judged: the bundle's quality model said nothing of it",), ("not_assessed",))
    if assessment is None:
        return Decision(None, (NO_QUALITY_MODEL,))
    hold = list(_to_hold(assessment, flags, rules))
    look = list(_to_look(assessment, flags, rules))
    found = hold + look
    decision = HOLD if hold else LOOK if look else OK
    return Decision(decision, tuple(words for _, words in found), tuple(kind for kind, _ in found))


def _to_hold(assessment: Assessment, flags: Mapping[str, Any], rules: Rules) -> Iterator[tuple[str, str]]:
    """Yield the kind of each reason, and its words."""
    is_known = assessment.distance is not None
    distance = assessment.distance if is_known else max(assessment.groups.values(), default=None)
    if rules.hold_empty and flags.get("empty"):
        yield "empty", "all labels are empty"
    if rules.hold_distance is not None and distance is not None and distance >= rules.hold_distance:
        most = f": {assessment.findings[0]}" if assessment.findings else ""
        held = f"1 is their 95th percentile, from {rules.hold_distance:g} on it is held"
        shown = f"{'' if is_known else 'at least '}{distance:.3g}"
        yield "far", f"far from the calibration cases, distance {shown} ({held}){most}"
    if rules.hold_dice is not None:
        yield from _low_dice(assessment, -math.inf, rules.hold_dice)


def _to_look(assessment: Assessment, flags: Mapping[str, Any], rules: Rules) -> Iterator[tuple[str, str]]:
    p_value, least = assessment.p_value, least_p_value(assessment.patients)
    if rules.look_p_value is not None and p_value is not None and p_value <= max(rules.look_p_value, least):
        is_so = p_value <= rules.look_p_value
        looked_at = f"up to {rules.look_p_value:g} it is to be looked at" if is_so else "farther than each of them"
        among = of_patients(assessment.patients, assessment.patients_known, "calibration ")
        yield "unusual", f"unusual among {among}, p = {p_value:.2g} ({looked_at})"
    if rules.look_dice is not None:
        yield from _low_dice(assessment, -math.inf if rules.hold_dice is None else rules.hold_dice, rules.look_dice)
    if rules.look_absent and not flags.get("empty"):
        words = "is empty, as in no calibration case: absent or missed"
        yield from (("absent", f"{label} {words}") for label in assessment.absent)
    if rules.look_far_spacing and flags.get("far_spacing") == "yes":
        yield "far_spacing", "spacing far from the training data"
    if rules.look_orientation_unknown and flags.get("orientation_unknown"):
        yield "no_orientation", "the image does not say which side is which"
    if rules.look_population:
        yield from (("population", f"outside of the calibration patients by {words}") for words in assessment.outside)
    if assessment.distance is None:  # not to be taken for near
        yield "no_distance", "how far it is from the calibration cases could not be measured"


def _low_dice(assessment: Assessment, low: float, high: float) -> Iterator[tuple[str, str]]:
    for label, dice in assessment.dice.items():
        if low <= dice < high:
            shown = math.floor(1000 * dice) / 1000  # never rounded up to what it is below
            yield "low_dice", f"predicted Dice of {label} {shown:g}, below {high:g}"
