"""A card must not lie: figures get into it only where they are tied to these weights and to cases left out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import record_as_trained, with_test_cases, write_predictions, write_truth

from segpipe.bundle import Bundle
from segpipe.bundle.exporting.write import export
from segpipe.bundle.verify import verify_bundle
from segpipe.bundle.vet.documents import write_sums
from segpipe.cli.app import run as segpipe
from segpipe.common.files import sha256_of, write_json
from segpipe.evaluation import evaluate


class Study:
    """A run, its bundle without figures, the truth, and honest predictions of it with their evaluation."""

    def __init__(self, root: Path, run_folder: Path) -> None:
        self.run, self.data = root / "run", root / "data"
        shutil.copytree(run_folder, self.run)
        with_test_cases(self.run)
        write_truth(self.run, self.data)
        self.bundle: Bundle = export(self.run, root / "bundle")
        self.predictions = write_predictions(root / "predictions", self.bundle, self.run, self.data)
        self.metrics = self.measure(root / "metrics", self.predictions)

    def measure(self, out: Path, predictions: Path, manifest: Path | None = None, **options: Any) -> Path:
        evaluate(manifest or self.run / "manifest.json", predictions, data=self.data, out=out, figures=False, **options)
        return out


@pytest.fixture(scope="module")
def study(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("study"), run_folder)


@pytest.fixture(scope="module")
def carded(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(study.run, tmp_path_factory.mktemp("carded") / "bundle", evaluation=study.metrics).root


def refused(study: Study, tmp_path: Path, metrics: Path, capsys: pytest.CaptureFixture[str], *options: object) -> str:
    words = ("export", study.run, tmp_path / "out", "--evaluation", metrics, *options)
    assert segpipe([*map(str, words)]) == 5
    assert not (tmp_path / "out").exists()
    return capsys.readouterr().err


def test_what_this_bundle_predicted_gets_into_its_card(carded: Path, study: Study) -> None:
    card, record = (carded / "docs/README.md").read_text(), json.loads((carded / "provenance.json").read_text())
    assert "held out of the training" in card and "(runtime torch)" in card
    tie = record["evaluation"]
    assert tie["made_by"]["bundle"]["sha256"] == study.bundle.sha256
    assert tie["made_by"]["files"] == {
        name: sha256_of(carded / name) for name in ("configs/inference.json", "models/model.pt")
    }
    assert tie["cases"] == [f"case_{i}" for i in range(4)]
    check = next(check for check in verify_bundle(carded).checks if check.name == "figures")
    assert check.status == "passed"


def test_the_manifest_in_the_bundle_is_as_good_as_that_of_the_run(study: Study, tmp_path: Path) -> None:
    """Its card says to measure with that one."""
    metrics = study.measure(tmp_path / "metrics", study.predictions, study.bundle.root / "configs/manifest.json")
    assert "held out" in (export(study.run, tmp_path / "out", evaluation=metrics).root / "docs/README.md").read_text()


def truth_copied_flat(study: Study, out: Path) -> Path:
    return Path(shutil.copytree(study.data / "labels", out))


def truth_copied_over_results(study: Study, out: Path) -> Path:
    shutil.copytree(study.predictions, out)
    for folder in out.iterdir():
        shutil.copy(study.data / "labels" / f"{folder.name}.nii.gz", folder / "segmentation.nii.gz")
    return out


def truth_with_a_forged_hash(study: Study, out: Path) -> Path:
    for folder in truth_copied_over_results(study, out).iterdir():
        result = json.loads((folder / "result.json").read_text())
        result["sha256"]["segmentation.nii.gz"] = sha256_of(folder / "segmentation.nii.gz")
        write_json(folder / "result.json", result)
    return out


def one_without_result(study: Study, out: Path) -> Path:
    shutil.copytree(study.predictions, out)
    (out / "case_2/result.json").unlink()
    return out


def two_swapped(study: Study, out: Path) -> Path:
    shutil.copytree(study.predictions, out)
    shutil.rmtree(out / "case_1")
    shutil.copytree(out / "case_0", out / "case_1")
    return out


def of_two_models(study: Study, out: Path) -> Path:
    shutil.copytree(study.predictions, out)
    result = json.loads((out / "case_3/result.json").read_text())
    result["mirror"] = ["x"]
    write_json(out / "case_3/result.json", result)
    return out


def of_an_older_version(study: Study, out: Path) -> Path:
    shutil.copytree(study.predictions, out)
    result = json.loads((out / "case_0/result.json").read_text())
    del result["model"]
    write_json(out / "case_0/result.json", result)
    return out


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (truth_copied_flat, "no result.json"),
        (truth_copied_over_results, "is not the file that `segpipe predict` wrote"),
        (truth_with_a_forged_hash, "it is the file of the truth"),
        (one_without_result, "case_2: no result.json"),
        (two_swapped, "case_1: its result.json is of another case"),
        (of_two_models, "of several models"),
        (of_an_older_version, "case_0: its result.json, of an older version"),
    ],
)
def test_label_maps_of_unknown_make_are_refused(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], attack: Callable[[Study, Path], Path], words: str
) -> None:
    metrics = study.measure(tmp_path / "metrics", attack(study, tmp_path / "predictions"))
    document = json.loads((metrics / "metrics.json").read_text())["predictions"]
    assert document["made_by"] is None and document["untied"]
    said = " ".join(refused(study, tmp_path, metrics, capsys).split())
    assert words in said and "export without --evaluation" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"files": {"models/model.pt": "0" * 64}}, "other weights"),
        ({"files": {"configs/inference.json": "0" * 64}}, "other settings"),
        ({"postprocessing": [{"_target_": "KeepLargestConnectedComponentd"}]}, "other post-processing"),
    ],
)
def test_another_model_is_refused(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    files = {**study.bundle.model["files"], **change.get("files", {})}
    model = {**study.bundle.model, **change, "files": files}
    made = write_predictions(tmp_path / "predictions", study.bundle, study.run, study.data, model=model)
    assert words in refused(study, tmp_path, study.measure(tmp_path / "metrics", made), capsys)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mirror": ["x", "y"]}, "--mirror x,y"),
        ({"ensemble": [{"name": "b", "version": "1", "sha256": "1" * 64}]}, "2 bundles"),
    ],
)
def test_what_the_bundle_does_not_do_by_itself_is_refused(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    made = write_predictions(tmp_path / "predictions", study.bundle, study.run, study.data, **change)
    assert words in refused(study, tmp_path, study.measure(tmp_path / "metrics", made), capsys)


def test_rules_that_are_added_afterwards_take_the_figures_away(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "rules.json"
    write_json(rules, {"schema_version": 1, "rules": {"1": {"keep_largest": True, "min_volume_ml": None}}})
    said = refused(study, tmp_path, study.metrics, capsys, "--postprocessing", rules)
    assert "other post-processing" in said and "KeepLargestConnectedComponentd" in said
    with_rules = export(study.run, tmp_path / "first", postprocessing=rules)  # the hint, followed
    made = write_predictions(tmp_path / "predictions", with_rules, study.run, study.data)
    metrics = study.measure(tmp_path / "metrics", made)
    assert export(study.run, tmp_path / "second", postprocessing=rules, evaluation=metrics).metadata["results"]


@pytest.mark.parametrize("what", ["summary", "split", "cases"])
def test_a_changed_evaluation_is_refused(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    document = json.loads((study.metrics / "metrics.json").read_text())
    if what == "summary":
        document["summary"]["overall"]["metrics"]["dice"]["mean"] = 0.999
    elif what == "split":
        document["split"] = "validation"
    else:
        document["cases"].pop()
    write_json(tmp_path / "metrics/metrics.json", document)
    assert "was changed after" in refused(study, tmp_path, tmp_path / "metrics", capsys)


def test_one_that_names_no_model_is_refused(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((study.metrics / "metrics.json").read_text())
    del document["predictions"], document["content_sha256"]
    write_json(tmp_path / "metrics/metrics.json", document)
    assert "does not say which model" in refused(study, tmp_path, tmp_path / "metrics", capsys)


def other_manifest(study: Study, path: Path, **changes: Any) -> Path:
    document = json.loads((study.run / "manifest.json").read_text())
    write_json(path, {**document, "name": "elsewhere", **changes})
    return path


def test_other_labels_are_refused(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"0": "background", "1": "liver", "2": "spleen"}
    elsewhere = other_manifest(study, tmp_path / "manifest.json", labels=labels)
    metrics = study.measure(tmp_path / "metrics", study.predictions, elsewhere)
    said = refused(study, tmp_path, metrics, capsys)
    assert "other labels" in said and "1 liver" in said


def test_cases_that_were_trained_on_are_refused(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((study.run / "manifest.json").read_text())
    as_test = [{key: case[key] for key in ("id", "image", "label")} for case in document["training"]]
    by_id = other_manifest(study, tmp_path / "by_id.json", training=[], test=as_test)
    by_image = other_manifest(study, tmp_path / "by_image.json", training=[])  # the same scan by another name
    seen = write_predictions(tmp_path / "seen", study.bundle, study.run, study.data, source_sha256=[f"{1:064}"])
    for manifest, predictions in ((by_id, study.predictions), (by_image, seen)):
        if manifest == by_id:
            predictions = Path(shutil.copytree(study.predictions, tmp_path / "renamed"))
            for index, case in enumerate(as_test):
                folder = (predictions / f"case_{index}").rename(predictions / case["id"])
                result = json.loads((folder / "result.json").read_text())
                write_json(folder / "result.json", {**result, "id": case["id"]})
        metrics = study.measure(tmp_path / f"metrics_{manifest.stem}", predictions, manifest)
        assert "the training left out" in refused(study, tmp_path, metrics, capsys)


def test_a_patient_who_was_trained_on_is_not_held_out(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segpipe.evaluation.cohort.require_apart", str)  # as versions before measured it
    run = Path(shutil.copytree(study.run, tmp_path / "run"))
    document = json.loads((run / "manifest.json").read_text())
    document["test"][0]["patient_id"] = next(case["patient_id"] for case in document["training"] if case["fold"] != 0)
    write_json(run / "manifest.json", document)
    record_as_trained(run)
    metrics = study.measure(tmp_path / "metrics", study.predictions, run / "manifest.json")
    assert segpipe(["export", str(run), str(tmp_path / "out"), "--evaluation", str(metrics)]) == 5
    assert "the training left out" in capsys.readouterr().err


def test_a_choice_of_cases_is_refused(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((study.run / "manifest.json").read_text())
    fewer = other_manifest(study, tmp_path / "manifest.json", test=document["test"][:2])
    metrics = study.measure(tmp_path / "metrics", study.predictions, fewer)
    assert "not of all cases of its split" in refused(study, tmp_path, metrics, capsys)


def test_another_data_set_is_named_and_not_called_held_out(study: Study, tmp_path: Path) -> None:
    document = json.loads((study.run / "manifest.json").read_text())
    cases = [{**case, "id": f"other_{index}"} for index, case in enumerate(document["test"])]
    elsewhere = other_manifest(study, tmp_path / "manifest.json", training=[], test=cases)
    predictions = Path(shutil.copytree(study.predictions, tmp_path / "predictions"))
    for index in range(len(cases)):
        folder = (predictions / f"case_{index}").rename(predictions / f"other_{index}")
        result = json.loads((folder / "result.json").read_text())
        write_json(folder / "result.json", {**result, "id": folder.name})
    metrics = study.measure(tmp_path / "metrics", predictions, elsewhere)
    card = (export(study.run, tmp_path / "out", evaluation=metrics).root / "docs/README.md").read_text()
    assert "held out of the training" not in card
    assert "test cases of another data set, none of which the training saw: elsewhere" in card


def spoil_weights(root: Path) -> None:
    import torch

    state = torch.load(root / "models/model.pt", weights_only=True)
    torch.save({name: tensor * 1.01 for name, tensor in state.items()}, root / "models/model.pt")


def spoil_figure(root: Path) -> None:
    metadata = json.loads((root / "configs/metadata.json").read_text())
    metadata["results"]["metrics"]["dice"]["mean of labels"]["value"] = 1.0
    metadata["eval_metrics"]["test_mean_dice"] = 1.0
    write_json(root / "configs/metadata.json", metadata)


def spoil_headline(root: Path) -> None:
    metadata = json.loads((root / "configs/metadata.json").read_text())
    metadata["eval_metrics"]["test_mean_dice"] = 1.0
    write_json(root / "configs/metadata.json", metadata)


def spoil_tie(root: Path) -> None:
    record = json.loads((root / "provenance.json").read_text())
    record["evaluation"] = {"made_by": "me"}
    write_json(root / "provenance.json", record)


def spoil_table(root: Path) -> None:
    card = (root / "docs/README.md").read_text()
    changed = re.sub(r"^(\| Dice \| mean of labels \|) [\d.]+", r"\1 0.999", card, flags=re.MULTILINE)
    assert changed != card
    (root / "docs/README.md").write_text(changed)


def spoil_summary(root: Path) -> None:
    card = (root / "docs/README.md").read_text()
    changed = re.sub(r"(1 at best\)) [\d.]+ \[", r"\1 0.999 [", card)
    assert changed != card
    (root / "docs/README.md").write_text(changed)


def test_a_card_that_somebody_wrote_is_not_read_for_figures(carded: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(carded, tmp_path / "bundle"))
    (root / "docs/README.md").write_text("# Mine\n\nSee the paper.\n")
    write_sums(root)
    assert not verify_bundle(root).refused


@pytest.mark.parametrize("spoil", [spoil_table, spoil_summary, spoil_weights, spoil_figure, spoil_headline, spoil_tie])
def test_verify_refuses_figures_of_something_else(carded: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    root = Path(shutil.copytree(carded, tmp_path / "bundle"))
    spoil(root)
    write_sums(root)
    verification = verify_bundle(root)
    assert verification.refused
    assert {finding.file for finding in verification.findings} == {"provenance.json"}


def test_verify_says_where_nothing_ties_them(tmp_path: Path) -> None:
    """The figures of the shipped bundle are tied; those of older ones are not."""
    shipped, older = Path(__file__).parents[2] / "bundles/hippocampus_mri", tmp_path / "older"
    shutil.copytree(shipped, older)
    record = json.loads((older / "provenance.json").read_text())
    assert record.pop("evaluation")["split"] == "test"
    write_json(older / "provenance.json", record)
    write_sums(older)
    tied, untied = (
        next(check for check in verify_bundle(root, replay=False).checks if check.name == "figures")
        for root in (shipped, older)
    )
    assert tied.status == "passed"
    assert untied.status == "absent" and "believe them as far as you believe its author" in untied.detail
