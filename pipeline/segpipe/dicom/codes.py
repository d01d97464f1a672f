"""What a label means, as codes that a PACS understands: SNOMED CT from a bundle's metadata or from ``anatomy.csv``.

A bundle says what its labels are by ``codes`` in its ``metadata.json``: label name to ``category``, ``type`` and,
where there is more to say, ``modifier`` (left, right, anterior; a list where there are several), ``region`` (the organ
of a lesion) and ``colour_rgb``. Codes are ``{"value": ..., "scheme": ..., "meaning": ...}``. What it does not say is
looked up by name: sides and positions become modifiers, also of a name that nobody knows, and the organ that a lesion's
name starts with becomes its region.
"""

from __future__ import annotations

import colorsys
import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from segpipe.errors import DataError

TABLE = Path(__file__).with_name("anatomy.csv")
TERMS = ("category", "type", "region")
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Term:
    """A coded concept: value, coding scheme designator and meaning (DICOM PS3.3 section 8.8)."""

    value: str
    scheme: str
    meaning: str

    def as_dict(self) -> dict[str, str]:
        return {"value": self.value, "scheme": self.scheme, "meaning": self.meaning}


CATEGORIES = {  # CID 7150
    "organ": Term("91723000", "SCT", "Anatomical Structure"),
    "tissue": Term("85756007", "SCT", "Tissue"),
    "substance": Term("91720002", "SCT", "Body Substance"),
    "abnormal": Term("49755003", "SCT", "Morphologically Abnormal Structure"),
}
UNKNOWN = Term("85756007", "SCT", "Tissue")
MODIFIERS = {
    "left": Term("7771000", "SCT", "Left"),
    "right": Term("24028007", "SCT", "Right"),
    "anterior": Term("255549009", "SCT", "Anterior"),
    "posterior": Term("255551008", "SCT", "Posterior"),
}
SIDES = ("left", "right")
SHORT = {"l": "left", "lt": "left", "r": "right", "rt": "right"}
VENTRICLES = {"87878005", "53085002"}  # of the heart; the brain has a left and a right one too
OF_THE_HEART = {"heart", "cardiac", "myocardium", "atrium"}


@dataclass(frozen=True)
class LabelInfo:
    """One label of a label map.

    Attributes:
        value: in the label map, from 1.
        name: what the bundle calls it.
        category: kind of thing (CID 7150).
        type: the thing (CID 7151).
        colour_rgb: 0 to 255.
        modifiers: sides and positions.
        region: the organ in which a lesion lies, None where the name has none.
        stated: False where nobody knows the name, so that the codes are generic.
    """

    value: int
    name: str
    category: Term
    type: Term
    colour_rgb: RGB
    modifiers: tuple[Term, ...] = ()
    region: Term | None = None
    stated: bool = True

    @property
    def side(self) -> Term | None:
        """The side that it lies on; None where there is none, or both."""
        sides = [term for term in self.modifiers if term.meaning.lower() in SIDES]
        return sides[0] if len(sides) == 1 else None

    @property
    def is_anatomy(self) -> bool:
        """Whether it is a normal structure, not a lesion and not something unknown."""
        return self.stated and self.category != CATEGORIES["abnormal"]


@dataclass(frozen=True)
class _Entry:
    term: Term
    category: str
    colour: RGB


def label_infos(
    labels: Mapping[int, str], metadata: Mapping[str, Any] | None = None
) -> tuple[list[LabelInfo], list[str]]:
    """Find the codes and colours of a bundle's labels.

    Args:
        labels: label value to name; 0 is background and passed over.
        metadata: the bundle's ``metadata.json``; its ``codes`` win over the table.

    Returns:
        One entry a label, by rising value, and a note for each label that got generic codes.

    Raises:
        DataError: ``codes`` of the metadata are not as they should be.
    """
    metadata = metadata or {}
    given = metadata.get("codes") or {}
    if not isinstance(given, Mapping):
        raise DataError("codes of the bundle's metadata cannot be read", expected="label name to its codes")
    context = [str(metadata.get("name", "")), *(name for value, name in labels.items() if value)]
    infos: list[LabelInfo] = []
    for value, name in sorted(labels.items()):
        if value == 0:
            continue
        label = _by_name(value, name, context)
        while label.colour_rgb in {info.colour_rgb for info in infos}:  # left and right, anterior and posterior
            red, green, blue = label.colour_rgb
            label = replace(label, colour_rgb=(red * 3 // 4, (green * 3 + 255) // 4, blue * 3 // 4))
        infos.append(_stated(label, given[name]) if name in given else label)
    notes = [
        f"label {info.value} ({info.name}): no code is known for this name; coded as {_meaning(info)}"
        for info in infos
        if not info.stated
    ]
    return infos, notes


def codes_metadata(infos: list[LabelInfo]) -> dict[str, Any]:
    """Return the ``codes`` of a bundle's metadata for the labels whose meaning is known."""
    return {info.name: _as_dict(info) for info in infos if info.stated}


def _as_dict(info: LabelInfo) -> dict[str, Any]:
    known: dict[str, Any] = {key: term.as_dict() for key in TERMS if (term := getattr(info, key)) is not None}
    if info.modifiers:
        terms = [term.as_dict() for term in info.modifiers]
        known["modifier"] = terms[0] if len(terms) == 1 else terms
    return {**known, "colour_rgb": list(info.colour_rgb)}


def _meaning(info: LabelInfo) -> str:
    return ", ".join(term.meaning for term in (info.type, *info.modifiers))


def _stated(info: LabelInfo, stated: Any) -> LabelInfo:
    """Replace what was found by name with what the metadata says of a label."""
    try:
        terms: dict[str, Any] = {key: _term(stated[key]) for key in TERMS if key in stated}
        if "type" in terms:  # the side of the table belongs to the table's type
            info = replace(info, stated=True, modifiers=(), region=None)
        if "modifier" in stated:
            given = stated["modifier"]
            terms["modifiers"] = tuple(map(_term, given if isinstance(given, list) else [given]))
        red, green, blue = (int(part) for part in stated.get("colour_rgb", info.colour_rgb))
        if not all(0 <= part <= 255 for part in (red, green, blue)):
            raise ValueError("a colour outside 0 to 255")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            "codes of the bundle's metadata cannot be read",
            found=f"{info.name}: {error}",
            expected="category, type, modifier, region as value, scheme and meaning; colour_rgb as three numbers",
        ) from error
    return replace(info, **terms, colour_rgb=(red, green, blue))


def _term(entry: Mapping[str, Any]) -> Term:
    term = Term(str(entry["value"]), str(entry["scheme"]), str(entry["meaning"]))
    if not (0 < len(term.value) <= 16 and 0 < len(term.scheme) <= 16 and 0 < len(term.meaning) <= 64):
        raise ValueError("value and scheme have 1 to 16 letters, a meaning up to 64")
    return term


def _by_name(value: int, name: str, context: list[str]) -> LabelInfo:
    words = _words(name)
    if words and all(word in MODIFIERS for word in words):  # "Anterior", of a bundle named after the organ
        words = [word for word in _words(context[0]) if _find([word])][:1] + words
    modifiers = tuple(MODIFIERS[word] for word in dict.fromkeys(words) if word in MODIFIERS)
    bare = [word for word in words if word not in MODIFIERS]
    entry, region = _find(words), None
    if entry is not None and not (entry.term.value in VENTRICLES and _is_of_the_brain_too(context)):
        return LabelInfo(value, name, CATEGORIES[entry.category], entry.term, entry.colour)  # as "left atrium"
    entry = _find(bare)
    if entry is None:
        entry, region = _lesion_of(bare)
    if entry is None or _contradicts(region or entry.term, words):
        of_name = _words(name, at_ends=True)  # the L of "disc_L_5" is no side
        modifiers = tuple(term for word, term in MODIFIERS.items() if word in of_name)
        return LabelInfo(value, name, CATEGORIES["tissue"], UNKNOWN, _distinct(value), modifiers, stated=False)
    return LabelInfo(value, name, CATEGORIES[entry.category], entry.term, entry.colour, modifiers, region)


def _is_of_the_brain_too(context: list[str]) -> bool:
    """Return whether a left or right ventricle may be another than the heart's, by bundle and labels."""
    return not any(word in OF_THE_HEART for name in context for word in _words(name))


def _contradicts(term: Term, words: list[str]) -> bool:
    """Return whether a term is of one side, "Middle lobe of right lung", and the words are of the other."""
    sides = [{side for side in SIDES if side in part} for part in (_words(term.meaning), words)]
    return bool(sides[0] and sides[1] - sides[0])


def _lesion_of(words: list[str]) -> tuple[_Entry | None, Term | None]:
    """Find a lesion and the organ that it lies in: ``liver tumour``, ``colon cancer primaries``."""
    for cut in range(1, len(words)):
        organ, lesion = _find(words[:cut]), _find(words[cut:]) or _find(words[cut : cut + 1])
        if organ and lesion and lesion.category == "abnormal" and organ.category != "abnormal":
            return lesion, organ.term
    return None, None


def _words(name: str, at_ends: bool = False) -> list[str]:
    """Return the words of a name, ``OpticNerve_L`` also; a letter is a side, or, if asked, one at either end is."""
    words = [word for word in re.split(r"[\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) if word]
    return [
        word if at_ends and 0 < index < len(words) - 1 else SHORT.get(word, word) for index, word in enumerate(words)
    ]


def _find(words: list[str]) -> _Entry | None:
    name = "_".join(words)
    return _table().get(name) or _table().get(name.removesuffix("s")) if name else None


@cache
def _table() -> dict[str, _Entry]:
    entries = {}
    with TABLE.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            red, green, blue = bytes.fromhex(row["colour"].lstrip("#"))
            entry = _Entry(Term(row["code"], "SCT", row["meaning"]), row["category"], (red, green, blue))
            entries.update(dict.fromkeys(row["names"].split(), entry))
    return entries


def _distinct(value: int) -> RGB:
    """Return a colour unlike its neighbours': hues are a golden angle apart."""
    red, green, blue = colorsys.hsv_to_rgb(value * 0.618034 % 1, 0.6, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)
