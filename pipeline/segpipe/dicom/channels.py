"""Series that are channels of one case: of one study and one frame of reference, each told by a rule.

The first channel gives the grid, and with it the place of labels and results; the others are resampled to it when they
are read. A series in another frame of reference is joined only where a registration object says, by a rigid matrix, how
the two lie to each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from segpipe.common.resampling import note_on
from segpipe.dicom.model import Registration, Series
from segpipe.dicom.pet_units import in_unit
from segpipe.dicom.registration import RegistrationObject, find_registration, registration_note
from segpipe.errors import DataError, UsageError

MODALITY_OF = {"CT": "CT", "PET": "PT", "PT": "PT", "MR": "MR", "MRI": "MR"}  # a channel's word to DICOM's
EXPECTED = "CT, PET, MR, or NAME=MODALITY or NAME=MODALITY:PATTERN, e.g. T2=MR:t2_tse"
ELSEWHERE = "Resample it with a tool for registration, and import NIfTI files with --registered"


@dataclass(frozen=True)
class ChannelRule:
    """Which series is a channel: of a modality, and with a description that a pattern is found in, if there is one."""

    name: str
    modality: str
    description: re.Pattern[str] | None = None

    def fits(self, series: Series) -> bool:
        """Return whether a series may be this channel."""
        found = self.description is None or self.description.search(series.description)
        return series.modality == self.modality and bool(found)


@dataclass(frozen=True)
class JoinedSeries:
    """The series of a tree as cases of several channels.

    Attributes:
        cases: the first channel of each with the others as its ``further``; refused where one is missing, or may be
            several, or is refused itself.
        others: what is no part of a case.
    """

    cases: list[Series] = field(default_factory=list)
    others: list[Series] = field(default_factory=list)


def parse_channels(words: Sequence[str]) -> tuple[ChannelRule, ...]:
    """Read the rules of channels: ``CT``, ``PET``, or ``T2=MR:t2_tse``.

    >>> [(rule.name, rule.modality) for rule in parse_channels(["CT", "PET"])]
    [('CT', 'CT'), ('PET', 'PT')]

    Raises:
        UsageError: a word that is none, or a name that stands twice.
    """
    rules: list[ChannelRule] = []
    for word in words:
        name, _, rest = word.partition("=")
        modality, _, pattern = (rest or name).partition(":")
        known = MODALITY_OF.get(modality.strip().upper())
        if not name.strip() or known is None:
            raise UsageError("no such channel", found=word, expected=EXPECTED)
        if name.strip() in [rule.name for rule in rules]:
            raise UsageError("a channel stands twice", found=name, expected="a name for each: T1=MR:t1, T2=MR:t2")
        try:
            compiled = re.compile(pattern, re.IGNORECASE) if pattern else None
        except re.error as error:
            raise UsageError("not a regular expression", found=pattern, expected=f"a pattern ({error})") from error
        rules.append(ChannelRule(name.strip(), known, compiled))
    return tuple(rules)


def channels_by_name(names: Sequence[str]) -> tuple[ChannelRule, ...] | None:
    """Return the rules that the names of a bundle's channels are, None where one says no modality."""
    if names and all(name.upper() in MODALITY_OF for name in names):
        return tuple(ChannelRule(name, MODALITY_OF[name.upper()]) for name in names)
    return None


def join_channels(
    series: Sequence[Series],
    rules: Sequence[ChannelRule],
    units: Mapping[str, str | None] | None = None,
    registrations: Sequence[RegistrationObject] = (),
) -> JoinedSeries:
    """Join series to cases of several channels.

    Args:
        series: of a tree.
        rules: one a channel, in the order of the channels.
        units: by the name of a channel, the unit that its values are to be in; see `segpipe.dicom.in_unit`.
        registrations: objects of the tree, by which a channel may lie in another frame of reference.
    """
    joined = JoinedSeries()
    taken: set[int] = set()
    for first in series:
        if id(first) in taken or not _candidates(rules[0], [first]):
            continue
        beside = [other for other in series if other.study_uid == first.study_uid and other.study_uid]
        here = [other for other in beside if other.frame_of_reference_uid == first.frame_of_reference_uid != ""]
        here = here or [first]
        firsts = _candidates(rules[0], here)
        if not any(first is member for member in firsts):  # computed from what is there as well
            continue
        ways: list[Registration | None] = []
        further, fault = [], _several(rules[0], firsts) if len(firsts) > 1 else ""
        for rule in rules[1:]:
            members = [other for other in _candidates(rule, here) if other not in firsts]
            elsewhere = [] if members else [other for other in _candidates(rule, beside) if other not in firsts]
            moved = {id(other): find_registration(registrations, other, first) for other in elsewhere}
            members = members or [other for other in elsewhere if moved[id(other)][0]]
            further += members
            ways += [moved.get(id(member), (None, ""))[0] for member in members]
            if not fault and len(members) != 1:
                why = next((why for _, why in moved.values()), "")
                fault = _several(rule, members) if members else _missing(rule, elsewhere, why)
        members = [*firsts, *further]
        if len({id(member) for member in members}) != len(members) and not fault:
            fault = "one series fits several channels; tell them apart with --channel NAME=MODALITY:PATTERN"
        taken |= {id(member) for member in members}
        further = [replace(one, registration=way) for one, way in zip(further, ways, strict=True)]
        if not fault and units:
            first, *further = (
                in_unit(member, units.get(rule.name)) for rule, member in zip(rules, [first, *further], strict=True)
            )
        joined.cases.append(_refused(first, fault) if fault else _case(first, further, rules))
    joined.others.extend(one for one in series if id(one) not in taken)
    return joined


def _candidates(rule: ChannelRule, series: Sequence[Series]) -> list[Series]:
    """Return which of some series may be a channel: no scout or picture, nothing computed beside originals.

    A rule with a pattern goes by that, whatever was computed.
    """
    fitting = [
        one
        for one in series
        if rule.fits(one) and not (one.is_picture or one.reason == "single_slice" or "localizer" in one.derived)
    ]
    return fitting if rule.description else [one for one in fitting if not one.derived] or fitting


def _several(rule: ChannelRule, members: Sequence[Series]) -> str:
    ids = ", ".join(member.case_id for member in members)
    return (
        f"{len(members)} series of its study and frame of reference may be the channel {rule.name}: {ids}; expected "
        f"one. Name those to take with --series, or tell them apart with --channel {rule.name}={rule.modality}:PATTERN"
    )


def _missing(rule: ChannelRule, elsewhere: Sequence[Series], why: str) -> str:
    if elsewhere:
        return (
            f"the channel {rule.name} ({elsewhere[0].case_id}) lies in another frame of reference, expected the same, "
            f"or a rigid registration object (REG) of both: {why}. {ELSEWHERE}"
        )
    return (
        f"its study has no channel {rule.name} ({rule.modality}) that is taken, expected one in its frame of reference"
    )


def _refused(first: Series, detail: str) -> Series:
    return replace(first, state="refused", reason="channels", detail=f"{detail}.")


def _case(first: Series, further: Sequence[Series], rules: Sequence[ChannelRule]) -> Series:
    """Return the case of several channels, or the first channel refused for one of the others."""
    if first.state == "refused":
        return first
    notes = list(first.notes)
    for rule, member in zip(rules[1:], further, strict=True):
        if member.state == "refused":
            words = f"its channel {rule.name} is refused: {member.detail}"
            return replace(first, state="refused", reason=member.reason, detail=words)
        notes += [f"channel {rule.name}: {note}" for note in member.notes]
        if member.registration:
            notes.append(f"channel {rule.name} {registration_note(member.registration, member)}")
        try:
            notes += filter(None, [channel_note(rule.name, first, member)])
        except DataError as error:
            return _refused(first, f"{error.message}: {error.found}")
    return replace(first, further=tuple(further), notes=tuple(notes))


def channel_note(name: str, first: Series, member: Series) -> str:
    """Say what a channel lacks on the grid of the first one, empty where nothing.

    Raises:
        DataError: it does not cover any of it.
    """
    if member.affine_ras is None or member.shape is None or first.affine_ras is None or first.shape is None:
        raise DataError("the series is no volume", case_id=first.case_id)
    return note_on(f"channel {name}", member.shape, member.placed(member.affine_ras), first.shape, first.affine_ras)
