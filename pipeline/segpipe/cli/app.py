"""The ``segpipe`` command: thin, and quick to start because verbs import what they need when they run."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from segpipe.common.console import Console
from segpipe.errors import BUG, INTERRUPTED, OK, USAGE, SegpipeError, UsageError

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
    "compose",
    "train",
    "export",
    "bundle",
    "predict",
    "send",
    "evaluate",
    "compare",
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
    "5 refused or untrusted, 130 interrupted.",
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


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code; the words are the command line's unless given."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names in letters that a terminal does not know
    code = run(sys.argv[1:] if arguments is None else arguments)
    if code == OK or arguments is not None:
        sys.exit(code)
    # threads that read cases may still be in native code, where the interpreter's end would kill all by a signal
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code; no exception leaves it."""
    verb = next((word for word in arguments if not word.startswith("-")), "")
    verb = verb if verb in VERBS else ""
    console = Console(verb, as_json="--json" in arguments)
    try:
        previous = signal.signal(signal.SIGTERM, _interrupt)
    except ValueError:  # not the main thread
        previous = None
    try:
        result = app(args=arguments, standalone_mode=False)
        if result == INTERRUPTED:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
        return result if isinstance(result, int) else OK
    except SegpipeError as error:
        console.error(error)
        return error.exit_code
    except typer.Exit as error:
        return error.exit_code
    except _CommandLineError as error:
        if console.as_json:
            shown = " ".join(["segpipe", *([verb] if verb else []), "--help"])
            console.error(UsageError(error.format_message(), hint=f"see `{shown}`"))
        else:
            error.show()
        return USAGE
    except (KeyboardInterrupt, typer.Abort):
        words = "interrupted; what was finished is kept"
        console.note(f"segpipe {verb}: {words}")
        console.document(error={"message": words, "exit_code": INTERRUPTED})
        return INTERRUPTED
    except SystemExit as error:  # what click makes of a reader of standard output that has gone
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (OSError, MemoryError) as error:  # of the machine, not a bug of ours
        if os.environ.get("SEGPIPE_DEBUG"):
            traceback.print_exc()
        console.error(_environment(error))
        return USAGE
    except Exception as error:  # noqa: BLE001 - the last wall before the user
        return _bug(console, error)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _environment(error: OSError | MemoryError) -> UsageError:
    if isinstance(error, MemoryError):
        return UsageError("there is not enough memory", hint="close other programs, or use a larger machine")
    return UsageError(
        "a file or folder cannot be used",
        path=error.filename,
        found=error.strerror or str(error),
        hint="check that it is there, may be read and written, and that the disk is not full",
    )


def _bug(console: Console, error: Exception) -> int:
    if os.environ.get("SEGPIPE_DEBUG"):
        traceback.print_exc()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    wrapped = SegpipeError(
        f"this is a bug in segpipe: {type(error).__name__}: {error}",
        found=f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}",
        hint="set SEGPIPE_DEBUG=1 for the whole trace and report it",
    )
    console.error(wrapped)
    return BUG
