"""The result folder: a case is there whole or not at all, and its state outlives a crash."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from segpipe.common.partial import OWNER, PARTIAL, REPLACED
from segpipe.common.result_folder import (
    MAPPING,
    RESULT,
    SEGMENTATION,
    STATE,
    ResultFolder,
    find_segmentation,
    read_events,
)
from segpipe.errors import DataError, UsageError


def write_case(results: ResultFolder, case_id: str, text: str = "new") -> None:
    folder = results.begin(case_id)
    (folder / SEGMENTATION).write_text(text)
    (folder / RESULT).write_text(text)


def partial(results: ResultFolder) -> list[str]:
    """What lies there, of this process and of dead ones."""
    owners = [path for path in (results.root / PARTIAL).iterdir() if path.is_dir()]
    return sorted(path.name for owner in owners for path in owner.iterdir())


def kill(results: ResultFolder) -> None:
    """Have its folder belong to a process that has ended."""
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    machine, boot, _, start, part = results.partial.name.split("-")
    assert OWNER.fullmatch(results.partial.name)
    results.partial.rename(results.partial.with_name(f"{machine}-{boot}-{dead}-{start}-{part}"))


def test_a_case_appears_when_it_is_finished(tmp_path: Path) -> None:
    results = ResultFolder(tmp_path / "out" / "deep")
    write_case(results, "a")
    assert not results.is_finished("a") and not results.final("a").exists()
    results.finish("a")
    assert results.is_finished("a") and partial(results) == []
    assert (results.root / "a" / RESULT).read_text() == "new"


def test_begin_starts_from_nothing(tmp_path: Path) -> None:
    results = ResultFolder(tmp_path)
    write_case(results, "a")
    assert list(results.begin("a").iterdir()) == []


def test_an_abandoned_case_leaves_nothing_and_the_older_result(tmp_path: Path) -> None:
    results = ResultFolder(tmp_path)
    write_case(results, "a", "old")
    results.finish("a")
    write_case(results, "a")
    results.abandon("a")
    results.abandon("never begun")
    assert (results.final("a") / RESULT).read_text() == "old" and partial(results) == []


def test_a_result_is_replaced_as_a_whole(tmp_path: Path) -> None:
    results = ResultFolder(tmp_path)
    write_case(results, "a", "old")
    (results.partial / "a" / "extra").touch()
    results.finish("a")
    write_case(results, "a")
    results.finish("a")
    assert sorted(path.name for path in results.final("a").iterdir()) == [RESULT, SEGMENTATION]
    assert (results.final("a") / RESULT).read_text() == "new" and partial(results) == []


@pytest.mark.parametrize("renames_done", [0, 1, 2])
def test_a_kill_while_replacing_leaves_one_whole_result(
    renames_done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = ResultFolder(tmp_path)
    write_case(results, "a", "old")
    results.finish("a")
    write_case(results, "a")
    rename, done = Path.rename, 0

    def killed(self: Path, target: Path) -> Path:
        nonlocal done
        if done == renames_done:
            raise KeyboardInterrupt  # no handler of ours runs after a kill; none catches this either
        done += 1
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        if renames_done < 2:
            with pytest.raises(KeyboardInterrupt):
                results.finish("a")
        else:
            patch.setattr("shutil.rmtree", lambda *_arguments, **_named: None)
            results.finish("a")
    kill(results)
    again = ResultFolder(tmp_path)
    expected = "new" if renames_done == 2 else "old"
    assert {path.read_text() for path in again.final("a").iterdir()} == {expected}
    assert partial(again) == []


def test_leftovers_are_removed_at_the_next_start(tmp_path: Path) -> None:
    results = ResultFolder(tmp_path)
    write_case(results, "a")
    write_case(results, "b")
    results.finish("b")
    (results.partial / f"c{REPLACED}").mkdir()
    (results.partial / f"c{REPLACED}" / RESULT).write_text("old")
    assert partial(ResultFolder(tmp_path)) == ["a", f"c{REPLACED}"]  # its owner lives
    kill(results)
    again = ResultFolder(tmp_path)
    assert partial(again) == []
    assert not again.is_finished("a")
    assert again.is_finished("b") and again.is_finished("c")


def test_a_folder_without_its_result_is_not_finished(tmp_path: Path) -> None:
    results = ResultFolder(tmp_path)
    (tmp_path / "a").mkdir()
    assert not results.is_finished("a")
    assert results.is_taken("a") and not results.is_taken("b")


def test_a_full_disk_is_said_and_keeps_the_older_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    results = ResultFolder(tmp_path)
    write_case(results, "a", "old")
    results.finish("a")
    write_case(results, "a")
    monkeypatch.setattr(os, "fsync", full)
    for act in (lambda: results.finish("a"), lambda: results.record(event="x")):
        with pytest.raises(UsageError) as caught:
            act()
        assert caught.value.found == "No space left on device"
    assert (results.final("a") / RESULT).read_text() == "old"


def test_a_place_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="cannot write"):
            ResultFolder(place)
    assert (tmp_path / "file").read_text() == "x"


def test_events_come_back_in_order_with_their_time(tmp_path: Path) -> None:
    results = ResultFolder(tmp_path)
    assert read_events(results.root) == read_events(tmp_path / "absent") == []
    written = [{"event": "start"}, {"event": "end", "reason": "Grüße\u2028line\x85two\nthree"}]
    for event in written:
        results.record(**event)
    events = read_events(results.root)
    assert [{name: value for name, value in event.items() if name != "time"} for event in events] == written
    assert events[0]["time"] <= events[1]["time"]
    assert (tmp_path / STATE).read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_cut_at_any_byte_costs_that_line_alone(cut: int, tmp_path: Path) -> None:
    results = ResultFolder(tmp_path)
    results.record(event="one")
    before = (tmp_path / STATE).read_bytes()
    results.record(event="wörd")
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[: len(before) + len(whole[len(before) :]) - cut])
    kept = ["one", "wörd"] if cut == 1 else ["one"]  # the line's end alone is no loss
    assert [event["event"] for event in read_events(results.root)] == kept
    results.record(event="three")
    assert [event["event"] for event in read_events(results.root)] == [*kept, "three"]


def test_json_that_is_no_event_is_refused(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text('{"event": "one"}\n[1, 2]\n')
    with pytest.raises(DataError, match=STATE):
        read_events(tmp_path)


def test_the_mapping_is_its_owner_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        results = ResultFolder(tmp_path)
        results.map_case("a", ["/clinic/a.nii"])
        results.record(event="start")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / MAPPING).stat().st_mode) == 0o600
    assert json.loads((tmp_path / MAPPING).read_text()) == {"id": "a", "paths": ["/clinic/a.nii"]}
    assert "clinic" not in (tmp_path / STATE).read_text()


def test_nan_is_no_state(tmp_path: Path) -> None:
    results = ResultFolder(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        results.record(seconds=float("nan"))
    assert read_events(results.root) == []


def test_a_segmentation_is_found_in_its_folder_or_flat(tmp_path: Path) -> None:
    assert find_segmentation(tmp_path, "a") is None
    (tmp_path / "a").mkdir()
    for name in ("a.nii", "a.nii.gz", "a_seg.nii.gz", "a_0000_seg.nii.gz", f"a/{SEGMENTATION}"):
        (tmp_path / name).touch()
        assert find_segmentation(tmp_path, "a") == tmp_path / name
        (tmp_path / name).unlink()
    assert find_segmentation(tmp_path, "b") is None


def test_a_label_map_may_be_of_another_format_or_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.mha").touch()
    (tmp_path / "b.nii.gz").symlink_to("gone")
    assert find_segmentation(tmp_path, "a") == tmp_path / "a.mha"
    assert find_segmentation(tmp_path, "b") == tmp_path / "b.nii.gz"  # who reads it says so


def test_of_several_segmentations_none_is_picked(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a_seg.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="several label maps") as caught:
        find_segmentation(tmp_path, "a")
    assert caught.value.case_id == "a" and caught.value.found == "a_seg.nii.gz, a.nii.gz"
