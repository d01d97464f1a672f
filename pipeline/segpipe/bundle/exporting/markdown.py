"""Parts of Markdown: tables, facts, blocks of commands, pictures, and figures with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDTH = 100


def figure(entry: Mapping[str, Any], digits: int = 3) -> str:
    """Return a mean with its interval, as the card shows it."""
    low, high = (number(entry.get(name), digits) for name in ("low", "high"))
    bounds = "" if low is None or high is None else f" [{low}, {high}]"
    return f"{number(entry.get('value'), digits) or '-'}{bounds}"


def number(value: float | None, digits: int) -> str | None:
    """Return a number with so many digits; None for None."""
    return None if value is None else f"{value:.{digits}f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; a cell that is None is a dash."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = ["-" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def facts(head: str, **known: Any) -> str:
    """Return a table of what is known, without what is not; an underscore in a name is a blank."""
    rows = [(name.replace("_", " "), value) for name, value in known.items() if value not in (None, "", [], {})]
    return table([head, ""], rows)


def code(*commands: str) -> str:
    """Return a block of commands, one a line; a long one goes on in the next lines, an option each."""
    lines = [line if len(line) <= WIDTH else line.replace(" --", " \\\n    --") for line in commands]
    return "\n".join(["```", *lines, "```"])


def picture(name: str, words: str, caption: str) -> str:
    """Return a picture beside the card, and the sentence below it."""
    return f"![{words}]({name})\n\n*{caption}*"
