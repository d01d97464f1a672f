"""The last wall: what no verb foresaw ends with words and an exit code, and never with a trace."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segpipe import __version__, errors
from segpipe.cli.app import VERBS, main, run
from segpipe.cli.reproduce_ import run_folder
from segpipe.errors import DataError, RefusedError, UsageError

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (PermissionError(13, "Permission denied", "/closed"), 2),
        (OSError(36, "File name too long"), 2),
        (MemoryError(), 2),
        (ZeroDivisionError("a bug"), 1),
    ],
)
def test_what_nobody_caught_has_an_exit_code(
    raised: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: object) -> None:
        raise raised

    monkeypatch.setattr("segpipe.data.load_manifest", fail)
    assert run(["split", "manifest.json", "--json"]) == code
    output = capsys.readouterr()
    assert json.loads(output.out)["error"]["exit_code"] == code
    assert "Traceback" not in output.err
    if isinstance(raised, PermissionError):
        assert json.loads(output.out)["error"]["path"] == "/closed"


def test_a_file_name_too_long_is_no_bug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = {"id": "a", "image": "x" * 300 + ".nii.gz", "label": "y.nii.gz"}
    document = {
        "schema_version": 1,
        "name": "long",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver"},
        "training": [case],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    assert run(["check", str(tmp_path / "manifest.json")]) in (2, 3)
    assert "bug" not in capsys.readouterr().err


@pytest.fixture
def split_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Let `segpipe split m.json` do something else where it would read its manifest."""

    def replace(act: Callable[[], Any]) -> None:
        monkeypatch.setattr("segpipe.data.load_manifest", lambda _path: act())

    return replace


def small_manifest() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": "n",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver"},
        "training": [{"id": f"c{n}", "image": f"{n}.nii", "label": f"l{n}.nii"} for n in range(12)],
    }


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_the_help_names_every_verb_and_every_exit_code(capsys: Capture) -> None:
    assert run(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", text)
    stated = {int(number) for number in re.findall(r"(\d+) [a-z]", text.partition("Exit codes:")[2])}
    known = {errors.OK, errors.BUG, errors.USAGE, errors.BAD_DATA, errors.SOME_FAILED, errors.REFUSED}
    assert stated == known | {errors.SOME_HELD, errors.INTERRUPTED}


GROUPS = {"bundle": ("verify", "inspect", "pack", "keygen", "sign"), "store": ("list", "remove"), "quality": ("fit",)}
COMMANDS = [[verb, *rest] for verb in VERBS for rest in [[word] for word in GROUPS.get(verb, ())] or [[]]]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_of_every_verb_is_explained(words: list[str], capsys: Capture) -> None:
    assert run([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip() == "Options:")
    options = [index for index in range(start + 1, len(lines)) if re.match(r"  -", lines[index])]
    assert len(options) >= 2
    for index in options:  # the words stand on the option's line, or below it, indented
        parts = re.split(r"  +", lines[index].strip(), maxsplit=1)
        below = lines[index + 1] if index + 1 < len(lines) else ""
        assert len(parts) == 2 or re.match(r" {10,}\S", below), lines[index]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_mistyped_option_is_refused(words: list[str], capsys: Capture) -> None:
    assert run([*words, "--jsn"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "No such option: --jsn" in err and "Traceback" not in err


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_mistyped_option_under_json_is_one_document(words: list[str], capsys: Capture) -> None:
    assert run([*words, "--json", "--no-such-option"]) == 2
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["schema_version"], document["command"]) == (1, words[0])
    assert document["error"]["exit_code"] == 2 and "--no-such-option" in document["error"]["message"]
    assert f"segpipe {' '.join(words)} --help" in document["error"]["hint"]
    assert err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["import", "{}/absent"],
        ["check", "{}/absent.json"],
        ["split", "{}/absent.json"],
        ["plan", "{}/absent.json"],
        ["train", "{}/absent.json", "--task", "task.yaml", "--out", "{}/run"],
        ["export", "{}/absent", "{}/bundle"],
        ["predict", "{}/absent", "{}", "{}/out"],
        ["evaluate", "{}/absent.json", "{}", "--out", "{}/metrics"],
        ["demo", "{}/file/below"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_is_not_there_is_one_document_and_nothing_is_written(
    arguments: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("x")
    assert run([*(word.format(tmp_path) for word in arguments), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document["schema_version"], document["command"]) == (1, arguments[0])
    assert document["error"]["exit_code"] == 2 and document["error"]["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_unknown_verb(more: list[str], capsys: Capture) -> None:
    assert run(["sgement", *more]) == 2
    out, err = capsys.readouterr()
    text = json.loads(out)["error"]["message"] if more else err
    assert "sgement" in text


def test_an_unknown_verb_before_a_known_one_is_not_taken_for_it(capsys: Capture) -> None:
    assert run(["sgement", "check", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == "" and document["error"]["hint"] == "see `segpipe --help`"


def test_a_terminal_that_knows_few_letters_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.json").write_text(json.dumps(small_manifest()))
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding="ascii"))
    with pytest.raises(SystemExit) as caught:
        main(["split", str(tmp_path / "m.json"), "-o", str(tmp_path / "größe.json")])
    assert caught.value.code == 0
    assert b"gr\\xf6\\xdfe.json" in stream.getvalue()


def test_without_a_word_the_help_is_shown(capsys: Capture) -> None:
    assert run([]) in (0, 2)
    out, err = capsys.readouterr()
    assert "evaluate" in out + err and "Traceback" not in err


def test_the_version_is_that_of_the_package(capsys: Capture) -> None:

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"segpipe {__version__}\n"


@pytest.mark.parametrize(("error", "code"), [(UsageError, 2), (DataError, 3), (RefusedError, 5)])
def test_an_error_of_ours_ends_with_its_code(
    error: type[errors.SegpipeError], code: int, split_is: Callable[..., None], capsys: Capture
) -> None:
    split_is(raising(error("words", hint="do this")))
    assert run(["split", "m.json"]) == code
    out, err = capsys.readouterr()
    assert out == "" and err == "segpipe split: error: words\n  hint: do this\n"
    with pytest.raises(SystemExit) as caught:
        main(["split", "m.json"])
    assert caught.value.code == code


def test_a_failing_command_leaves_in_order() -> None:
    code = "import atexit; from segpipe.cli.app import main; atexit.register(print, 'tidied'); main()"
    done = subprocess.run([sys.executable, "-c", code, "split"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "tidied\n"
    assert "Missing argument" in done.stderr and "Traceback" not in done.stderr


def test_a_bug_says_where_and_shows_its_trace_only_when_asked(
    split_is: Callable[..., None], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGPIPE_DEBUG", raising=False)
    split_is(raising(ZeroDivisionError("by nought")))
    assert run(["split", "m.json"]) == 1
    err = capsys.readouterr().err
    assert "bug" in err and "ZeroDivisionError: by nought" in err and "test_cli.py:" in err
    assert "Traceback" not in err
    monkeypatch.setenv("SEGPIPE_DEBUG", "1")
    assert run(["split", "m.json"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_says_that_it_was_noticed(as_json: bool, split_is: Callable[..., None], capsys: Capture) -> None:
    split_is(raising(KeyboardInterrupt()))
    assert run(["split", "m.json", *(["--json"] if as_json else [])]) == 130
    out, err = capsys.readouterr()
    assert "interrupted" in err
    assert json.loads(out)["error"]["exit_code"] == 130 if as_json else out == ""


def test_ctrl_c_amid_a_class_statement_is_no_bug_of_ours(split_is: Any, capsys: Capture) -> None:
    class Interrupting:
        def __set_name__(self, owner: type, name: str) -> None:
            raise KeyboardInterrupt

    def class_statement() -> None:
        type("Owner", (), {"field": Interrupting()})  # as in a module that is imported

    split_is(class_statement)
    assert run(["split", "m.json"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_an_error_after_ctrl_c_stays_what_it_is(split_is: Any, capsys: Capture) -> None:
    def fail_to_save() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interruption:
            raise OSError(28, "No space left on device", "/full") from interruption

    split_is(fail_to_save)
    assert run(["split", "m.json"]) == 2
    assert "No space left" in capsys.readouterr().err


def interrupts(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_promises_nothing_that_is_not_kept(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """What says that something is kept is a verb that keeps it; all others begin anew."""
    monkeypatch.setattr("segpipe.cli.app._command", lambda: interrupts)
    assert run([verb]) == 130
    said = capsys.readouterr().err
    keeps = {"predict", "convert", "import", "fetch", "send", "demo"}
    assert ("the same command begins anew" in said) == (verb not in keeps)
    assert "what was finished is kept" not in said


def test_ctrl_c_in_plan_says_that_it_begins_anew(
    tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("segpipe.data.fingerprint.over_cases", interrupts)
    assert run(["plan", str(tiny_manifest), "-o", str(tmp_path / "task.yaml")]) == 130
    assert "begins anew" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_ctrl_c_in_train_names_resume_only_where_a_run_was_begun(
    tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("segpipe.training.train", interrupts)
    words = ["train", str(tiny_manifest), "--task", "x.yaml", "--out"]
    for folder, begun in (("none", None), ("one", "one/run.json"), ("seeds", "seeds/seed3/run.json")):
        if begun:
            (tmp_path / begun).parent.mkdir(parents=True)
            (tmp_path / begun).write_text("{}")
        assert run([*words, str(tmp_path / folder)]) == 130
        said = capsys.readouterr().err.replace("\n", " ")
        assert ("--resume" in said) == (begun is not None) and ("begins anew" in said) == (begun is None)


def test_ctrl_c_in_compare_goes_on_only_where_something_is_there(
    tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("segpipe.studies.compare_variants", interrupts)
    words = ["compare", str(tiny_manifest), "--task", "x.yaml", "--network", "unet", "--loss", "dice", "--steps", "1"]
    words += ["--out", str(tmp_path)]
    assert run(words) == 130 and "begins anew" in capsys.readouterr().err
    (tmp_path / "compare.json").write_text("{}")
    assert run(words) == 130 and "goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_is_ctrl_c_and_its_handler_is_given_back(
    number: signal.Signals, split_is: Callable[..., None]
) -> None:
    def own(_signal: int, _frame: object) -> None:
        pytest.fail("the caller's handler was called within a command")

    before = signal.signal(number, own)
    try:
        split_is(lambda: os.kill(os.getpid(), number))
        assert run(["split", "m.json"]) == 130
        assert signal.getsignal(number) is own
    finally:
        signal.signal(number, before)


def test_a_closed_terminal_is_ignored_where_that_was_asked_for(split_is: Callable[..., None]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        split_is(lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert run(["split", "m.json"]) != 130
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["split", "m.json"]])
def test_a_reader_that_has_gone_is_no_failure(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(small_manifest()))
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "segpipe", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "pipeline")}
        done = subprocess.run(
            command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=environment
        )
    finally:
        os.close(write)
    notes = [line for line in done.stderr.splitlines() if not line.startswith("the label maps are not there (--data)")]
    assert (done.returncode, notes) == (0, [])


def test_each_verb_is_one_module_with_one_command() -> None:
    folder = Path(__file__).parents[2] / "pipeline" / "segpipe" / "cli"
    assert {path.stem for path in folder.glob("[a-z]*_.py")} == {f"{verb}_" for verb in VERBS}


@pytest.mark.parametrize("words", [["quality", "fit"], ["bundle", "verify"], ["predict"]], ids=" ".join)
def test_a_wrong_option_leads_to_the_help_that_lists_the_right_ones(words: list[str], capsys: Capture) -> None:
    assert run([*words, "--no-such-option", "--json"]) == 2
    hint = json.loads(capsys.readouterr().out)["error"]["hint"]
    assert hint == f"see `segpipe {' '.join(words)} --help`"


def test_a_bundle_is_trained_again_in_a_folder_of_its_whole_name() -> None:
    names = {str(run_folder(Path(name))) for name in ("b/liver-1.2", "b/liver-1.3", "b/liver-1.2.zip", "b/liver")}
    assert names == {"liver-1.2-reproduced", "liver-1.3-reproduced", "liver-reproduced"}
