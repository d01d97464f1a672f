"""What a person or a machine sees: tables and progress, or one JSON document.

Tables go to standard output, progress and errors to standard error. With ``--json``
standard output holds exactly one document, with a ``schema_version``.

File names are what strangers made of them. So nothing leaves here that a terminal would obey, or that would show a name
as another one: such characters are written as escapes (`visible`), in a document as those of JSON.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from segpipe.errors import SegpipeError

if TYPE_CHECKING:
    from rich.progress import Progress


SCHEMA_VERSION = 1
# C0 and C1 controls, line and paragraph separators, what has no width or turns the direction of writing, bytes of names
# that are no UTF-8
_UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def visible(text: str) -> str:
    """Return a line in which control characters, newlines among them, stand as escapes such as ``\\x1b``."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def quiet_libraries() -> None:
    """Keep third-party warnings and log lines off the terminal; ``SEGPIPE_DEBUG=1`` lets them through."""
    if os.environ.get("SEGPIPE_DEBUG"):
        return
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # for worker processes
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)  # MONAI sets a level on each of its loggers


class Console:
    """The output of one command.

    Args:
        command: the verb, named in the JSON document.
        as_json: print one JSON document instead of text.
    """

    def __init__(self, command: str, as_json: bool = False) -> None:
        self.command = command
        self.as_json = as_json

    def say(self, text: str = "") -> None:
        """Print a line for a person; silent under ``--json``."""
        if not self.as_json:
            sys.stdout.write(visible(text) + "\n")
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print a line beside the result (standard error), for a person and a log alike."""
        sys.stderr.write(visible(text) + "\n")
        sys.stderr.flush()

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print a table for a person; silent under ``--json``. None is shown as a dash, a list of words as lines."""
        if self.as_json:
            return
        from rich.console import Console as RichConsole
        from rich.table import Table

        table = Table(title=visible(title), title_justify="left", header_style="bold")
        rows = [["-" if cell is None else _cell(cell) for cell in row] for row in rows]
        for index, name in enumerate(columns):
            numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        width = None if sys.stdout.isatty() else 140
        console = RichConsole(file=sys.stdout, width=width, markup=False, highlight=False)
        with console.capture() as captured:  # rich itself would end the process where a reader has gone
            console.print(table)
        sys.stdout.write(captured.get())
        sys.stdout.flush()

    def document(self, **content: Any) -> None:
        """Print the one JSON document of the command; silent without ``--json``."""
        if self.as_json:
            head = {"schema_version": SCHEMA_VERSION, "command": self.command}
            sys.stdout.write(_as_text({**head, **content}) + "\n")
            sys.stdout.flush()

    def error(self, error: SegpipeError) -> None:
        """Report a failure: text on standard error, or an ``error`` document."""
        self.document(error={**error.as_dict(with_path=True), "exit_code": error.exit_code})
        if not self.as_json:
            first, *parts = error.lines()
            for line in (f"{f'segpipe {self.command}'.strip()}: error: {first}", *parts):
                self.note(line)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show a rich progress bar with time left on standard error; nothing where that is no terminal."""
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=RichConsole(file=sys.stderr),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        with bar:
            yield bar


class Interrupted(Exception):  # noqa: N818 - it is told as Ctrl-C is, not as an error
    """What a command raises in place of KeyboardInterrupt, of which Typer keeps nothing, to say how to go on."""


def some_of(names: Iterable[str]) -> str:
    """Return the first ten names and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + rest


def counted(number: int, noun: str) -> str:
    """Return a number of things in words: 1 step, 1,000 steps."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def of_patients(number: int, known: bool, kind: str = "") -> str:
    """Return of how many patients in words; where these are unknown each case counts as one, and it is of cases.

    >>> from segpipe.common.console import of_patients
    >>> of_patients(1, True), of_patients(31, False, "calibration ")
    ('1 patient', '31 calibration cases, patients unknown')
    """
    return counted(number, f"{kind}patient") if known else f"{counted(number, f'{kind}case')}, patients unknown"


def digits(value: float) -> str:
    """Return a number with all the digits that tell it from others: 1.0000001 is not 1."""
    import numpy as np

    single = np.float32(value) if abs(value) < 3e38 else np.float64(value)
    number = single if float(single) == value else np.float64(value)
    return np.format_float_positional(number, trim="-")


def as_clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def quoted(path: str | os.PathLike[str]) -> str:
    """Return a path as a shell takes it, for a command that a message names."""
    return shlex.quote(os.fspath(path))


def _cell(cell: Any) -> str:
    is_lines = isinstance(cell, list) and all(isinstance(line, str) for line in cell)
    return "\n".join(visible(str(line)) for line in (cell if is_lines else [cell]))


def _as_text(document: dict[str, Any]) -> str:
    """Return the text before a byte is printed, so that a refused value leaves room for the error's own document."""
    lines = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False).split("\n")
    text = "\n".join(_UNSEEN.sub(lambda found: json.dumps(found[0])[1:-1], line) for line in lines)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a terminal that knows few letters
        text = json.dumps(document, indent=2, allow_nan=False)
    return text


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace("%", "").split(" ")[0])
    except ValueError:
        return cell == "-"
    return True
