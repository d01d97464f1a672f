"""Content of a report on quality: the decision on a case, its reasons, and what was expected of its labels.

The decision and its reasons are codes of a scheme of our own, which a report names; no standard has codes for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import highdicom as hd
from pydicom.dataset import Dataset

from segpipe import __version__
from segpipe.dicom.codes import Term
from segpipe.dicom.write.judgement import Judgement
from segpipe.dicom.write.stored_object import as_code, uid_of

SCHEME = "99SEGPIPE"
DECISIONS: dict[str, str] = {
    "ok": "No remark",
    "look": "To be looked at",
    "hold": "Held",
    "released": "Released by a person",
}
DECISION = Term("decision", SCHEME, "Decision on an automatic result")
REASON = Term("reason", SCHEME, "Reason of the decision")
FINDING = Term("finding", SCHEME, "What is unusual, in words")
NO_INTERVAL = Term("no_interval", SCHEME, "Why bounds and intervals are not given")
VOLUME = Term("118565006", "SCT", "Volume")
DICE = Term("dice", SCHEME, "Predicted Dice coefficient")
DISTANCE = Term("distance", SCHEME, "Distance from the calibration cases")
P_VALUE = Term("p_value", SCHEME, "Share of calibration patients as far")
LEVEL = Term("level", SCHEME, "Coverage of bounds and intervals")
PATIENTS = Term("patients", SCHEME, "Calibration patients")
RATIO = Term("{ratio}", "UCUM", "ratio")
NUMBER = Term("1", "UCUM", "no units")
PERCENT = Term("%", "UCUM", "Percent")
COUNT = Term("{patients}", "UCUM", "patients")
CASES = Term("cases", SCHEME, "Calibration cases, patients unknown")
COUNT_OF_CASES = Term("{cases}", "UCUM", "cases")


def measured_volume(label: str, volume_ml: float, unit: Term, judgement: Judgement | None) -> hd.sr.Measurement:
    """Return a volume, with the uncertainty to either side (TID 310) where there is an interval around it."""
    up = down = None
    interval = judgement.volume_ml.get(label) if judgement else None
    if interval is not None and interval[0] <= volume_ml <= interval[1]:
        up, down = _short(interval[1] - volume_ml), _short(volume_ml - interval[0])
    return _measurement(VOLUME, volume_ml, unit, up, down)


def interval_in_words(label: str, volume_ml: float, judgement: Judgement) -> str | None:
    """Say an interval that does not hold the measured volume, which uncertainties cannot; None for any other."""
    low, high = judgement.volume_ml.get(label, (volume_ml, volume_ml))
    if low <= volume_ml <= high:
        return None
    return f"the volume of {label} is expected between {low:.4g} and {high:.4g} mL, {volume_ml:.4g} mL were measured"


def predicted_dice(label: str, judgement: Judgement | None) -> list[hd.sr.Measurement]:
    """Return the Dice that is predicted of a label, with how far its lower bound lies below; nothing where none is."""
    if judgement is None or label not in judgement.dice:
        return []
    dice = judgement.dice[label]
    bound = judgement.dice_low.get(label)
    down = _short(dice - bound) if bound is not None and bound <= dice else None
    return [_measurement(DICE, _short(dice), RATIO, None, down)]


def _measurement(name: Term, value: float, unit: Term, up: float | None, down: float | None) -> hd.sr.Measurement:
    properties = None
    if up is not None or down is not None:
        properties = hd.sr.MeasurementProperties(upper_measurement_uncertainty=up, lower_measurement_uncertainty=down)
        for item in properties:  # the library gives them no unit, whatever is measured
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence = [_item(unit)]
    return hd.sr.Measurement(name=as_code(name), value=value, unit=as_code(unit), properties=properties)


def quality_group(
    judgement: Judgement, segmentation_uid: str, more_findings: Sequence[str] = ()
) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    """Return what is said of the case as a whole: a group of TID 1501 with the decision and its reasons."""
    numbers = [
        (DISTANCE, judgement.distance, NUMBER),
        (P_VALUE, judgement.p_value, RATIO),
        (PATIENTS, judgement.patients, COUNT)
        if judgement.patients_known
        else (CASES, judgement.patients, COUNT_OF_CASES),
    ]
    if judgement.no_interval is None:
        numbers.append((LEVEL, 100 * judgement.level, PERCENT))
    evaluations = [_coded(DECISION, Term(judgement.decision, SCHEME, DECISIONS[judgement.decision]))]
    evaluations += [_coded(REASON, Term(kind, SCHEME, meaning)) for kind, meaning, _ in judgement.reasons]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=uid_of("quality", segmentation_uid, judgement), identifier="quality of the segmentation"
        ),
        algorithm_id=hd.sr.AlgorithmIdentification(
            name="segpipe quality",
            version=__version__,
            parameters=[f"rules={judgement.rules}", f"quality_model_sha256={judgement.model_sha256}"],
        ),
        measurements=[
            hd.sr.Measurement(name=as_code(name), value=_short(value), unit=as_code(unit))
            for name, value, unit in numbers
            if value is not None
        ],
        qualitative_evaluations=evaluations,
    )
    texts = [(REASON, words) for _, _, words in judgement.reasons]
    texts += [(FINDING, words) for words in (*judgement.findings, *more_findings)]
    texts += [(NO_INTERVAL, judgement.no_interval)] if judgement.no_interval else []
    for name, words in texts:
        group[0].ContentSequence.append(text_item(name, words))
    return group


def text_item(name: Term, words: str) -> hd.sr.TextContentItem:
    """Return a qualitative evaluation in words."""
    contains = hd.sr.RelationshipTypeValues.CONTAINS
    return hd.sr.TextContentItem(name=as_code(name), value=words, relationship_type=contains)


def name_scheme(report: Any) -> None:
    """Say in a report whose codes ours are (PS3.3 C.12.1.1.7)."""
    item = Dataset()
    item.CodingSchemeDesignator = SCHEME
    item.CodingSchemeName = "segpipe: decisions on automatic results"
    item.CodingSchemeResponsibleOrganization = "segpipe"
    report.CodingSchemeIdentificationSequence = [item]


def _coded(name: Term, value: Term) -> hd.sr.QualitativeEvaluation:
    return hd.sr.QualitativeEvaluation(name=as_code(name), value=as_code(value))


def _item(term: Term) -> Any:
    return hd.sr.CodedConcept(term.value, term.scheme, term.meaning)


def _short(value: float) -> float:
    return round(float(value), 6)
