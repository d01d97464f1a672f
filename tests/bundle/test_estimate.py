"""A model that left no case out shows the figures of fold models as theirs, or says that it has none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from tiny_ensemble import write_folds, write_out_of_fold
from tiny_run import record_as_trained

from segpipe.bundle import Bundle
from segpipe.bundle.exporting.write import export
from segpipe.bundle.verify import verify_bundle
from segpipe.bundle.vet import write_sums
from segpipe.cli.app import run
from segpipe.common.files import write_json
from segpipe.errors import REFUSED, DataError, RefusedError, UsageError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folds(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folds(run_folder, tmp_path_factory.mktemp("cross") / "cv")
    write_out_of_fold(folder)
    return folder


@pytest.fixture(scope="module")
def all_cases(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `segpipe train --fold none` leaves it."""
    folder = Path(shutil.copytree(run_folder, tmp_path_factory.mktemp("all") / "run"))
    (folder / "best.pt").rename(folder / "final.pt")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "fold": None, "keep_weights": "last"})
    record = json.loads((folder / "run.json").read_text())
    training = [case["id"] for case in json.loads((folder / "manifest.json").read_text())["training"]]
    whole = {"fold": None, "best": None, "cases": {"training": training, "validation": []}}
    write_json(folder / "run.json", {**record, **whole})
    record_as_trained(folder)
    return folder


@pytest.fixture(scope="module")
def ensemble(folds: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(folds, tmp_path_factory.mktemp("bundles") / "ensemble")


def card(root: Path) -> str:
    return (root / "docs/README.md").read_text()


def plain(text: str) -> str:
    return " ".join(text.split())


def conforms(root: Path) -> bool:
    documents = {
        "configs/metadata.json": REPOSITORY / "pipeline/segpipe/schemas/bundle_metadata.schema.json",
        "provenance.json": REPOSITORY / "docs/schemas/provenance.schema.json",
    }
    return all(
        Draft202012Validator(json.loads(schema.read_text())).is_valid(json.loads((root / name).read_text()))
        for name, schema in documents.items()
    )


def change(path: Path, **values: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **values})


def test_an_ensemble_shows_its_folds_figures_as_theirs(ensemble: Bundle) -> None:
    bundle, text = ensemble, card(ensemble.root)
    assert "No validation figure of this ensemble" in text and "not of this ensemble" in text
    assert "| as measured | 0.871 [0.850, 0.890] |" in text
    assert "| corrected for the choice among 3 trainings | 0.864 [0.842, 0.884] |" in text
    assert "Chosen by them: training: second, of 3." in text
    assert "Tried on them, and not applied here: post-processing of right part: none, of 14." in text
    assert "Correction: by a bootstrap over patients." in text
    assert "4 cases of unknown patients, each by the model that did not see it" in text
    assert "**Patients unknown: figures may be too good.**" in text
    assert "its fold models have mean Dice 0.864 [0.842, 0.884] on the cases that they left out" in text
    assert "`models/member_1.pt`" in text and "`models/model.pt`" not in text
    assert "2, whose probabilities are averaged: fold 0 left out (seed 0), fold 1 left out (seed 0)" in text
    assert "best mean Dice over the validation cases" not in text
    assert bundle.metadata["eval_metrics"] == {} and bundle.metadata["results"] is None
    assert bundle.metadata["training_data"]["training_cases"] == 4
    assert bundle.metadata["training_data"]["validation_cases"] is None
    assert conforms(bundle.root)


def test_rules_that_the_bundle_applies_are_among_what_was_chosen(folds: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "rules.json", {"schema_version": 1, "rules": {"2": {"keep_largest": True}}})
    bundle = export(folds, tmp_path / "ensemble", postprocessing=tmp_path / "rules.json")
    text = plain(card(bundle.root))
    assert "Chosen by them: post-processing of right part: none, of 14." in text
    assert "they are 0.881 as measured, and 0.871 corrected for the choice of rules" in text
    assert conforms(bundle.root)


def test_without_figures_it_says_that_there_are_none(run_folder: Path, all_cases: Path, tmp_path: Path) -> None:
    ensemble = export(write_folds(run_folder, tmp_path / "cv"), tmp_path / "ensemble")
    single = export(all_cases, tmp_path / "single")
    for bundle in (ensemble, single):
        assert "No validation figure of this model: all its 4 cases were trained on." in card(bundle.root)
        assert "estimate" not in bundle.metadata and conforms(bundle.root)
        assert verify_bundle(bundle.root).exit_code == 0
    assert "as measured" not in card(single.root)


def test_a_model_of_all_cases_is_estimated_by_the_folds(folds: Path, all_cases: Path, tmp_path: Path) -> None:
    for fold in folds.glob("fold_*"):
        assert not (fold / "final.pt").exists()
    last = like(folds, tmp_path / "cv")
    bundle = export(all_cases, tmp_path / "single", estimated_by=last)
    text = plain(card(bundle.root))
    assert "No validation figure of this model: it was trained on all 4 cases." in text
    assert "estimated by 2 models of the same training, each without one fold" in text
    assert "theirs, not this model's" in text and "| as measured | 0.871 [0.850, 0.890] |" in card(bundle.root)
    assert bundle.metadata["estimate"]["corrected"] == {"value": 0.86423, "low": 0.84211, "high": 0.88404}
    assert not bundle.members and (bundle.root / "models/model.pt").is_file()
    assert conforms(bundle.root)
    tie = json.loads((bundle.root / "provenance.json").read_text())["estimate"]
    assert [row["fold"] for row in tie["folds"]] == [0, 1]


def like(folds: Path, to: Path) -> Path:
    """The same cross-validation, whose folds kept their last weights."""
    copy = Path(shutil.copytree(folds, to))
    for fold in copy.glob("fold_*"):
        (fold / "best.pt").rename(fold / "final.pt")
        change(fold / "config.json", keep_weights="last")
        record_as_trained(fold)
    write_out_of_fold(copy)
    return copy


def test_figures_of_another_training_are_refused(folds: Path, all_cases: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="another training") as caught:
        export(all_cases, tmp_path / "out", estimated_by=folds)
    assert "keep_weights" in str(caught.value.found)
    other = like(folds, tmp_path / "cv")
    for fold in other.glob("fold_*"):
        change(fold / "config.json", patch_size=[32, 16, 16], max_epochs=7, val_interval=3, threads=1)
        record_as_trained(fold)
    with pytest.raises(RefusedError, match="another training") as caught:
        export(all_cases, tmp_path / "out", estimated_by=other)
    assert caught.value.found == "other: patch_size"  # a length of its own is no other training
    assert not (tmp_path / "out").exists()


def test_another_length_is_no_other_training_and_is_said(folds: Path, all_cases: Path, tmp_path: Path) -> None:
    other = like(folds, tmp_path / "cv")
    for fold in other.glob("fold_*"):
        change(fold / "config.json", max_epochs=7)
        record_as_trained(fold)
    longer = export(all_cases, tmp_path / "longer", estimated_by=other)
    assert "each without one fold, and of another length; the figures below are theirs" in card(longer.root)
    assert conforms(longer.root)


def test_figures_of_other_weights_are_refused(folds: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folds, tmp_path / "cv"))
    shutil.copy(copy / "fold_0/best.pt", copy / "fold_1/best.pt")
    with pytest.raises(RefusedError, match="not of the weights that the folds have now") as caught:
        export(copy, tmp_path / "out")
    assert "fold_1" in str(caught.value.found) and f"segpipe train --resume {copy}" in str(caught.value.hint)


def test_what_needs_no_estimate_gets_none(folds: Path, all_cases: Path, run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="left cases out"):
        export(run_folder, tmp_path / "out", estimated_by=folds)
    with pytest.raises(UsageError, match="its own folds"):
        export(folds, tmp_path / "out", estimated_by=all_cases)
    with pytest.raises(UsageError, match="not a measured cross-validation"):
        export(all_cases, tmp_path / "out", estimated_by=run_folder)
    bare = write_folds(run_folder, tmp_path / "cv")
    with pytest.raises(UsageError, match="not a measured cross-validation") as caught:
        export(all_cases, tmp_path / "out", estimated_by=bare)
    assert "no out_of_fold.json" in str(caught.value.found)


def test_verify_finds_an_estimate_that_was_changed(ensemble: Bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(ensemble.root, tmp_path / "changed"))
    assert verify_bundle(root).exit_code == 0
    metadata = json.loads((root / "configs/metadata.json").read_text())
    metadata["estimate"]["corrected"]["value"] = 0.95
    write_json(root / "configs/metadata.json", metadata)
    write_sums(root)
    found = verify_bundle(root)
    assert found.exit_code == REFUSED
    assert [check.name for check in found.checks if check.findings] == ["figures"]


def test_verify_finds_members_that_changed_places(ensemble: Bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(ensemble.root, tmp_path / "swapped"))
    first, second = (root / f"models/member_{index}.pt" for index in range(2))
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    write_sums(root)
    found = verify_bundle(root)
    assert found.exit_code == REFUSED
    assert [finding.place for finding in found.findings] == ["members::0", "members::1"]


def test_verify_finds_a_member_that_is_named_in_place_of_another(ensemble: Bundle, tmp_path: Path) -> None:
    root = Path(shutil.copytree(ensemble.root, tmp_path / "twice"))
    first = json.loads((root / "configs/metadata.json").read_text())["members"][0]
    change(root / "configs/metadata.json", members=[first, first])
    write_sums(root)
    found = verify_bundle(root)
    assert found.exit_code == REFUSED and [finding.place for finding in found.findings] == ["members"]


def test_a_figure_that_is_not_that_of_its_cases_is_refused(folds: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folds, tmp_path / "c v"))
    figure = json.loads((copy / "out_of_fold.json").read_text())["figure"]
    change(copy / "out_of_fold.json", figure={**figure, "raw": {**figure["raw"], "mean": 0.95}})
    with pytest.raises(RefusedError, match="not the mean of its cases") as caught:
        export(copy, tmp_path / "out")
    assert f"segpipe train --resume '{copy}'" in str(caught.value.hint)  # as a shell takes it


def test_patients_in_several_folds_are_no_unknown_patients(folds: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folds, tmp_path / "cv"))
    torn = "1 of 4 patients have cases in several folds: figures may be too good"
    change(copy / "out_of_fold.json", patients={"known": True, "rule": "pairs", "note": torn})
    export(copy, tmp_path / "out")
    text = plain(card(tmp_path / "out"))
    assert "4 cases of 4 patients" in text and "interval over patients" in text and f"**{torn}.**" in text
    export(folds, tmp_path / "unknown")
    assert "4 cases of unknown patients" in (text := plain(card(tmp_path / "unknown")))
    assert "interval over cases" in text


def test_the_card_rounds_a_figure_once(folds: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folds, tmp_path / "cv"))
    figure = json.loads((copy / "out_of_fold.json").read_text())["figure"]
    change(copy / "out_of_fold.json", figure={**figure, "raw": {**figure["raw"], "low": 0.85347, "high": 0.89352}})
    export(copy, tmp_path / "out")
    assert "| as measured | 0.871 [0.853, 0.894] |" in card(tmp_path / "out")


@pytest.mark.parametrize("names", [("fold_0", "fold_1", "fold_1"), ("fold_0", "../fold_1"), ("fold_0", "/fold_1")])
def test_folds_that_are_named_twice_or_lie_elsewhere_are_refused(folds: Path, tmp_path: Path, names: Any) -> None:
    copy = Path(shutil.copytree(folds, tmp_path / "cv"))
    change(copy / "cross_validation.json", folds=[{"fold": k, "folder": name} for k, name in enumerate(names)])
    with pytest.raises(DataError, match="not a record of a cross-validation"):
        export(copy, tmp_path / "out")


def test_a_fold_under_another_name_is_no_further_member(folds: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folds, tmp_path / "cv"))
    shutil.rmtree(copy / "fold_1")
    shutil.copytree(copy / "fold_0", copy / "fold_1")
    with pytest.raises(RefusedError, match="left out the same fold"):
        export(copy, tmp_path / "out")


def test_weights_that_are_not_finite_are_no_member(run_folder: Path, tmp_path: Path) -> None:
    copy = write_folds(run_folder, tmp_path / "cv")
    state = torch.load(copy / "fold_1/best.pt", weights_only=True)
    torch.save({name: tensor * float("nan") for name, tensor in state.items()}, copy / "fold_1/best.pt")
    with pytest.raises(DataError, match="not finite") as caught:
        export(copy, tmp_path / "out")
    assert caught.value.path == str(copy / "fold_1/best.pt")


def test_folds_that_were_not_trained_alike_are_named(folds: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folds, tmp_path / "cv"))
    change(copy / "fold_1/config.json", loss_name="other", patch_size=[16, 16, 32])
    record_as_trained(copy / "fold_1")
    with pytest.raises(RefusedError, match="not trained alike") as caught:
        export(copy, tmp_path / "out")
    assert caught.value.found == "other than in fold_0: loss_name, patch_size"


def test_unfinished_folds_are_refused_with_the_way_on(folds: Path, tmp_path: Path, capsys: Any) -> None:
    copy = Path(shutil.copytree(folds, tmp_path / "cv"))
    change(copy / "fold_1/run.json", status="interrupted")
    (copy / "fold_1/best.pt").unlink()
    assert run(["export", str(copy), str(tmp_path / "out")]) == REFUSED
    said = plain(capsys.readouterr().err)
    assert "not finished" in said and f"segpipe train --resume {copy}" in said
    shutil.rmtree(copy / "fold_1")
    assert run(["export", str(copy), str(tmp_path / "out")]) == REFUSED
    assert f"segpipe train --resume {copy}" in plain(capsys.readouterr().err)
    change(copy / "cross_validation.json", folds=[{"fold": 0, "folder": "../elsewhere"}])
    assert run(["export", str(copy), str(tmp_path / "out")]) == 3
    change(copy / "cross_validation.json", folds=[{"fold": 0, "folder": "fold_0"}])
    assert run(["export", str(copy), str(tmp_path / "out")]) == 2
    assert f"segpipe export {copy}/fold_0 OUT" in plain(capsys.readouterr().err)


def test_a_run_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such run folder"):
        export(tmp_path / "none", tmp_path / "out")
