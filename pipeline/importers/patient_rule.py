"""Who a case is of, told from its id where the data set does not say.

none            nothing is known: every case stands for itself
pairs           cases 2k-1 and 2k are of one patient: number n in the id gives patient (n + 1) // 2
regex:PATTERN   the one group of the pattern, searched for in the id, is the patient
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pipeline.errors import DataError, UsageError

PatientOf = Callable[[str], str | None]


def patient_rule(rule: str) -> PatientOf:
    """The function from case id to patient id that a rule stands for.

    Raises:
        UsageError: no such rule, or a pattern that is not one with exactly one group.
    """
    if rule == "none":
        return lambda _case_id: None
    if rule == "pairs":
        return _pair
    if rule.startswith("regex:"):
        return _matcher(rule.removeprefix("regex:"))
    raise UsageError("no such patient rule", found=rule, expected="pairs, regex:PATTERN or none")


def _pair(case_id: str) -> str:
    numbers = re.findall(r"\d+", case_id)
    if len(numbers) != 1 or int(numbers[0]) < 1:
        raise DataError(
            "the patient rule `pairs` cannot be applied", case_id=case_id, found=f"numbers {numbers}",
            expected="exactly one number of at least 1 in the id",
            hint="use --patient-rule regex:PATTERN or none",
        )  # fmt: skip
    return f"P{(int(numbers[0]) + 1) // 2:03d}"


def _matcher(pattern: str) -> PatientOf:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            "the patient rule's pattern cannot be read", found=f"{pattern!r}: {error}"
        ) from error
    if compiled.groups != 1:
        raise UsageError(
            "the patient rule's pattern needs exactly one group", found=f"{pattern!r} with {compiled.groups}",
            expected=r"e.g. regex:^(sub-\d+)_",
        )  # fmt: skip

    def match(case_id: str) -> str:
        found = compiled.search(case_id)
        if found is None or not found.group(1):
            raise DataError("the patient rule does not match the id", case_id=case_id, expected=pattern)
        return found.group(1)

    return match
