"""Which labels have a side, by their names, and along which axes of a grid left and right lie.

A label has a side where another label differs from it in nothing but a word for the side (``Kidney_L`` and
``Kidney_R``, ``lh.thalamus`` and ``rh.thalamus``), or where its name holds a word that means nothing else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Any

LEFT = r"left|links|linke[rsnm]?|gauches?|sinister|sinistr(?:[aoei]|um|ae|am)|izquierd[ao]s?|esquerd[ao]s?|左"
RIGHT = r"right|rechts?|rechte[rsnm]?|dexter|dextr(?:[aoei]|um|ae|am)|destr[aoei]|derech[ao]s?|direit[ao]s?|右"
RIGHT_IN_A_PAIR = rf"{RIGHT}|droite?s?"  # alone, the muscles called droit are straight
SHORT = (  # of one language each: any of the left goes with any of the right
    ("l lt lft lh lhs", "r rt rgt rght rh rhs"),
    ("li lks", "re rts"),
    ("g ga gau gche gch", "d dr dro drt dte"),
    ("sx sn sin sinis", "dx dex dext dxt dst des dest destr"),
    ("i izq izda izdo izqda izqdo", "d der dcha dcho"),
    ("esq", "dir"),
)
WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_A-Za-z]")


def labels_with_side(labels: Iterable[str]) -> list[str]:
    """Return the labels that have a side, in their order."""
    words = {name: _words(name) for name in labels}
    found = {name for name, parts in words.items() if any(re.fullmatch(f"{LEFT}|{RIGHT}", part) for part in parts)}
    for one, other in permutations(words, 2):
        if _differ_in_side(words[one], words[other]) or _differ_within(words[one], words[other]):
            found |= {one, other}
    return [name for name in words if name in found]


def _words(name: str) -> list[str]:
    """Split a name at separators, digits and capitals; accents are dropped."""
    plain = "".join(mark for mark in unicodedata.normalize("NFKD", name) if not unicodedata.combining(mark))
    return [word.lower() for word in WORD.findall(plain)]


def _differ_in_side(left: Sequence[str], right: Sequence[str]) -> bool:
    differing = [pair for pair in zip(left, right, strict=False) if pair[0] != pair[1]]
    return len(left) == len(right) and bool(differing) and all(_are_sides(*pair) for pair in differing)


def _are_sides(left: str, right: str) -> bool:
    if any(left in lefts.split() and right in rights.split() for lefts, rights in SHORT) or (
        re.fullmatch(LEFT, left) and re.fullmatch(RIGHT_IN_A_PAIR, right)
    ):
        return True
    begins, ends = (left[0] + right[0], left[1:], right[1:]), (left[-1] + right[-1], left[:-1], right[:-1])
    return any(letters == "lr" and rest == other and len(rest) > 3 for letters, rest, other in (begins, ends))


def _differ_within(left: Sequence[str], right: Sequence[str]) -> bool:
    """Return whether two names differ in a side that is part of a word, such as ``leftkidney``."""
    parts = [re.split(side, " ".join(words)) for side, words in ((LEFT, left), (RIGHT_IN_A_PAIR, right))]
    return len(parts[0]) == len(parts[1]) > 1 and parts[0] == parts[1]


def left_right_axes(transforms: Any) -> tuple[int, ...]:
    """Return the axes of the network's grid along which left and right may lie.

    Args:
        transforms: a config's deterministic transforms. What the last ``Orientationd`` says counts; without one any
            axis may be it.
    """
    codes: Any = None
    for step in transforms if isinstance(transforms, (list, tuple)) else ():
        if isinstance(step, dict) and re.search(r"(^|\.)Orientation(d|D|Dict)?$", str(step.get("_target_"))):
            codes = "RAS" if step.get("as_closest_canonical") is True else step.get("axcodes")
    sides = tuple(axis for axis, code in enumerate(codes) if str(code) in "LR") if isinstance(codes, str | list) else ()
    return sides or (0, 1, 2)
