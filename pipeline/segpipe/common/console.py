"""What a person or a machine sees: tables and progress, or one JSON document.

Tables go to standard output, progress and errors to standard error. With ``--json``
standard output holds exactly one document, with a ``schema_version``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from segpipe.errors import SegpipeError

if TYPE_CHECKING:
    from rich.progress import Progress


SCHEMA_VERSION = 1


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
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print a line beside the result (standard error), for a person and a log alike."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print a table for a person; silent under ``--json``. None is shown as a dash."""
        if self.as_json:
            return
        from rich.console import Console as RichConsole
        from rich.table import Table

        table = Table(title=title, title_justify="left", header_style="bold")
        rows = [["-" if cell is None else str(cell) for cell in row] for row in rows]
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
            sys.stderr.write(f"segpipe {self.command}: error: {error}\n".replace("segpipe : ", "segpipe: "))
            sys.stderr.flush()

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


def some_of(names: Iterable[str]) -> str:
    """Return the first ten names and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + rest


def _as_text(document: dict[str, Any]) -> str:
    """Return the text before a byte is printed, so that a refused value leaves room for the error's own document."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a file name that is not UTF-8, or a terminal that knows few letters
        text = json.dumps(document, indent=2, allow_nan=False)
    return text


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace("%", "").split(" ")[0])
    except ValueError:
        return cell == "-"
    return True
