"""The pieces of Markdown that a model card is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

WIDTH = 100


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; a cell that is None is a dash."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = ["-" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def facts(head: str, rows: Iterable[tuple[str, Any]]) -> str:
    """A table of what is known, without what is not."""
    return table([head, ""], [row for row in rows if row[1] not in (None, "", [], {})])


def code(*commands: str) -> str:
    """A block of commands, one a line; a long one goes on in the next lines, an option each."""
    lines = [each if len(each) <= WIDTH else each.replace(" --", " \\\n    --") for each in commands]
    return "\n".join(["```", *lines, "```"])


def picture(name: str, words: str, caption: str) -> str:
    """A picture beside the card, and the sentence below it."""
    return f"![{words}]({name})\n\n*{caption}*"
