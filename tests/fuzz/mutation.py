"""How an input is made of a sound one: by a few changes, which hypothesis takes back where they do not matter.

The changes are drawn without regard to what is changed, which is quick: places are counted round and round.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Change = Callable[[Any], Any]
NUMBERS = [0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 352, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, -1, -2]
REALS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-9, 1e9, 3.4e38, -3.4e38, float("inf"), float("-inf"), float("nan")]
PLAIN: list[Any] = [None, True, False, 0, 1, -1, 1.5, 2**63, 10**30, 1e308, "", "0", "a", "x" * 300, [], {}, [[]]]
TEXTS = ["\x00", "\x1b[31m", "ü", "\ud800", "\u202e", "../a", "/etc/x", "a\nb", "$", "@", "%", "#", "::", "9" * 5000]
PACKED = [
    *{struct.pack(form, number % (1 << 8 * struct.calcsize(form))) for form in ("<B", "<H", ">H", "<I", ">I", "<Q")
      for number in NUMBERS},
    *{struct.pack(form, number) for form in ("<f", ">f", "<d") for number in REALS},
]  # fmt: skip
PLACES = st.integers(0, 2**20)


def several(change: st.SearchStrategy[Change], least: int = 0, most: int = 3) -> st.SearchStrategy[Change]:
    """Some changes, one after the other."""

    def all_of(changes: Sequence[Change]) -> Change:
        def do(value: Any) -> Any:
            for each in changes:
                value = each(value)
            return value

        return do

    return st.lists(change, min_size=least, max_size=most).map(all_of)


def of_bytes(words: Sequence[bytes] = ()) -> st.SearchStrategy[Change]:
    """One change of bytes."""
    new = st.sampled_from([*sorted(PACKED), *words]) | st.binary(min_size=1, max_size=6)

    def build(deed: str, place: int, what: bytes, length: int) -> Change:
        def do(data: bytes) -> bytes:
            at = place % len(data) if data else 0
            if deed == "put":
                return data[:at] + what + data[at + len(what) :]
            if deed == "insert":
                return data[:at] + what + data[at:]
            if deed == "cut":
                return data[:at] + data[at + length :]
            if deed == "double":
                return data[: at + length] + data[at:]
            return data[:at]

        return do

    deeds = st.sampled_from(["put", "put", "insert", "cut", "double", "end"])
    return st.builds(build, deeds, PLACES, new, st.integers(1, 80))


def of_parts(change: st.SearchStrategy[Change]) -> st.SearchStrategy[Change]:
    """One change of a list: a part of it is changed, left out, doubled or moved."""

    def build(deed: str, place: int, to: int, changed: Change) -> Change:
        def do(parts: list[Any]) -> list[Any]:
            if not parts:
                return parts
            at, to_ = place % len(parts), to % len(parts)
            if deed == "change":
                return [*parts[:at], changed(parts[at]), *parts[at + 1 :]]
            rest = parts if deed == "double" else [*parts[:at], *parts[at + 1 :]]
            return rest if deed == "drop" else [*rest[:to_], parts[at], *rest[to_:]]

        return do

    deeds = st.sampled_from(["change", "change", "change", "drop", "double", "move"])
    return st.builds(build, deeds, PLACES, PLACES, change)


def of_document(values: Sequence[Any] = (), keys: Sequence[str] = ()) -> st.SearchStrategy[Change]:
    """One change of a JSON document: of a value or a key, wherever it stands."""
    leaf = st.sampled_from([*PLAIN, *TEXTS, *values, *values, *values])
    key = st.sampled_from(["", "_target_", "_mode_", "_disabled_", "a::b", "a#b", "+run", "1", *TEXTS, *keys])
    value = st.one_of(
        leaf,
        leaf,
        st.lists(leaf, max_size=3),
        st.dictionaries(key, leaf, max_size=3),
        st.builds(lambda first, second: f"{first}{second}", leaf, leaf),
    )

    def build(deed: str, place: int, other: int, name: str, value: Any) -> Change:
        def do(document: Any) -> Any:
            document = json.loads(json.dumps(document))
            places = list(_places(document))
            if not places:
                return document
            holder, key = places[place % len(places)]
            if deed == "set":
                holder[key] = json.loads(json.dumps(value))
            elif deed == "drop":
                del holder[key]
            elif deed == "move":
                from_, at = places[other % len(places)]
                holder[key] = json.loads(json.dumps(from_[at]))
            elif isinstance(holder, dict):
                holder[name] = value if deed == "add" else holder.pop(key)
            return document

        return do

    deeds = st.sampled_from(["set", "set", "set", "add", "rename", "drop", "move"])
    return st.builds(build, deeds, PLACES, PLACES, key, value)


def _places(value: Any) -> Any:
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, item in items:
        yield value, key
        yield from _places(item)


def made(sound: Any, *changes: st.SearchStrategy[Change]) -> st.SearchStrategy[Any]:
    """What changes make of something sound: those of each kind, or of some."""

    def do(*drawn: tuple[bool, Change]) -> Any:
        value = sound
        for does, change in drawn:
            value = change(value) if does else value
        return value

    does = st.booleans() if len(changes) > 1 else st.just(True)
    return st.builds(do, *(st.tuples(does, each) for each in changes))


def spoiled(inputs: st.SearchStrategy[bytes], words: Sequence[bytes] = ()) -> st.SearchStrategy[bytes]:
    """Inputs some bytes of which are changed."""
    return st.builds(lambda data, change: change(data), inputs, several(of_bytes(words), 1))


def as_text(document: Any) -> bytes:
    """The document as JSON, with what UTF-8 cannot have as an escape."""
    return json.dumps(document).encode()
