"""Label maps of float32 and bfloat16 are compared case by case and label by label; the limits decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.common.files import sha256_of, write_json
from segpipe.data import Manifest, save_manifest
from segpipe.errors import DataError, RefusedError, SegpipeError, UsageError
from segpipe.evaluation import evaluate
from segpipe.prediction import BatchResult, Outcome
from segpipe.studies import precision_proof, prove_precision
from segpipe.studies.precision_proof import compare_precisions
from segpipe.training.out_of_fold import FoldModel

BUNDLE = {"name": "organs", "version": "1.0.0", "sha256": "b" * 64}
LABELS = {"0": "background", "1": "liver", "2": "lesion"}


def block(size: int = 10, lesion: int = 4) -> np.ndarray:
    """A liver of size x 10 x 10 voxels, and a lesion of so many voxels apart from it."""
    labels = np.zeros((24, 12, 12), np.uint8)
    labels[1 : 1 + size, 1:11, 1:11] = 1
    labels[18 : 18 + lesion, 6, 6] = 2
    return labels


class Cases:
    """Three cases of fold 0, one of fold 1 and a test case, with what was predicted both ways."""

    def __init__(self, root: Path) -> None:
        self.root, self.manifest = root, root / "manifest.json"
        ids = ("a", "b", "c", "other", "held")
        cases = [{"id": id, "image": f"{id}.nii", "label": f"{id}_seg.nii", "patient_id": id} for id in ids]
        folds = [{**case, "fold": int(case["id"] == "other")} for case in cases[:4]]
        document = {"name": "organs", "modality": {"0": "CT"}, "labels": LABELS, "training": folds, "test": cases[4:]}
        save_manifest(Manifest.model_validate(document), self.manifest)
        for id in ids:
            nib.save(nib.Nifti1Image(block(9), np.eye(4)), root / f"{id}_seg.nii")
            self.predict("float32", id, block())
            self.predict("bfloat16", id, block())

    def predict(self, way: str, id: str, labels: np.ndarray, **changes: Any) -> None:
        path = self.root / way / id / "segmentation.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(labels, np.eye(4)), path)
        result = {
            "id": id,
            "bundle": BUNDLE,
            "model": {"files": {"models/model.pt": "c" * 64}, "postprocessing": []},
            "ensemble": [],
            "mirror": [],
            "runtime": "torch",
            "engine": "streaming",
            "precision": way,
            "versions": {"segpipe": "1"},
            "source_sha256": [],
            "sha256": {path.name: sha256_of(path)},
            "training": {"image": "validation", "case": "validation", "manifests": []},
        }
        write_json(path.parent / "result.json", {**result, **changes})

    def compared(self, **where: Any) -> dict[str, Any]:
        where = where or {"split": "validation", "fold": 0}
        both = [evaluate(self.manifest, self.root / name, **where) for name in ("float32", "bfloat16")]
        return compare_precisions([(both[0], both[1])])


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    return Cases(tmp_path)


def test_equal_label_maps_are_proven(cases: Cases) -> None:
    proof = cases.compared()
    assert proof["faults"] == [] and proof["cases"] == 3 and proof["runtime"] == ["torch"]
    assert proof["mean_dice"]["float32"] == proof["mean_dice"]["bfloat16"] > 0.9
    figures = [proof[name] for name in ("mean_dice_lost", "case_dice_lost", "labels_lost", "volume_changed")]
    assert figures == [0, 0, 0, 0] and proof["bundle"] == BUNDLE


def test_a_case_that_loses_is_found_by_hand_calculation(cases: Cases) -> None:
    labels = block()
    labels[1, 1:3, 1] = 0  # 2 of 1,000 voxels of the liver, both right
    cases.predict("bfloat16", "b", labels)
    proof = cases.compared()
    lost = 2 * 900 / 1900 - 2 * 898 / 1898
    assert proof["case_dice_lost"] == pytest.approx(lost, abs=1e-6)
    assert proof["mean_dice_lost"] == pytest.approx(lost / 2 / 3, abs=1e-6)  # of two labels and three cases
    assert proof["volume_changed"] == pytest.approx(0.002) and proof["faults"] == []
    assert proof["worst"] == {name: {"case": "b", "label": "liver"} for name in ("dice", "volume")}


def test_each_limit_is_over_where_it_should_be(cases: Cases) -> None:
    cases.predict("bfloat16", "a", block(lesion=0))
    (*others, lost) = sorted(cases.compared()["faults"], key=lambda fault: "are lost" in fault)
    assert lost == "1 labels of cases are lost" and len(others) == 3
    cases.predict("bfloat16", "a", block(lesion=3))
    assert any("volume of a case and label is 25.0% another" in fault for fault in cases.compared()["faults"])
    cases.predict("float32", "a", block(lesion=0))  # found by bfloat16 alone, where there is one
    proof = cases.compared()
    assert (proof["labels_lost"], proof["volume_changed"]) == (0, 1) and proof["mean_dice_lost"] < 0


def test_what_proves_nothing_is_refused(cases: Cases) -> None:
    trained = {"training": {"image": "training", "case": None, "manifests": []}}
    cases.predict("float32", "a", block(), **trained)
    with pytest.raises(RefusedError, match="trained on prove nothing") as caught:
        cases.compared()
    assert caught.value.found == "1 of 3: a" and "--fold K" in str(caught.value.hint)
    cases.predict("float32", "a", block(), versions={})
    with pytest.raises(UsageError, match="not the same cases") as untied:
        cases.compared()
    assert "a: its result.json cannot be used" in str(untied.value.found)
    (cases.root / "float32/a/segmentation.nii.gz").unlink()
    with pytest.raises(DataError, match="could not be measured"):
        cases.compared()


def test_test_cases_are_never_used(cases: Cases, tmp_path: Path) -> None:
    for split in ("test", "all"):
        with pytest.raises(RefusedError, match="never chosen on test cases"):
            prove_precision(tmp_path, tmp_path / "proof.json", manifest=cases.manifest, split=split)
    assert not (tmp_path / "proof.json").exists()


@pytest.fixture
def predicted(cases: Cases, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Predictions that are copied from what lies there, and the options of each."""
    import shutil

    asked: list[dict[str, Any]] = []

    def predict(bundle: object, manifest: Path, out: Path, **options: Any) -> BatchResult:
        asked.append(options)
        shutil.copytree(cases.root / options["precision"], out)
        return BatchResult(bundle, [Outcome("a", "done")])  # type: ignore[arg-type]

    monkeypatch.setattr(precision_proof, "predict", predict)
    return asked


def test_the_command_predicts_both_ways_and_writes_the_figures(
    cases: Cases, tiny_bundle: Path, predicted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = cases.root / "proof.json"
    words = ["bundle", "precision", str(tiny_bundle), str(cases.manifest), "--fold", "0", "--out", str(out)]
    assert run([*words, "--runtime", "torch"]) == 0
    assert [(each["precision"], each["fold"], each["runtime"]) for each in predicted] == [
        ("float32", 0, "torch"),
        ("bfloat16", 0, "torch"),
    ]
    assert "proven" in capsys.readouterr().out and json.loads(out.read_text())["faults"] == []
    assert sorted(path.name for path in cases.root.iterdir() if path.is_dir()) == ["bfloat16", "float32"]
    cases.predict("bfloat16", "a", block(lesion=0))
    assert run(words) == 5
    assert "1 labels of cases are lost" in capsys.readouterr().out


def test_fold_models_stand_for_their_ensemble_each_on_its_own_cases(
    cases: Cases, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    def predict(bundle: object, manifest: Path, out: Path, **options: Any) -> BatchResult:
        for id in ("a", "b", "c") if options["fold"] == 0 else ("other",):
            files = {"model": {"files": {"models/model.pt": str(options["fold"]) * 64}, "postprocessing": []}}
            cases.predict(options["precision"], id, block(lesion=4 - (id == "other")), **files)
            shutil.copytree(cases.root / options["precision"] / id, out / id)
        return BatchResult(bundle, [Outcome("a", "done")])  # type: ignore[arg-type]

    monkeypatch.setattr(precision_proof, "predict", predict)
    models = [FoldModel(fold, tiny_bundle, cases.manifest, cases.root) for fold in (0, 1)]
    monkeypatch.setattr(precision_proof, "fold_models", lambda run: models)
    write_json(cases.root / "run/cross_validation.json", {})
    proof = prove_precision(cases.root / "run", cases.root / "proof.json")
    assert proof["files"] == {"models/member_0.pt": "0" * 64, "models/member_1.pt": "1" * 64}
    assert (proof["cases"], proof["split"], proof["fold"], proof["bundle"]) == (4, "out_of_fold", None, None)
    each = [
        2 * 900 / 1900,
        1.0,
        2 * 900 / 1900,
        2 * 3 / 7,
    ]  # liver and lesion of the first three cases, and of the last
    expected = (3 * (each[0] + each[1]) / 2 + (each[2] + each[3]) / 2) / 4
    assert proof["mean_dice"]["bfloat16"] == pytest.approx(expected, abs=1e-6) and proof["faults"] == []
    schema = json.loads((Path(__file__).parents[2] / "docs/schemas/precision_proof.schema.json").read_text())
    jsonschema.validate(proof, schema)


def test_a_bundle_needs_a_manifest_and_a_cross_validation_has_its_own(cases: Cases, tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="a bundle needs a manifest"):
        prove_precision(tiny_bundle, cases.root / "proof.json")
    write_json(cases.root / "run/cross_validation.json", {})
    with pytest.raises(UsageError, match="brings its own manifest"):
        prove_precision(cases.root / "run", cases.root / "proof.json", manifest=cases.manifest)


def test_both_ways_are_both_ways(cases: Cases) -> None:
    for id in ("a", "b", "c"):
        cases.predict("bfloat16", id, block(), precision="float32")
    with pytest.raises(UsageError, match="by one bundle both ways"):
        cases.compared()


def test_a_case_that_cannot_be_predicted_ends_it(
    cases: Cases, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = BatchResult(None, [Outcome("a", "failed", reason="the image is constant")])  # type: ignore[arg-type]
    monkeypatch.setattr(precision_proof, "predict", lambda *_, **__: failed)
    with pytest.raises(SegpipeError, match="could not be predicted") as caught:
        prove_precision(tiny_bundle, cases.root / "proof.json", manifest=cases.manifest, fold=0)
    assert caught.value.found == "a: the image is constant"
