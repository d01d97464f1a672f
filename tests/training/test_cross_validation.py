"""Every fold: each the run that it would be alone, and every case measured once, by the model that left it out."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator

import segpipe
from segpipe.cli.app import run
from segpipe.common.result_folder import SEGMENTATION
from segpipe.common.subprocesses import Ended
from segpipe.errors import DataError, UsageError
from segpipe.evaluation.measure.overlap import dice
from segpipe.training import read_cross_validation, read_out_of_fold, record_candidates, weights_of
from tiny_data import train_arguments
from tiny_folds import Folds, fold_arguments, read, stand_in

SCHEMAS = Path(__file__).parents[2] / "docs/schemas"
SHIFT = {0: 1, 1: 2}


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Folds:
    return stand_in(monkeypatch, SHIFT)


@pytest.fixture(scope="module")
def whole(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folds") / "all"
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, SHIFT, figures=True)
        assert run(fold_arguments(tiny_manifest, out)) == 0
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(weights_of(folder), weights_only=True)


def test_each_fold_is_the_run_that_it_would_be_alone_with_the_weights_of_its_end(whole, tiny_manifest, tmp_path):
    alone = train_arguments(tiny_manifest, tmp_path / "alone", "--epochs", "1", "--fold", "1")
    assert run([*alone, "--set", "keep_weights=last"]) == 0
    assert weights_of(whole / "fold_1").name == "final.pt"
    ours, theirs = weights(whole / "fold_1"), weights(tmp_path / "alone")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for fold, others in ((0, 1), (1, 0)):
        cases = read(whole / f"fold_{fold}" / "run.json")["cases"]
        assert cases["validation"] == [f"case_{number}" for number in range(6) if number % 2 == fold]
        assert cases["training"] == [f"case_{number}" for number in range(6) if number % 2 == others]
    assert [row["status"] for row in read_cross_validation(whole)["folds"]] == ["finished"] * 2


def test_every_case_is_measured_once_by_the_model_that_left_it_out(whole: Path, tiny_manifest: Path) -> None:
    document = read(whole / "out_of_fold.json")
    assert [case["id"] for case in document["cases"]] == [f"case_{number}" for number in range(6)]
    means = {}
    for number, case in enumerate(document["cases"]):
        truth = np.asarray(nib.load(tiny_manifest.parent / f"labels/{case['id']}.nii.gz").dataobj)
        pooled = np.asarray(nib.load(whole / "out_of_fold" / case["id"] / SEGMENTATION).dataobj)
        assert np.array_equal(pooled, np.roll(truth, SHIFT[number % 2], 0))
        scores = [dice(truth == label, pooled == label) for label in (1, 2, 3)]
        assert [label["dice"] for label in case["labels"]] == scores
        assert case["fold"] == number % 2
        means[case["id"]] = np.mean([score for score in scores if score is not None])
        assert case["mean_dice"] == pytest.approx(means[case["id"]])
    assert document["figure"]["raw"]["mean"] == pytest.approx(np.mean(list(means.values())))
    folds = [np.mean([means[f"case_{number}"] for number in range(fold, 6, 2)]) for fold in (0, 1)]
    assert [row["mean_dice"]["mean"] for row in document["folds"]] == pytest.approx(folds)
    assert document["spread"]["sd"] == pytest.approx(np.std(folds, ddof=1))


def test_the_figures_are_those_that_evaluate_gives(whole: Path, tiny_manifest: Path) -> None:
    again = segpipe.evaluate(tiny_manifest, whole / "out_of_fold", split="out_of_fold")
    assert again.summary.document() == read(whole / "out_of_fold.json")["summary"]
    metrics = read(whole / "evaluation" / "metrics.json")
    assert metrics["summary"] == again.summary.document()
    assert metrics["manifest_sha256"] == again.settings["manifest_sha256"]
    assert (whole / "evaluation" / "report.html").is_file()


def test_the_documents_follow_their_schemas(whole: Path, capsys) -> None:
    for name in ("cross_validation", "out_of_fold"):
        schema = read(SCHEMAS / f"{name}.schema.json")
        Draft202012Validator(schema).validate(read(whole / f"{name}.json"))
    assert run(["train", "--resume", str(whole), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    Draft202012Validator(read(SCHEMAS / "train.schema.json")).validate(document)
    assert document["out_of_fold"]["figure"] == read(whole / "out_of_fold.json")["figure"]


def test_the_rules_that_were_tried_are_listed_and_not_applied(whole: Path, tiny_manifest: Path) -> None:
    document = read(whole / "out_of_fold.json")
    assert [each["what"] for each in document["selected"]] == [
        f"post-processing of {label}" for label in ("liver", "kidney", "lesion")
    ]
    assert all(each["candidates"] == 14 for each in document["selected"])
    rules = read(whole / "evaluation" / "postprocessing.json")["rules"]
    assert document["postprocessing"]["rules"] == rules
    assert document["postprocessing"]["applied"] is False


def test_it_says_what_the_figure_is_of_and_that_patients_are_unknown(tiny_manifest, tmp_path, children, capsys) -> None:
    assert run(fold_arguments(tiny_manifest, tmp_path / "run")) == 0
    said = capsys.readouterr()
    assert "not of an ensemble of them nor of a model that was trained on all cases" in said.out
    assert "out-of-fold mean Dice" in said.out
    assert "patients unknown: figures may be too good" in said.err
    assert "of all 2 folds" in said.err
    assert read(tmp_path / "run" / "out_of_fold.json")["patients"] == {
        "known": False,
        "rule": None,
        "note": "patients unknown: figures may be too good",
    }


def test_known_patients_stay_together_and_pseudonyms_do_not_hinder(tiny_manifest, tmp_path, children, capsys) -> None:
    shutil.copytree(tiny_manifest.parent, tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.json"
    document = read(manifest)
    for number, case in enumerate(document["training"]):
        case["patient_id"] = f"patient_{number % 2}_{number // 4}"
    document["pseudonymised"] = True
    manifest.write_text(json.dumps(document))
    assert run(fold_arguments(manifest, tmp_path / "run")) == 0
    said = capsys.readouterr()
    assert "patients unknown" not in said.out + said.err
    found = read(tmp_path / "run" / "out_of_fold.json")
    assert found["patients"]["known"] is True
    assert [(row["cases"], row["patients"]) for row in found["folds"]] == [(3, 2), (3, 2)]
    (tmp_path / "run" / "out_of_fold.json").unlink()
    assert run(["train", "--resume", str(tmp_path / "run")]) == 0
    assert read(tmp_path / "run" / "out_of_fold.json") == found
    document["training"][0]["patient_id"] = document["training"][1]["patient_id"]
    manifest.write_text(json.dumps(document))
    assert run([*fold_arguments(manifest, tmp_path / "torn"), "--dry-run"]) == 0
    assert "1 of 4 patients have cases in several folds: figures may be too good" in capsys.readouterr().err
    named = [path for path in (tmp_path / "run").glob("*.json") if str(tmp_path / "data") in path.read_text()]
    assert named == []


def test_what_is_finished_is_kept_and_what_is_not_goes_on(whole, tmp_path, children) -> None:
    out = tmp_path / "stopped"
    shutil.copytree(whole, out)
    record = read(out / "fold_0" / "run.json")
    (out / "fold_0" / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    shutil.rmtree(out / "fold_1")
    (out / "out_of_fold.json").unlink()
    assert run(["train", "--resume", str(out)]) == 0
    again = [("train", "fold_0"), ("train", "fold_1")]
    assert children.calls == again  # the predictions are by the same weights
    ours, theirs = weights(out / "fold_1"), weights(whole / "fold_1")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read(out / "out_of_fold.json") == read(whole / "out_of_fold.json")
    assert run(["train", "--resume", str(out)]) == 0
    assert children.calls == again


def test_a_fold_of_other_weights_is_predicted_anew(whole, tmp_path, children) -> None:
    out = tmp_path / "changed"
    shutil.copytree(whole, out)
    state = {name: tensor + 1 for name, tensor in weights(out / "fold_1").items()}
    torch.save(state, out / "fold_1" / "final.pt")
    left = out / "measured" / "fold_1" / "predictions" / "case_1" / SEGMENTATION
    left.write_bytes(b"of the model before")
    assert run(["train", "--resume", str(out)]) == 0
    assert children.calls == [("export", "fold_1"), ("predict", "fold_1")]
    assert left.read_bytes() != b"of the model before"


def test_some_folds_grow_into_all(whole, tiny_manifest, tmp_path, children, capsys) -> None:
    out = tmp_path / "grown"
    assert run(fold_arguments(tiny_manifest, out, folds="0")) == 0
    said = capsys.readouterr()
    assert f"next: segpipe export {out / 'fold_0'} BUNDLE" in said.out  # one fold is no ensemble
    assert "of all" not in said.err
    first = read_out_of_fold(out)
    assert [case["id"] for case in first["cases"]] == ["case_0", "case_2", "case_4"]
    assert [row["fold"] for row in first["folds"]] == [0]
    assert first["manifest_sha256"] == read_out_of_fold(whole)["manifest_sha256"]
    given_up = tmp_path / "given_up"
    shutil.copytree(out, given_up)
    assert run(fold_arguments(tiny_manifest, out, folds="1")) == 0  # the one that is there stays part of it
    assert [call for call in children.calls if call[0] == "train"] == [("train", "fold_0"), ("train", "fold_1")]
    assert read_out_of_fold(out) == read_out_of_fold(whole)
    assert [row["fold"] for row in read_cross_validation(out)["folds"]] == [0, 1]
    found = record_candidates(out, {"kept": out, "given up": given_up}, "kept")
    assert [(each["name"], each["folds"]) for each in found["selected"][0]["candidates"]] == [
        ("kept", [0, 1]),
        ("given up", [0]),
    ]


def test_a_case_without_a_prediction_counts_as_nothing_found(whole, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "failing"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "measured" / "fold_1" / "predictions")
    (out / "out_of_fold.json").unlink()
    stand_in(monkeypatch, {0: 1, 1: None})
    assert run(["train", "--resume", str(out)]) == 4
    assert "case_1" in capsys.readouterr().err
    found = {case["id"]: case for case in read(out / "out_of_fold.json")["cases"]}
    assert found["case_1"]["mean_dice"] == 0
    assert found["case_1"]["failure"] == "no prediction"
    assert found["case_0"]["mean_dice"] > 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--set", "keep_weights=best"), "keep_weights"),
        (("--set", "early_stop_patience=3"), "early_stop_patience"),
        (("--seeds", "2"), "--seeds"),
        (("--fold", "1"), "--fold"),
        (("--folds", "0,7"), "[7]"),
        (("--folds", "some"), "some"),
        (("--fold", "first"), "first"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(
    tiny_manifest, tmp_path, children, capsys, more, words
) -> None:
    assert run([*fold_arguments(tiny_manifest, tmp_path / "run"), *more]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert children.calls == []


def test_another_config_or_more_epochs_are_refused(whole, tiny_manifest, children, capsys) -> None:
    assert run(fold_arguments(tiny_manifest, whole, "--set", "learning_rate=0.5")) == 2
    assert "learning_rate" in capsys.readouterr().err
    assert run(["train", "--resume", str(whole), "--epochs", "9"]) == 2
    assert "folds are not extended" in capsys.readouterr().err
    assert run(["train", "--resume", str(whole / "fold_0"), "--epochs", "9"]) == 2
    assert "one of several folds" in capsys.readouterr().err
    assert run(fold_arguments(tiny_manifest, whole / "fold_0")) == 2
    assert "single run" in capsys.readouterr().err
    assert children.calls == []


def test_a_manifest_without_folds_is_refused_with_what_to_do(tiny_manifest, tmp_path, children, capsys) -> None:
    shutil.copytree(tiny_manifest.parent, tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.json"
    document = read(manifest)
    for case in document["training"]:
        del case["fold"]
    manifest.write_text(json.dumps(document))
    assert run(fold_arguments(manifest, tmp_path / "run")) == 2
    assert "segpipe split" in capsys.readouterr().err
    assert run(["split", str(manifest), "--test", "keep", "--folds", "2"]) == 0
    assert run([*fold_arguments(manifest, tmp_path / "run"), "--explain"]) == 0


def test_a_failure_and_an_interruption_end_it_and_it_goes_on(tiny_manifest, tmp_path, children, capsys) -> None:
    out = tmp_path / "run"
    children.instead = {"fold_0": Ended(3, {"error": {"message": "the image has NaN", "case_id": "case_1"}})}
    assert run(fold_arguments(tiny_manifest, out)) == 3
    assert "fold 0: the image has NaN" in capsys.readouterr().err
    children.instead = {"fold_1": KeyboardInterrupt()}
    assert run(fold_arguments(tiny_manifest, out)) == 130
    assert f"segpipe train --resume {out}" in capsys.readouterr().err
    assert [row["status"] for row in read_cross_validation(out)["folds"]] == ["finished", "running"]
    children.instead = {}
    assert run(["train", "--resume", str(out)]) == 0
    assert read_out_of_fold(out)["figure"]["raw"]["n"] == 6


def test_the_choice_among_trainings_is_recorded_and_corrected_for(whole, tmp_path) -> None:
    out, other, partial = (tmp_path / name for name in ("one", "two", "three"))
    for folder in (out, other, partial):
        shutil.copytree(whole, folder)
    document = read(other / "out_of_fold.json")
    for number, case in enumerate(document["cases"]):
        case["mean_dice"] += -0.05 if number % 3 else 0.04
    (other / "out_of_fold.json").write_text(json.dumps(document))
    document["cases"] = [case for case in document["cases"] if case["fold"] == 0]
    document["folds"] = document["folds"][:1]
    (partial / "out_of_fold.json").write_text(json.dumps(document))
    before = read(out / "out_of_fold.json")
    found = record_candidates(out, {"wide": out, "deep": other, "early": partial}, "wide")
    assert found == read(out / "out_of_fold.json")
    assert found["figure"]["raw"] == before["figure"]["raw"]
    assert found["figure"]["candidates"] == 3
    assert found["figure"]["corrected"]["mean"] != before["figure"]["corrected"]["mean"]
    assert found["selected"][0]["chosen"] == "wide"
    assert [(each["name"], each["cases"]) for each in found["selected"][0]["candidates"]] == [
        ("wide", 6),
        ("deep", 6),
        ("early", 3),
    ]
    assert found["selected"][1:] == before["selected"]
    Draft202012Validator(read(SCHEMAS / "out_of_fold.schema.json")).validate(found)
    assert record_candidates(out, {"wide": out, "deep": other, "early": partial}, "wide") == found
    document["manifest_sha256"] = "0" * 64
    (partial / "out_of_fold.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="another data set"):
        record_candidates(out, {"wide": out, "early": partial}, "wide")


def test_what_is_no_cross_validation_is_said(tmp_path, capsys) -> None:
    row = {"fold": 0, "folder": "fold_0", "status": "waiting", "epochs": 0}
    for content in ({}, {"folds": []}, {"folds": [row, row]}, {"folds": [{"fold": 0}]}):
        (tmp_path / "cross_validation.json").write_text(json.dumps(content))
        with pytest.raises(DataError):
            read_cross_validation(tmp_path)
        assert run(["train", "--resume", str(tmp_path)]) == 3
    (tmp_path / "cross_validation.json").write_text(json.dumps({"folds": [row]}))
    assert run(["train", "--resume", str(tmp_path)]) == 2
    assert "first command" in capsys.readouterr().err
    (tmp_path / "out_of_fold.json").write_text("{}")
    with pytest.raises(DataError):
        read_out_of_fold(tmp_path)


def test_figures_that_cannot_be_read_are_made_again(whole, tmp_path, children, capsys) -> None:
    out, sound = tmp_path / "half", read(whole / "out_of_fold.json")
    shutil.copytree(whole, out)
    half = (whole / "out_of_fold.json").read_text()[:500]
    for content in (half, json.dumps({**sound, "figure": {}}), json.dumps({**sound, "folds": [1, 2]}), "[]"):
        (out / "out_of_fold.json").write_text(content)
        with pytest.raises(DataError) as caught:
            read_out_of_fold(out)
        assert caught.value.hint == f"measure the cases anew: `segpipe train --resume {out}`"
        assert run(["train", "--resume", str(out)]) == 0
        assert "measuring the cases anew" in capsys.readouterr().err
        assert read(out / "out_of_fold.json") == sound
    assert children.calls == []  # what was predicted is kept


def test_a_record_that_cannot_be_read_is_made_again_as_its_hint_says(whole, tiny_manifest, tmp_path, children, capsys):
    out = tmp_path / "half"
    shutil.copytree(whole, out)
    for content in ("", '{"folds": [', "{}"):
        (out / "cross_validation.json").write_text(content)
        for words in (["train", "--resume", str(out)], fold_arguments(tiny_manifest, out)):
            assert run(words) == 3
            assert f"remove it and give the first command again, with --out {out}" in capsys.readouterr().err
    (out / "cross_validation.json").unlink()
    assert run(fold_arguments(tiny_manifest, out)) == 0
    assert read(out / "cross_validation.json") == read(whole / "cross_validation.json")
    assert children.calls == []


def test_weights_that_are_gone_are_trained_anew_as_the_hint_says(whole, tmp_path, children, capsys) -> None:
    out = tmp_path / "gone"
    shutil.copytree(whole, out)
    (out / "fold_1" / "final.pt").unlink()
    assert run(["train", "--resume", str(out)]) == 2
    said = capsys.readouterr().err
    assert "its weights are gone" in said and "remove the folder fold_1" in said
    shutil.rmtree(out / "fold_1")
    assert run(["train", "--resume", str(out)]) == 0
    assert read(out / "out_of_fold.json") == read(whole / "out_of_fold.json")


def test_two_processes_do_not_work_in_one_folder(whole, tiny_manifest, tmp_path, children, capsys) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    with (out / ".lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for words in (["train", "--resume", str(out)], fold_arguments(tiny_manifest, out)):
            assert run(words) == 2
            assert "another process works in this folder" in capsys.readouterr().err
    assert run(["train", "--resume", str(out)]) == 0
    assert children.calls == []


def test_more_threads_than_cores_are_said(tiny_manifest, tmp_path, children, monkeypatch, capsys) -> None:
    monkeypatch.setattr("segpipe.training.training_run.usable_cores", lambda: 2)
    children.instead = {"fold_0": Ended(3, {"error": {"message": "enough"}})}
    assert run([*fold_arguments(tiny_manifest, tmp_path / "run", "--jobs", "3")]) == 3
    assert "3 runs at the same time, with 1 threads each, share 2 cores" in capsys.readouterr().err


def test_a_dry_run_and_an_explanation_are_of_the_first_fold(tiny_manifest, tmp_path, children, capsys) -> None:
    assert run([*fold_arguments(tiny_manifest, tmp_path / "run"), "--dry-run"]) == 0
    assert run([*fold_arguments(tiny_manifest, tmp_path / "run"), "--explain", "--json"]) == 0
    out = capsys.readouterr().out
    config = json.loads(out[out.index('{\n  "schema_version"') :])["config"]
    assert (config["fold"], config["keep_weights"]) == (0, "last")
    assert not (tmp_path / "run").exists()
    assert children.calls == []
