"""The command: what it runs, what it leaves, how it goes on, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from segpipe.cli.app import run
from segpipe.common.shards import SHARDS, Shard, held_by
from segpipe.common.subprocesses import Ended
from segpipe.data import load_manifest
from segpipe.errors import UsageError
from segpipe.studies.comparison_figures import draw_figures
from segpipe.studies.comparison_state import Study, open_state
from segpipe.studies.variants import Settings, epochs_for_minutes, epochs_for_steps, validation_interval
from segpipe.training import read_fragment
from tiny_compare import FakeSubprocesses
from tiny_data import write_data

ROOT = Path(__file__).parents[2]
NETWORK = """
network_name: small
patch_divisor: 2
network_def:
  _target_: UNet
  spatial_dims: 3
  in_channels: "@in_channels"
  out_channels: "@out_channels"
  channels: [4, 8]
  strides: [2]
"""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("compare") / "data", cases=14)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSubprocesses:
    children = FakeSubprocesses(shift={"+dice/": 3, "+tversky/": 1})
    monkeypatch.setattr("segpipe.studies.comparison_run.Subprocesses", lambda: children)
    monkeypatch.setattr("segpipe.studies.comparison_page.draw_figures", lambda *_: [])
    return children


def words(manifest: Path, out: Path, *more: str, losses: str = "dice_ce,dice,tversky") -> list[str]:
    task = str(manifest.parent / "task.yaml")
    return [
        "compare",
        str(manifest),
        "--task",
        task,
        "--network",
        "unet",
        "--loss",
        losses,
        "--out",
        str(out),
        *(more or ("--steps", "7")),
    ]


def state(out: Path) -> Any:
    return json.loads((out / "compare.json").read_text())


def test_the_whole_comparison(manifest, tmp_path, fake, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("segpipe.studies.comparison_page.draw_figures", draw_figures)
    assert run(words(manifest, out, "--steps", "7", "--gif", "case_2")) == 0
    shown = capsys.readouterr()
    assert "tversky: mean Dice" in shown.out and "epoch" not in shown.out
    assert "unet+dice/fold0-seed0: validation Dice 0.5000" in shown.err and "(3 of 3 runs, 0:00:00" in shown.err
    assert fake.verbs() == ["train --dry-run"] * 3 + ["train", "export", "predict", "evaluate"] * 3

    schema = json.loads((ROOT / "docs/schemas/compare.schema.json").read_text())
    Draft202012Validator(schema).validate(state(out))
    results = state(out)["results"]
    rows = {row["variant"]: row for row in results["rows"]}
    assert results["reference"] == results["best"] == "unet+dice_ce" and results["patients"] == 7
    assert rows["unet+dice_ce"]["dice"]["mean"] == 1 and rows["unet+dice_ce"]["difference"] is None
    assert rows["unet+dice"]["dice"]["mean"] < rows["unet+tversky"]["dice"]["mean"] < 1
    assert rows["unet+dice"]["difference"]["mean"] == pytest.approx(rows["unet+dice"]["dice"]["mean"] - 1)
    assert rows["unet+dice"]["p"] == pytest.approx(2 / 2**7)
    assert rows["unet+dice"]["p_holm"] == rows["unet+tversky"]["p_holm"] == pytest.approx(4 / 2**7)
    # 7 training cases in batches of 4: two steps an epoch, and 7 / 2 rounds to 4 epochs
    assert rows["unet+dice"]["steps"] == [8] and rows["unet+dice"]["epochs"] == [4]
    assert rows["unet+dice"]["seconds_per_step"] == 0.15 and rows["unet+dice"]["peak_memory_mb"] == 100

    with (out / "compare.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 21 and {line["loss"] for line in lines} == {"dice_ce", "dice", "tversky"}
    of_dice = [float(line["dice"]) for line in lines if line["variant"] == "unet+dice"]
    assert sum(of_dice) / 7 == pytest.approx(rows["unet+dice"]["dice"]["mean"])

    page, text = (out / "report.html").read_text(), (out / "compare.md").read_text()
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {"variants.png", "curves.png", "dice.png", "worst.png", "worst_of_each.png", "case_2.gif"}
    assert page.count("data:image/png") == 5 and page.count("data:image/gif") == 1
    for name in figures:
        assert f"(figures/{name})" in text
    assert "--loss dice_ce,dice,tversky --steps 7" in text and "task.yaml" in text
    for document in (page, text, (out / "compare.json").read_text(), (out / "compare.csv").read_text()):
        assert str(tmp_path) not in document and str(manifest.parent) not in document
    for variant in ("unet+dice_ce", "unet+dice", "unet+tversky"):
        link = out / "tensorboard" / variant / "fold0-seed0"
        assert link.resolve() == (out / "runs" / variant / "fold0-seed0" / "run" / "tensorboard").resolve()


def test_all_runs_have_the_same_settings_but_their_own_loss(manifest, tmp_path, fake) -> None:
    more = ("--steps", "40", "--set", "learning_rate=0.01", "--threads", "1", "--augment", "none")
    assert run(words(manifest, tmp_path / "out", *more, losses="dice_ce,dice")) == 0
    first, second = (given for name, given in fake.calls if name == "train" and not given.get("dry_run"))
    differing = {name: (first[name], second[name]) for name in first if first[name] != second[name]}
    assert first.keys() == second.keys() and differing.keys() == {"loss", "out"}
    assert differing["loss"] == ("dice_ce", "dice")
    assert differing["out"][0].endswith("/runs/unet+dice_ce/fold0-seed0/run")
    assert first["epochs"] == 20 and first["threads"] == 1 and first["augment"] == "none"
    assert first["overrides"] == ["val_interval=2", "learning_rate=0.01"]


def test_an_epoch_of_so_many_steps_is_counted_as_these(manifest, tmp_path, fake) -> None:
    runtime = tmp_path / "planned.yaml"
    runtime.write_text(yaml.safe_dump({**read_fragment("runtime", "cpu")[0], "steps_per_epoch": 5}))
    out = tmp_path / "out"
    assert run(words(manifest, out, "--steps", "40", "--runtime", str(runtime), losses="dice_ce")) == 0
    (row,) = state(out)["results"]["rows"]
    assert row["steps"] == [40] and row["epochs"] == [8]
    assert row["seconds_per_step"] == 0.06  # 0.3 s an epoch


def test_folds_and_seeds_are_cells_and_are_averaged(manifest, tmp_path, fake) -> None:
    out = tmp_path / "out"
    more = ("--steps", "2", "--folds", "0,1", "--seeds", "0,3", "--jobs", "2")
    assert run(words(manifest, out, *more, losses="dice_ce,dice")) == 0
    assert len(state(out)["cells"]) == 8 and "unet+dice/fold1-seed3" in state(out)["cells"]
    row = state(out)["results"]["rows"][1]
    assert row["runs"] == {"planned": 4, "finished": 4} and row["dice"]["n"] == 14


def test_one_at_a_time_is_a_row_and_a_column(manifest, tmp_path, fake) -> None:
    (tmp_path / "small.yaml").write_text(NETWORK)
    networks = ("--network", str(tmp_path / "small.yaml"), "--network", "unetpp")
    assert run(words(manifest, tmp_path / "out", "--steps", "2", "--one-at-a-time", *networks)) == 0
    assert list(state(tmp_path / "out")["variants"]) == [
        "unet+dice_ce",
        "unet+dice",
        "unet+tversky",
        "small+dice_ce",
        "unetpp+dice_ce",
    ]


def test_the_same_command_goes_on_and_finished_runs_are_left_alone(manifest, tmp_path, fake, capsys) -> None:
    out = tmp_path / "out"
    fake.fails[("train", "+dice/")] = Ended(130, {})
    assert run(words(manifest, out)) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert state(out)["cells"]["unet+dice_ce/fold0-seed0"]["status"] == "finished"
    assert "unet+tversky/fold0-seed0" not in state(out)["cells"]
    folder = out / "runs" / "unet+dice" / "fold0-seed0" / "run"  # as an interrupted training leaves it
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"status": "interrupted"}')

    fake.fails.clear()
    fake.calls.clear()
    fake.stopped = False
    assert run(words(manifest, out)) == 0
    assert fake.verbs() == ["train", "export", "predict", "evaluate"] * 2
    assert fake.calls[0] == ("train", {"resume": str(folder), "data": str(manifest.parent)})
    fake.calls.clear()
    assert run(words(manifest, out)) == 0
    assert fake.calls == []


def test_shares_and_a_report_leave_what_one_command_leaves(manifest, tmp_path, fake, capsys) -> None:
    assert run(words(manifest, tmp_path / "whole")) == 0
    fake.calls.clear()
    out = tmp_path / "shared"
    assert run([*words(manifest, out), "--shard", "1/2"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 3 runs have ended" in shown and "the same command without --shard" in shown
    assert fake.verbs() == ["train --dry-run"] * 3 + ["train", "export", "predict", "evaluate"]
    assert list(state(out)["cells"]) == ["unet+dice/fold0-seed0"] and state(out)["results"] is None
    fake.fails[("predict", "+tversky/")] = Ended(-9, {})
    assert run([*words(manifest, out), "--shard", "0/2"]) == 4  # of its own runs
    assert run([*words(manifest, out), "--shard", "1/2"]) == 0
    capsys.readouterr()
    fake.fails.clear()
    assert run([*words(manifest, out), "--shard", "0/2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["cells"]) == 3
    fake.calls.clear()
    assert run(words(manifest, out)) == 0
    assert fake.calls == [] and state(out) == state(tmp_path / "whole")
    assert not (out / SHARDS).exists()


def test_shares_at_the_same_time_record_beside_each_other(manifest, tmp_path) -> None:
    settings = Settings(("unet",), ("dice_ce", "dice", "tversky"), str(manifest.parent / "task.yaml"), steps=2)
    study = Study(settings, load_manifest(manifest), manifest, manifest.parent, tmp_path / "out")
    one, other = open_state(study), open_state(study)
    first, second, third = settings.cells()
    assert [settings.cells(Shard(index, 2)) for index in range(2)] == [[first, third], [second]]
    for state_of_a_share, cell in ((one, first), (other, second), (one, third)):
        state_of_a_share.end(cell, {"status": "finished"})
    assert set(state(study.out)["cells"]) == {first.key, second.key, third.key}


def test_a_share_that_begins_beside_one_of_other_settings_is_refused(manifest, tmp_path) -> None:
    task = str(manifest.parent / "task.yaml")
    first, second = (
        open_state(Study(settings, load_manifest(manifest), manifest, manifest.parent, tmp_path / "out"))
        for settings in (Settings(("unet",), ("dice",), task, steps=2), Settings(("unet",), ("dice",), task, steps=9))
    )
    first.variants["unet+dice"] = {}
    first.write()
    with pytest.raises(UsageError, match="begun with other settings") as error:
        second.refresh()
    assert (error.value.found, error.value.expected) == ("steps: 9", "steps: 2")
    assert second.variants == {} and state(tmp_path / "out")["settings"]["steps"] == 2


def test_a_share_beside_the_whole_or_itself_is_refused(manifest, tmp_path, fake, capsys) -> None:
    out = tmp_path / "out"
    with held_by(out, Shard(0, 2), UsageError("busy")):
        assert run([*words(manifest, out), "--shard", "0/2"]) == 5
        assert run([*words(manifest, out), "--shard", "0/3"]) == 5
        assert run(words(manifest, out)) == 2
    assert "another comparison works in this folder" in capsys.readouterr().err
    assert run([*words(manifest, out), "--shard", "0/2", "--redraw"]) == 2
    assert "leave one out" in capsys.readouterr().err
    assert fake.calls == []


def test_what_is_finished_can_be_reported_before_the_end(manifest, tmp_path, fake, capsys) -> None:
    out = tmp_path / "out"
    assert run([*words(manifest, out), "--redraw"]) == 2
    assert "nothing to report yet" in capsys.readouterr().err
    fake.fails[("train", "+tversky/")] = Ended(130, {})
    assert run(words(manifest, out)) == 130
    before = state(out)
    assert run([*words(manifest, out), "--redraw", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]["rows"]
    assert [row["runs"]["finished"] for row in rows] == [1, 1, 0]
    assert state(out) == before and "unet+tversky (0 of 1 runs)" in (out / "compare.md").read_text()


def test_other_settings_are_refused_by_name(manifest, tmp_path, fake, capsys) -> None:
    out = tmp_path / "out"
    assert run(words(manifest, out, losses="dice_ce")) == 0
    capsys.readouterr()
    assert run(words(manifest, out, "--steps", "9", losses="dice_ce,dice")) == 2
    shown = capsys.readouterr().err
    assert "found: losses: dice_ce, dice; steps: 9" in shown and "expected: losses: dice_ce; steps: 7" in shown
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert run(words(manifest, tmp_path / "mine")) == 2
    assert "not of a comparison" in capsys.readouterr().err


def test_a_failed_run_is_recorded_and_the_others_go_on(manifest, tmp_path, fake, capsys) -> None:
    out = tmp_path / "out"
    error = {"message": "the loss is not finite", "found": "epoch 2 of /some/where/run", "case_id": "case_3"}
    fake.fails[("train", "+dice/")] = Ended(2, {"error": error})
    fake.fails[("predict", "+tversky/")] = Ended(-9, {})
    # the dry runs name no folder, so they pass
    assert run(words(manifest, out)) == 4
    assert "failed: unet+dice/fold0-seed0: training: case_3: the loss is not finite" in capsys.readouterr().err
    failures = {each["run"]: each["reason"] for each in state(out)["results"]["failures"]}
    assert failures["unet+dice/fold0-seed0"].endswith("not finite: epoch 2 of run")
    assert "killed" in failures["unet+tversky/fold0-seed0"]
    rows = state(out)["results"]["rows"]
    assert [row["dice"]["mean"] for row in rows] == [1.0, None, None]
    assert "unet+dice (0 of 1 runs)" in (out / "compare.md").read_text()
    fake.fails.clear()
    fake.calls.clear()
    assert run(words(manifest, out)) == 0
    assert fake.verbs() == ["train", "export", "predict", "evaluate", "predict", "evaluate"]


def test_a_case_without_prediction_counts_nothing_and_is_told(manifest, tmp_path, fake, capsys) -> None:
    out = tmp_path / "out"
    predict = fake._predict

    def lose_one(on_line: Any, **arguments: Any) -> Ended:
        predict(on_line, **arguments)
        for path in (Path(arguments["out"]) / "case_4").iterdir():
            path.unlink()
        return Ended(0, {})

    fake._predict = lose_one
    assert run(words(manifest, out, losses="dice_ce")) == 4
    row = state(out)["results"]["rows"][0]
    assert row["failed_cases"] == ["case_4"] and row["dice"]["mean"] == pytest.approx(6 / 7)
    assert "unet+dice_ce: 1 case failed (case_4), Dice 0." in " ".join(capsys.readouterr().out.split())


def test_cases_that_are_not_compared_alike_are_named_everywhere(manifest, tmp_path, fake, capsys) -> None:
    out = tmp_path / "out"
    evaluate = fake._evaluate
    of_dice = {"case_4": {"failure": "no prediction", "mean_dice": 0.0}, "case_2": {"mean_dice": 0.0}}

    def as_told(on_line: Any, **arguments: Any) -> Ended:
        evaluate(on_line, **arguments)
        path = Path(arguments["out"]) / "metrics.json"
        document = json.loads(path.read_text())
        for case in document["cases"]:
            case |= {"mean_dice": None} if case["id"] in ("case_0", "case_2") else {}
            case |= of_dice.get(case["id"], {}) if "+dice/" in arguments["out"] else {}
        path.write_text(json.dumps(document))
        return Ended(0, {})

    fake._evaluate, fake.shift = as_told, {}
    assert run(words(manifest, out, losses="dice_ce,dice")) == 4
    reference, row = state(out)["results"]["rows"]
    schema = json.loads((ROOT / "docs/schemas/compare.schema.json").read_text())
    Draft202012Validator(schema).validate(state(out))
    assert reference["without_dice"] == ["case_0", "case_2"] and row["without_dice"] == ["case_0"]
    assert list(row["left_out_cases"]) == ["case_0"] and row["left_out"] == 1 and row["cases"] == 6
    assert row["failed_alone"] == {"reference": [], "this": ["case_4"]}
    assert row["difference"]["mean"] == pytest.approx(-2 / 6)  # what is rightly empty counts as 1
    for text in (capsys.readouterr().out, (out / "compare.md").read_text(), (out / "report.html").read_text()):
        said = " ".join(text.split())
        assert "1 case left out (case_0): no Dice on either side" in said
        assert "No fair comparison: 1 case of unet+dice alone failed (case_4)" in said
        assert "unet+dice_ce: 2 cases in no mean (case_0, case_2)" in said


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--steps", "2", "--minutes", "2"), "--steps or --minutes"),
        (("--augment", "none"), "--steps or --minutes"),
        (("--steps", "2", "--folds", "9"), "no fold 9"),
        (("--steps", "2", "--folds", "a"), "--folds takes whole numbers"),
        (("--steps", "2", "--seeds", "-1"), "--seeds takes whole numbers from 0"),
        (("--steps", "2", "--split", "all"), "validation or test"),
        (("--steps", "2", "--split", "test"), "no labelled test case"),
        (("--steps", "2", "--gif", "nobody"), "no such case to animate"),
        (("--steps", "2", "--set", "learning_rat=1"), "unet+dice_ce: id 'learning_rat' is not known"),
        (("--steps", "2", "--set", "max_epochs=5"), "give --steps or --minutes"),
        (("--steps", "2", "--loss", "dicee"), "unet+dicee: no loss fragment"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    manifest, tmp_path, fake, capsys, more: tuple[str, ...], says: str
) -> None:
    assert run(words(manifest, tmp_path / "out", *more)) == 2
    assert says in capsys.readouterr().err
    assert fake.calls == [] and not (tmp_path / "out" / "compare.json").exists()


def test_a_pairing_that_cannot_be_trained_is_refused_before_the_first_training(
    manifest, tmp_path, fake, capsys
) -> None:
    error = {"message": "the Lovász hinge knows yes and no alone", "found": "4 classes", "hint": "use lovasz_softmax"}
    fake.fails[("train", "lovasz_hinge")] = Ended(2, {"error": error})
    assert run(words(manifest, tmp_path / "out", losses="dice,lovasz_hinge")) == 2
    shown = capsys.readouterr().err
    assert "unet+lovasz_hinge cannot be trained" in shown and "use lovasz_softmax" in shown
    assert set(fake.verbs()) == {"train --dry-run"} and not (tmp_path / "out" / "compare.json").exists()
    fake.fails.clear()
    assert run(words(manifest, tmp_path / "out", losses="dice,tversky")) == 0  # the folder is not spoilt


def test_two_files_of_one_name_are_refused(manifest, tmp_path, fake, capsys) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "small.yaml").write_text(NETWORK)
    networks = [word for folder in "ab" for word in ("--network", str(tmp_path / folder / "small.yaml"))]
    assert run(words(manifest, tmp_path / "out", "--steps", "2", *networks)) == 2
    assert "two variants have the same name" in capsys.readouterr().err


def test_minutes_become_epochs_once(manifest, tmp_path, fake, monkeypatch) -> None:
    out = tmp_path / "out"
    assert run(words(manifest, out, "--minutes", "0.1", losses="dice_ce")) == 0
    # 6 s; an epoch takes two steps of 0.1 s, a validation seven cases of 0.01 s: two epochs and a validation, 0.47 s,
    # fit 12 times
    assert state(out)["variants"]["unet+dice_ce"]["epochs"] == {"0": 24}
    assert "0.1 minutes, as the epochs" in (out / "compare.md").read_text()
    assert "--minutes 0.1" in (out / "compare.md").read_text()


@given(st.integers(1, 100_000))
def test_the_last_epoch_is_validated(epochs: int) -> None:
    interval = validation_interval(epochs)
    assert epochs % interval == 0 and (epochs // interval >= 10 or interval == 1)


@given(st.integers(1, 10_000), st.integers(1, 500))
def test_steps_are_met_to_half_an_epoch(steps: int, per_epoch: int) -> None:
    epochs = epochs_for_steps(steps, per_epoch)
    assert epochs >= 1 and (epochs == 1 or abs(epochs * per_epoch - steps) <= per_epoch / 2)


@given(st.floats(0.01, 600), st.floats(0.01, 300), st.floats(0, 300))
def test_minutes_are_kept_and_used(minutes: float, training: float, check: float) -> None:
    def seconds(epochs: int) -> float:
        return epochs * training + epochs // validation_interval(epochs) * check

    epochs = epochs_for_minutes(minutes, training, check)
    assert epochs == 1 or seconds(epochs) <= minutes * 60 * (1 + 1e-9)
    # one more interval of epochs, which is at most a tenth of the run, would not fit
    assert seconds(epochs) + (1 + epochs / 10) * training + (1 + epochs / 10) * check > minutes * 60 * 0.9
