"""The ledger of a test set: one entry a model, whole, beside the manifest, and a count where it cannot be written."""

from __future__ import annotations

import fcntl
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from segpipe.cli.app import run
from segpipe.data import Manifest, Readings, carry_readings, readings_of, record_reading
from segpipe.data.reading_ledger import checked_reason, ledger_path
from segpipe.errors import DataError, UsageError
from tiny_data import write_data

BUNDLE = {"name": "liver", "version": "1.0.0", "sha256": "b" * 64}


def read(manifest: Path | Manifest, model: str = "a", **more: Any) -> Readings:
    facts = {"bundle": BUNDLE, "manifest_sha256": "c" * 64, "cases": 45, **more}
    return record_reading(manifest, model * 64, **facts)


def test_each_model_counts_once_with_its_first_date_and_reason(tmp_path: Path) -> None:
    manifest = tmp_path / "data.v2.json"
    assert readings_of(manifest) == []
    assert read(manifest, reason="release 1.0").document() == {
        "count": 1,
        "file": "data.v2.test_readings.json",
        "reason": "release 1.0",
        "note": None,
    }
    assert read(manifest, "d", bundle=None).count == 2
    assert read(manifest, reason="once more").count == 2
    first, unknown = readings_of(manifest)
    assert (first.times, first.reason, first.bundle and first.bundle.name) == (2, "release 1.0", "liver")
    assert first.date <= unknown.date <= first.last and unknown.bundle is None
    assert json.loads(ledger_path(manifest).read_text())["readings"][1]["times"] == 1


def test_a_ledger_goes_with_its_manifest_and_belongs_to_the_file_that_a_link_means(tmp_path: Path) -> None:
    manifest, link = tmp_path / "one/manifest.json", tmp_path / "link.json"
    manifest.parent.mkdir()
    manifest.write_text("{}")
    link.symlink_to(manifest)
    assert read(link).count == 1 and (tmp_path / "one/manifest.test_readings.json").is_file()
    (tmp_path / "one").rename(tmp_path / "two")
    assert read(tmp_path / "two/manifest.json", "e").count == 2


def test_a_next_version_goes_on_with_the_count(tmp_path: Path) -> None:
    first, second = tmp_path / "manifest.json", tmp_path / "manifest_2.json"
    assert carry_readings(first, second) == 0 and not ledger_path(second).exists()
    read(first)
    read(first, "d")
    read(second, "d", reason="of its own")
    assert carry_readings(first, second) == 2
    assert {each.model[0]: each.reason for each in readings_of(second)} == {"a": None, "d": "of its own"}
    assert carry_readings(first, first) == 2 == len(readings_of(first))


def test_a_split_into_another_file_takes_the_count_along_and_says_so(tmp_path: Path, capsys) -> None:
    manifest = write_data(tmp_path / "data")
    read(manifest)
    other = manifest.parent / "other.json"
    for test, said in (("2", True), ("keep", False)):
        words = ["split", str(manifest), "--test", test, "--folds", "2", "--redraw", "-o", str(other)]
        assert run(words) == 0
        assert [each.model for each in readings_of(other)] == ["a" * 64]
        assert ("have been measured before, models: 1" in capsys.readouterr().err) == said


def test_readings_that_end_at_once_are_all_counted(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        counts = [done.count for done in pool.map(lambda name: read(tmp_path / "m.json", name), "0123456789abcdef")]
    assert sorted(counts) == list(range(1, 17))


def test_a_reading_waits_for_the_one_that_is_being_written(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(read, tmp_path / "m.json")
        with pytest.raises(TimeoutError):
            waiting.result(0.2)
        assert readings_of(tmp_path / "m.json") == []
        os.close(handle)
        assert waiting.result(10).count == 1


def test_where_nothing_can_be_written_the_reading_counts_and_is_noted(tmp_path: Path, monkeypatch) -> None:
    manifest = tmp_path / "m.json"
    read(manifest)

    def refuse(path: Path, document: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("segpipe.data.reading_ledger.write_json", refuse)
    again, other = read(manifest), read(manifest, "d")
    assert (again.count, other.count) == (1, 2)
    assert other.note == "the ledger m.test_readings.json could not be written (Permission denied)"
    assert len(readings_of(manifest)) == 1


@pytest.mark.parametrize(("beside", "what"), [("configs/metadata.json", "a bundle"), ("first/run.json", "a run")])
def test_a_copy_of_a_manifest_begins_no_count_of_its_own(tmp_path: Path, beside: str, what: str) -> None:
    folder = (tmp_path / beside).parent
    folder.mkdir()
    (tmp_path / beside).write_text("{}")
    inside = read(folder / "manifest.json")
    assert inside.count is None and f"the copy in {what}" in inside.note and "manifest of the data" in inside.note
    assert [path.name for path in folder.iterdir()] == [Path(beside).name]


def test_a_manifest_in_memory_has_no_ledger() -> None:
    manifest = Manifest(name="m", modality={"0": "CT"}, labels={"0": "background", "1": "liver"})
    assert read(manifest).count is None and readings_of(manifest) == []


@pytest.mark.parametrize("text", ["[]", '{"readings": [{"model": "x"}]}', '{"schema_version": 2, "readings": []}', "{"])
def test_a_ledger_that_is_none_is_refused_by_name_and_without_it_the_count_begins_anew(
    tmp_path: Path, text: str
) -> None:
    ledger = ledger_path(tmp_path / "m.json")
    ledger.write_text(text)
    for call in (readings_of, read):
        with pytest.raises(DataError, match="ledger of test readings") as caught:
            call(tmp_path / "m.json")
        assert caught.value.path == str(ledger)
        assert "the count of readings begins anew" in str(caught.value.hint)
    assert ledger.read_text() == text
    ledger.unlink()
    assert read(tmp_path / "m.json").count == 1


def test_a_reason_is_a_line_of_words() -> None:
    assert checked_reason(None) is None and checked_reason(" release\n1.0 ") == "release 1.0"
    for reason in ("", " ", "x" * 501, "\x1b[31m"):
        with pytest.raises(UsageError, match="not a reason"):
            checked_reason(reason)
