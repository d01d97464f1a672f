"""The ``segpipe`` command: thin, and quick to start because verbs import what they need when they run."""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
import traceback
from importlib import import_module
from typing import Any

import typer
from typer.main import get_command

from segpipe.common.console import Console, Interrupted, visible
from segpipe.common.processes import heed_signals, leave
from segpipe.common.streams import failure, guard_streams
from segpipe.errors import INTERRUPTED, OK, USAGE, SegpipeError, UsageError, as_segpipe_error

# click's ClickException, or that of the click which newer Typers carry within
_CommandLineError: Any = typer.BadParameter.__mro__[2]

VERBS = (
    "scan",
    "convert",
    "import",
    "check",
    "fetch",
    "split",
    "plan",
    "train",
    "store",
    "quality",
    "export",
    "bundle",
    "predict",
    "send",
    "evaluate",
    "view",
    "report",
    "next",
    "compare",
    "auto",
    "tune",
    "submit",
    "reproduce",
    "demo",
    "info",
    "doctor",
)

app = typer.Typer(
    name="segpipe",
    help="From a folder of scans to a trained, measured, verifiable MONAI bundle.\n\n"
    "The usual way: import, check, split, plan, train, export, predict, evaluate. "
    "Exit codes: 0 ok, 1 our bug, 2 usage or configuration, 3 bad data, 4 some cases failed, "
    "5 refused or untrusted, 6 all ran and some are held, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        from segpipe import __version__

        typer.echo(f"segpipe {__version__}")
        raise typer.Exit(OK)


for _verb in VERBS:
    _module = import_module(f"segpipe.cli.{_verb}_")
    if hasattr(_module, "group"):
        app.add_typer(_module.group, name=_verb)
    else:
        app.command(_verb)(_module.command)


AFTER_AN_INTERRUPTION = {  # what is there then, and what goes on; a command that knows better raises with its own words
    "predict": "finished cases are kept, and the same command, without --overwrite, goes on",
    "convert": "series that are written are kept, and the same command, without --overwrite, goes on",
    "import": "no manifest was written; volumes made of slices or DICOM are kept, and the same command goes on",
    "fetch": "what was downloaded is kept, and the same command goes on",
    "send": "sent.jsonl has what the archive confirmed, and the same command, without --again, sends the rest",
    "demo": "what its steps made is incomplete, and the same command with --overwrite begins anew",
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code; the words are the command line's unless given."""
    if arguments is not None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.exit(run(arguments))
    guard_streams()
    code = run(sys.argv[1:])
    sys.stdout.flush()
    if error := failure():
        Console("").error(error)
        code = code or error.exit_code
    if code == OK:
        sys.exit(code)
    leave(code)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code; no exception leaves it."""
    verb = next((word for word in arguments if not word.startswith("-")), "")
    verb = verb if verb in VERBS else ""
    previous = heed_signals()
    try:
        result = _command()(args=arguments, standalone_mode=False)
        if result == INTERRUPTED:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
        return result if isinstance(result, int) else OK
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - the last wall before the user
        return _explain(error, verb, Console(verb, as_json="--json" in arguments))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@functools.cache
def _command() -> Any:
    """Return the command with its verbs and their options; most of what a quick one takes is reading these."""
    return get_command(app)


def _words(error: Any) -> list[str]:
    """Return verb and action of the command whose words were wrong; none where that is not known."""
    context, words = getattr(error, "ctx", None), list[str]()
    while context is not None and context.parent is not None:
        words.insert(0, str(context.info_name))
        context = context.parent
    return words


def _was_ctrl_c(error: BaseException) -> bool:
    """Return whether Ctrl-C was made an error of another kind, as Python does where it comes amid a class statement.

    Until Python 3.11 what leaves ``__set_name__`` becomes a RuntimeError; and libraries wrap what ends their loading.
    An error of ours, or of the machine, that came up after Ctrl-C stays what it is.
    """
    if isinstance(error, (SegpipeError, OSError, MemoryError)):
        return False
    cause = error.__cause__
    return cause is not None and (isinstance(cause, KeyboardInterrupt) or _was_ctrl_c(cause))


def _explain(error: Exception | KeyboardInterrupt, verb: str, console: Console) -> int:
    """Tell why a command ended; return its exit code."""
    if isinstance(error, _CommandLineError):
        if console.as_json:
            shown = " ".join(["segpipe", *(_words(error) or ([verb] if verb else [])), "--help"])
            console.error(UsageError(error.format_message(), hint=f"see `{shown}`"))
        else:
            error.message = visible(error.message)
            error.show()
        return USAGE
    if isinstance(error, (KeyboardInterrupt, typer.Abort, Interrupted)) or _was_ctrl_c(error):
        known = str(error) if isinstance(error, Interrupted) else AFTER_AN_INTERRUPTION.get(verb)
        words = f"interrupted; {known or 'the same command begins anew'}"
        console.note(f"segpipe {verb}: {words}")
        console.document(error={"message": words, "exit_code": INTERRUPTED})
        return INTERRUPTED
    if os.environ.get("SEGPIPE_DEBUG") and not isinstance(error, SegpipeError):
        traceback.print_exception(error)
    told = as_segpipe_error(error)
    console.error(told)
    return told.exit_code
