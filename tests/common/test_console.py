"""Text for a person or one document for a machine, never both."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.cli.app import run
from segpipe.common.console import SCHEMA_VERSION, Console, counted, quiet_libraries, quoted, visible
from segpipe.errors import DataError, RefusedError, UsageError

Capture = pytest.CaptureFixture[str]


def test_numbers_of_things_and_paths_in_commands() -> None:
    assert [counted(number, "step") for number in (0, 1, 2, 1000)] == ["0 steps", "1 step", "2 steps", "1,000 steps"]
    for path in (Path("runs/a"), Path("mein Lauf/ä'b")):
        assert shlex.split(f"segpipe export {quoted(path)} OUT")[2] == str(path)


def speak(console: Console) -> None:
    console.say("hello")
    console.table("title", ("case", "dice"), [("a", 0.9), ("b", None)])
    console.note("beside")
    with console.progress() as bar:
        bar.advance(bar.add_task("working", total=2))
    console.document(answer=42)


def test_under_json_standard_output_is_one_document(capsys: Capture) -> None:
    speak(Console("check", as_json=True))
    out, err = capsys.readouterr()
    assert json.loads(out) == {"schema_version": SCHEMA_VERSION, "command": "check", "answer": 42}
    assert out.endswith("}\n")
    assert err == "beside\n"


def test_text_has_the_table_and_no_document(capsys: Capture) -> None:
    speak(Console("check"))
    out, err = capsys.readouterr()
    assert out.startswith("hello\n") and "title" in out and "0.9" in out
    assert "42" not in out and "schema_version" not in out
    assert next(line for line in out.splitlines() if " b " in line).count("-") == 1  # None is a dash
    assert err == "beside\n"


def test_a_table_shows_what_looks_like_markup_and_does_not_cut_it(capsys: Capture) -> None:
    long = "x" * 200
    Console("check").table("t", ("a", "b"), [("[red]not a colour[/red]", long)])
    out = capsys.readouterr().out
    assert "[red]not a colour[/red]" in out
    assert out.count("x") == 200


def test_a_table_without_rows_is_no_error(capsys: Capture) -> None:
    Console("check").table("none", ("a",), [])
    assert "none" in capsys.readouterr().out


def test_a_reader_that_has_gone_is_the_caller_s_to_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        encoding = "utf-8"

        def write(self, _text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdout", Gone())
    for speaker in (Console("check"), Console("check", as_json=True)):
        with pytest.raises(BrokenPipeError):
            speak(speaker)


def test_an_error_is_a_document_with_code_and_path(capsys: Capture) -> None:
    error = DataError("broken", path="/p/scan.nii", found="x", expected="y", hint="do", case_id="c")
    Console("check", as_json=True).error(error)
    out, err = capsys.readouterr()
    told = {"message": "broken", "path": "/p/scan.nii", "found": "x", "expected": "y", "hint": "do", "case_id": "c"}
    assert json.loads(out) == {"schema_version": 1, "command": "check", "error": {**told, "exit_code": 3}}
    assert err == ""


@pytest.mark.parametrize(("verb", "start"), [("check", "segpipe check: error: "), ("", "segpipe: error: ")])
def test_an_error_is_text_on_standard_error(verb: str, start: str, capsys: Capture) -> None:
    Console(verb).error(UsageError("wrong", hint="do it right"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == start + "wrong\n  hint: do it right\n"


def test_a_number_that_json_does_not_know_is_refused_before_a_byte_is_printed(capsys: Capture) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Console("check", as_json=True).document(name="tiny", dice=float("nan"))
    assert capsys.readouterr().out == ""


def test_a_file_name_that_is_not_utf8_can_be_printed(capfd: pytest.CaptureFixture[str]) -> None:
    Console("check", as_json=True).document(path="a\udcffb")
    assert json.loads(capfd.readouterr().out)["path"] == "a\udcffb"


def test_letters_of_all_languages_stay_as_they_are(capsys: Capture) -> None:
    Console("check", as_json=True).document(name="Schädel 脳")
    assert "Schädel 脳" in capsys.readouterr().out


@pytest.fixture
def restored_noise(monkeypatch: pytest.MonkeyPatch) -> object:
    for name in ("PYTHONWARNINGS", "TF_CPP_MIN_LOG_LEVEL", "SEGPIPE_DEBUG"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        yield
    logging.disable(level)


@pytest.mark.usefixtures("restored_noise")
def test_libraries_are_quiet_unless_one_debugs(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("a.library")
    logging.disable(logging.NOTSET)  # commands that other tests ran have silenced this process
    monkeypatch.setenv("SEGPIPE_DEBUG", "1")
    quiet_libraries()
    assert logger.isEnabledFor(logging.ERROR)
    monkeypatch.delenv("SEGPIPE_DEBUG")
    quiet_libraries()
    logger.setLevel(logging.DEBUG)
    assert not logger.isEnabledFor(logging.CRITICAL)
    with warnings.catch_warnings(record=True) as heard:
        warnings.warn("noise", UserWarning, stacklevel=1)
    assert heard == []


# clears the screen, sets the title, forges a line, turns what follows around, hides, and is no UTF-8
NASTY = "a\x1b[2J\x9b31m\x1b]0;t\x07\r\n  hint: run me\t\u202egnp\u2066\u200b\ufeff\u2028\U000e0041\x7f\udcff.dcm"


def obeyed(text: str) -> set[str]:
    """What a terminal would obey or hide, by Unicode's own categories, but for the ends of lines."""
    return {char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}


@given(st.text())
def test_no_control_character_is_left_and_letters_are(text: str) -> None:
    shown = visible(text)
    assert not obeyed(shown) and "\n" not in shown
    if text.isascii() and text.isprintable():
        assert shown == text
    assert visible("Löwe 獅子 א") == "Löwe 獅子 א"


def test_names_are_escaped_wherever_they_are_said(capsys: Capture) -> None:
    console = Console("scan")
    console.say(NASTY)
    console.note(NASTY)
    console.table(NASTY, ("file",), [(NASTY,), ([NASTY, "b"],)])
    console.error(DataError("m", path=NASTY, found=NASTY, hint="h"))
    console.error(RefusedError("m", findings=[{"file": NASTY, "text": "t", "reason": "r", "name": "n"}]))
    out, err = capsys.readouterr()
    assert not obeyed(out + err)
    assert not any(line.startswith("  hint: run") for line in (out + err).splitlines())
    assert err.count("\\x1b[2J") == 4 and out.count("\\x1b[2J") == 4


def test_a_document_has_them_as_escapes_of_json(capsys: Capture) -> None:
    Console("scan", as_json=True).document(file=NASTY)
    out = capsys.readouterr().out
    assert not obeyed(out) and json.loads(out)["file"] == NASTY


@pytest.mark.parametrize(
    "words", [["scan", NASTY], ["scan", "--" + NASTY], ["convert", NASTY, "out"], ["check", NASTY]]
)
def test_no_verb_says_them(words: list[str], capsys: Capture) -> None:
    assert run(words) in (2, 3)
    out, err = capsys.readouterr()
    assert not obeyed(out + err) and "x1b[2J" in out + err
