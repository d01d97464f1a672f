"""Text for a person or one document for a machine, never both."""

from __future__ import annotations

import json
import logging
import sys
import warnings

import pytest

from segpipe.common.console import SCHEMA_VERSION, Console, quiet_libraries
from segpipe.errors import DataError, UsageError

Capture = pytest.CaptureFixture[str]


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
