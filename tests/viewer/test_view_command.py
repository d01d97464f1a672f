"""`segpipe view`: what it prints, how it ends, and whom it lets look."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tiny_results import Tiny, write_results

from segpipe.cli.app import run
from segpipe.errors import OK, USAGE
from segpipe.viewer import ViewServer, page
from tiny_bundle import write_scan


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return write_results(tmp_path_factory.mktemp("command"))


def test_a_page_is_written_and_named(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["view", str(tiny.out), "--truth", str(tiny.truth), "--page", str(tmp_path / "page.html"), "--json"]
    assert run(words) == OK
    document = json.loads(capsys.readouterr().out)
    assert (document["url"], document["cases"], document["niivue"]) == (None, ["case_1"], page.has_niivue())
    assert "case_1" in (tmp_path / "page.html").read_text() or not page.has_niivue()


def test_without_niivue_it_is_said_on_the_terminal(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "NIIVUE_FOLDER", tmp_path)
    assert run(["view", str(tiny.out), "--page", str(tmp_path / "page.html")]) == OK
    assert "make viewer" in capsys.readouterr().err
    assert "no NiiVue" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    "words", [["nowhere"], ["{out}", "--case", "case_9"], ["{out}", "--truth", "nowhere"], ["{out}", "--page", "{out}"]]
)
def test_what_cannot_be_is_refused(tiny: Tiny, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["view", *(word.format(out=tiny.out) for word in words)]) == USAGE
    assert "bug" not in capsys.readouterr().err


def test_the_secret_reaches_the_browser_by_a_file_of_the_users_alone(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[tuple[str, str, int]] = []

    def note(address: str) -> bool:
        path = Path(address.removeprefix("file://"))
        opened.append((address, path.read_text(), stat.S_IMODE(path.stat().st_mode)))
        return True

    monkeypatch.setattr("webbrowser.open", note)
    monkeypatch.setattr(ViewServer, "serve", lambda self: None)
    assert run(["view", str(tiny.out), "--open"]) == OK
    ((address, text, mode),) = opened
    url = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("http://127.0.0.1:"))
    assert url in text and url not in address and mode == 0o600
    assert not Path(address.removeprefix("file://")).exists()


@pytest.mark.slow
def test_predict_writes_a_report_to_scroll_through_when_asked(tiny_bundle: Path, tmp_path: Path) -> None:
    scan, out = write_scan(tmp_path / "in" / "a.nii.gz"), tmp_path / "out"
    words = ["predict", str(tiny_bundle), str(scan), str(out), "--entropy"]
    assert run(words) == OK
    assert "v-data" not in (out / "report.html").read_text()  # whoever has a report does not have the scans
    assert run([*words, "--viewer"]) == OK
    text = (out / "report.html").read_text()
    if page.has_niivue():
        (case,) = json.loads(re.search(r'id="v-data">(.*?)</script>', text)[1])["cases"]  # type: ignore[index]
        assert [volume["name"] for volume in case["volumes"]] == ["image", "prediction", "entropy"]
        assert case["volumes"][1]["labels"][0]["name"] == "bright" and 'id="v-0-2"' in text
    else:
        assert "no NiiVue" in text
    assert str(tmp_path) not in text and "Overlays" in text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_until_it_is_ended(tiny: Tiny, number: int) -> None:
    words = [sys.executable, "-m", "segpipe", "view", str(tiny.out), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}, text=True) as run:
        assert run.stdout is not None
        text = ""
        while not _whole(text):
            text += run.stdout.readline()
        with urllib.request.urlopen(json.loads(text)["url"], timeout=60) as answer:
            assert b"case_1" in answer.read()
        run.send_signal(number)
        _, complaints = run.communicate(timeout=60)
        assert run.returncode == OK, complaints


def _whole(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
