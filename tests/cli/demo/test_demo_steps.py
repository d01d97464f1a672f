"""The steps, with a stand-in for each command: what is printed, what stops them, what is removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segpipe.cli.demo.demo_data import demo_manifest, write_data
from segpipe.cli.demo.demo_page import agreement, guess_dice, read_outcome, write_demo_page
from segpipe.cli.demo.demo_steps import MADE, Settings, commands, prepare, run_steps
from segpipe.common.console import Console
from segpipe.common.nifti import read_header, read_volume
from segpipe.data import phantom
from segpipe.errors import DataError, SegpipeError, UsageError
from tiny_demo import FakeCommands


def settings(out: Path) -> Settings:
    return Settings(out=out, cases=8, epochs=2, seed=0, threads=1, coarseness=4.0)


def test_the_whole_walk_prints_every_command_and_writes_the_page(tmp_path, capsys) -> None:
    out = tmp_path / "secret place"
    fake = FakeCommands(out)
    prepare(out, overwrite=False)
    steps = run_steps(settings(out), demo_manifest(8), Console("demo"), fake.run, fake.run_python)

    verbs = ["check", "plan", "train", "export", "predict", "evaluate", "export"]
    assert [words[0] for words in fake.ran] == [*verbs, "python"]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    assert [line.split()[2] for line in printed[:-1]] == verbs
    assert printed[-1].startswith("$ python -m monai.bundle run --config_file")

    outcome = read_outcome(out, demo_manifest(8))
    assert outcome.agreement == 1.0 and outcome.mean_dice == 1.0
    assert 0 < outcome.guess_dice < 0.7
    write_demo_page(out / "index.html", settings(out), outcome, steps)
    page = (out / "index.html").read_text()
    assert "secret place" not in page and str(tmp_path) not in page
    assert page.count("data:image/png;base64,") == 3  # gallery, bars, curves
    assert "segpipe train OUT/data/manifest.json" in page and "Not a medical device." in page
    assert {path.name for path in out.iterdir()} <= set(MADE)


def test_with_json_standard_output_stays_clean(tmp_path, capsys) -> None:
    fake = FakeCommands(tmp_path / "out")

    def chatty(words: list[str]) -> int:
        print("a table")
        return fake.run(words)

    prepare(tmp_path / "out", overwrite=False)
    run_steps(settings(tmp_path / "out"), demo_manifest(8), Console("demo", as_json=True), chatty, fake.run_python)
    captured = capsys.readouterr()
    assert captured.out == "" and "a table" in captured.err


@pytest.mark.parametrize(("verb", "code"), [("check", 3), ("predict", 4)])
def test_a_step_that_fails_ends_the_demo_with_its_code(tmp_path, verb: str, code: int) -> None:
    fake = FakeCommands(tmp_path / "out", verb, code)
    prepare(tmp_path / "out", overwrite=False)
    with pytest.raises(SegpipeError, match=f"stopped at `segpipe {verb}`") as caught:
        run_steps(settings(tmp_path / "out"), demo_manifest(8), Console("demo"), fake.run, fake.run_python)
    assert caught.value.exit_code == code
    assert fake.ran[-1][0] == verb


def test_an_interrupted_step_interrupts_the_demo(tmp_path) -> None:
    fake = FakeCommands(tmp_path / "out", "train", 130)
    prepare(tmp_path / "out", overwrite=False)
    with pytest.raises(KeyboardInterrupt):
        run_steps(settings(tmp_path / "out"), demo_manifest(8), Console("demo"), fake.run, fake.run_python)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="not of a demo"):
            prepare(tmp_path, overwrite)
    assert (tmp_path / "data" / "mine.txt").read_text() == "mine"


def test_an_older_demo_is_kept_until_told_and_only_its_own_files_go(tmp_path) -> None:
    out = tmp_path / "out"
    prepare(out, overwrite=False)
    (out / "run").mkdir()
    (out / "task.yaml").write_text("")
    (out / "notes.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (out / "bundle").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="made here already"):
        prepare(out, overwrite=False)
    assert (out / "run").is_dir()
    prepare(out, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"notes.txt", "demo.json"}
    assert (tmp_path / "elsewhere").is_dir()


def test_a_place_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the output"):
        prepare(tmp_path / "file" / "out", overwrite=False)


def test_the_commands_differ_from_the_printed_ones_by_the_folder_alone(tmp_path) -> None:
    real, shown = commands(settings(tmp_path), "there"), commands(settings(tmp_path), "OUT")
    assert [[word.replace("there", "OUT") for word in words] for words in real] == shown


def test_agreement_counts_voxels_and_refuses_another_grid(tmp_path) -> None:
    manifest = demo_manifest(8)
    case = phantom.make_phantom(1, (10, 10, 10), (2, 2, 2))
    for test in manifest.test:
        phantom.write_nifti(tmp_path / "a" / f"{test.id}.nii.gz", case.label, case.affine)
        phantom.write_nifti(tmp_path / "b" / f"{test.id}.nii.gz", case.label, case.affine)
    assert agreement(tmp_path / "a", tmp_path / "b", manifest.test) == 1.0
    changed = case.label.copy()
    changed[:5] = 9
    last = tmp_path / "b" / f"{manifest.test[-1].id}.nii.gz"
    phantom.write_nifti(last, changed, case.affine)
    assert agreement(tmp_path / "a", tmp_path / "b", manifest.test) == 0.75
    phantom.write_nifti(last, case.label, case.affine + np.eye(4))
    with pytest.raises(DataError, match="different grids"):
        agreement(tmp_path / "a", tmp_path / "b", manifest.test)
    last.unlink()
    with pytest.raises(DataError, match="missing") as caught:
        agreement(tmp_path / "a", tmp_path / "b", manifest.test)
    assert caught.value.case_id == manifest.test[-1].id


def test_guess_of_equal_cases_is_perfect(tmp_path) -> None:
    manifest = demo_manifest(8)
    write_data(tmp_path, manifest, 0, coarseness=4.0)
    label = read_header(tmp_path / str(manifest.training[0].label))
    for case in manifest.cases():
        phantom.write_nifti(tmp_path / str(case.label), read_volume(label), label.affine)
    assert guess_dice(tmp_path, manifest) > 0.9
