"""Which series may be of one patient though their headers do not say so: said, for a split would tear them apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from segpipe.common.console import some_of
from segpipe.dicom import Patient


def doubts(patients: Mapping[str, Patient]) -> tuple[str, ...]:
    """Return what is to be said of patients who are told apart by what a header lacks.

    Args:
        patients: case id to whom its series is of.
    """
    nobody = [id for id, patient in patients.items() if not patient.number]
    of_number: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for id, patient in patients.items():
        if patient.number:
            of_number[patient.number][patient.issuer].append(id)
    twice = [ids for issuers in of_number.values() if "" in issuers and len(issuers) > 1 for ids in issuers.values()]
    said = []
    if nobody:
        said.append(f"without PatientID, so each study counts as a patient: {some_of(nobody)}")
    if twice:
        said.append(
            "the same PatientID with and without IssuerOfPatientID counts as several patients: "
            f"{some_of(id for ids in twice for id in ids)}; where it is one, let all headers have the issuer, or none"
        )
    return tuple(said)
