"""Every document and state file has a schema in docs/schemas, and real ones of tiny runs follow it."""

from __future__ import annotations

import io
import json
import shutil
from collections import defaultdict
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from jsonschema import Draft202012Validator, ValidationError

from dicom.make import blank, series, write
from segpipe.cli.app import VERBS, run
from segpipe.common.result_folder import SEGMENTATION
from segpipe.common.subprocesses import Ended
from segpipe.data.check.case_check import KINDS
from segpipe.dicom.transport import NotStoredError
from segpipe.errors import DataError, UsageError
from segpipe.prediction.client import WorkerDiedError
from segpipe.prediction.protocol import CaseFiles, Loaded, Segment, Segmented
from segpipe.quality import fit
from segpipe.store import Store
from tiny_auto import FakeSearch
from tiny_compare import FakeSubprocesses
from tiny_data import InThisProcess, train_arguments
from tiny_demo import FakeCommands
from tiny_folds import fold_arguments, stand_in
from tiny_quality import LABEL, rows
from tiny_submit import FakeEngine
from tiny_tune import SPACE, FakeTraining

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"
NAMES = sorted(path.name.removesuffix(".schema.json") for path in FOLDER.iterdir())
FILES = (
    "run",
    "seeds",
    "cross_validation",
    "out_of_fold",
    "postprocessing",
    "prediction_event",
    "result",
    "summary",
    "metrics",
    "fingerprint",
    "bundle_metadata",
    "provenance",
    "golden",
    "sent",
    "test_readings",
    "precision_proof",
    "quality_model",
)
Documents = dict[str, list[Any]]


def schema(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.schema.json").read_text())


def validate(name: str, document: Any) -> None:
    Draft202012Validator(schema(name)).validate(document)


def printed(*words: object, code: int = 0) -> Any:
    """The one document of a command; anything beside it, or NaN, is no JSON."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert run([*map(str, words), "--json"]) == code, out.getvalue()
    return json.loads(out.getvalue(), parse_constant=pytest.fail)


class TrueLabels:
    """A worker that knows the truth, dies of case_0 once, and fails with case_1."""

    loaded = Loaded(
        versions={"python": "3"},
        engine="streaming",
        runtime="torch",
        vetting={"passed": True, "findings": 0, "allowed": [], "intact": True},
    )

    def __init__(self) -> None:
        self.died = False

    def start(self) -> Loaded:
        return self.loaded

    def close(self) -> None:
        pass

    def prefetch(self, case: CaseFiles) -> None:
        pass

    def segment(self, request: Segment, *_: Any) -> Segmented:
        paths, out = request.case.paths, Path(request.folder) / SEGMENTATION
        if "case_0" in paths[0] and not self.died:
            self.died = True
            raise WorkerDiedError("the worker crashed with SIGSEGV", [])
        if "case_1" in paths[0]:
            raise DataError("the image has NaN", path=paths[0], found="1 voxel", expected="numbers", hint="look")
        shutil.copy(paths[0].replace("/images/", "/labels/"), out)
        return Segmented(
            shape=(20, 18, 16),
            spacing_mm=(3.0, 3.0, 3.5),
            voxels={"liver": 1},
            volumes_ml={"liver": 0.1},
            flags={
                "empty": False,
                "touches_border": [],
                "orientation_unknown": False,
                "far_spacing": "no",
                "far_intensity": "unknown",
            },
            files={"nifti": SEGMENTATION},
            seconds={"network": 0.1},
        )


class NearlyTrueLabels(TrueLabels):
    """The same, but for a voxel: nothing passes for a prediction that is the file of the truth."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.loaded = replace(TrueLabels.loaded, versions={"python": "3", "segpipe": "1"}, precision=precision)

    def segment(self, request: Segment, *rest: Any) -> Segmented:
        segmented = super().segment(request, *rest)
        path = Path(request.folder) / SEGMENTATION
        image = nib.load(path)
        labels = np.asarray(image.dataobj).copy()
        labels[tuple(np.argwhere(labels == 1)[0])] = 0
        nib.save(nib.Nifti1Image(labels, image.affine, image.header), path)
        return segmented


@pytest.fixture(scope="module")
def root(tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("way")
    for name in ("images", "labels"):
        shutil.copytree(tiny_manifest.parent / name, root / name)
    return root


@pytest.fixture(scope="module")
def documents(root: Path) -> Documents:
    """What all verbs print and leave, going the whole way once."""
    found: Documents = defaultdict(list)
    for part in (
        _to_a_plan,
        _to_a_bundle,
        _to_an_evaluation,
        _dicom,
        _send,
        _fetch,
        _compare,
        _auto,
        _tune,
        _submit,
        _demo,
        _view,
        _about,
    ):
        for name, document in part(root):
            found[name].append(document)
    return found


def _to_a_plan(root: Path) -> list[tuple[str, Any]]:
    manifest = root / "manifest.json"
    names = [word for name in ("liver", "kidney", "lesion") for word in ("--label-name", name)]
    found = [
        (
            "import",
            printed(
                "import",
                "--images",
                root / "images",
                "--labels",
                root / "labels",
                "--modality",
                "MRI",
                *names,
                "-o",
                manifest,
            ),
        ),
        ("check", printed("check", manifest, "--report", root / "check.json")),
        ("check", json.loads((root / "check.json").read_text())),
        ("plan", printed("plan", manifest, "-o", root / "early.yaml")),
        ("split", printed("split", manifest, "--test", 2, "--folds", 2)),
        ("plan", printed("plan", manifest, "-o", root / "task.yaml")),
        ("fingerprint", json.loads((root / "task.fingerprint.json").read_text())),
    ]
    image = next((root / "images").iterdir())
    image.rename(root / "away")
    found.append(("check", printed("check", manifest, code=3)))
    (root / "away").rename(image)
    return found


def _to_a_bundle(root: Path) -> list[tuple[str, Any]]:
    words = train_arguments(root / "manifest.json", root / "run")
    again = ("reproduce", root / "bundle", "--data", root, "--out", root / "again")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segpipe.training.several_runs.Subprocesses", InThisProcess)
        seeds = printed(*train_arguments(root / "manifest.json", root / "seeds"), "--seeds", 2, "--epochs", 1)
        stand_in(patch, {0: 1})
        folds = printed(*fold_arguments(root / "manifest.json", root / "folds"))
    return [
        ("train", printed(*words, "--explain")),
        ("train", printed(*words, "--dry-run")),
        ("train", printed(*words, "--epochs", 1)),
        ("run", json.loads((root / "run" / "run.json").read_text())),
        ("train", seeds),
        ("seeds", json.loads((root / "seeds" / "seeds.json").read_text())),
        ("train", folds),
        ("store", printed("store", "list", _store(root / "store"))),
        ("store", printed("store", "remove", root / "store")),
        *_quality(root / "folds"),
        ("train", printed(*train_arguments(root / "manifest.json", root / "every"), "--fold", "none", "--epochs", 1)),
        ("run", json.loads((root / "every" / "run.json").read_text())),
        ("cross_validation", json.loads((root / "folds" / "cross_validation.json").read_text())),
        ("out_of_fold", json.loads((root / "folds" / "out_of_fold.json").read_text())),
        ("export", printed("export", root / "run", root / "bundle")),
        ("bundle_metadata", json.loads((root / "bundle/configs/metadata.json").read_text())),
        ("provenance", json.loads((root / "bundle/provenance.json").read_text())),
        ("golden", json.loads((root / "bundle/golden/golden.json").read_text())),
        ("bundle", printed("bundle", "verify", root / "bundle", "--no-replay")),
        ("bundle", printed("bundle", "inspect", root / "bundle")),
        ("bundle", printed("bundle", "pack", root / "bundle", "-o", root / "bundle.zip")),
        ("reproduce", printed(*again, "--dry-run")),
        ("reproduce", printed(*again)),
        ("reproduce", json.loads((root / "again" / "reproduction.json").read_text())),
    ]


def _quality(folder: Path) -> list[tuple[str, Any]]:
    """A quality model of generated cases; the command finds it fitted already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segpipe.quality.regression.TREES", 3)
        model = fit(rows(40), [LABEL])
        patch.setattr("segpipe.studies.fit_quality", lambda *_, **__: model)
        return [("quality", printed("quality", "fit", folder)), ("quality_model", model.as_dict())]


def _store(folder: Path) -> Path:
    return Store(folder).folder


def _to_an_evaluation(root: Path) -> list[tuple[str, Any]]:
    manifest, out = root / "manifest.json", root / "predictions"
    with pytest.MonkeyPatch.context() as patch:
        worker = TrueLabels()
        patch.setattr("segpipe.prediction.batch.make_worker", lambda *_: worker)
        found = [("predict", printed("predict", root / "bundle", manifest, out, code=4)) for _ in range(2)]
    found += [("prediction_event", json.loads(line)) for line in (out / "predictions.jsonl").open()]
    found.append(("report", printed("report", out, "-o", root / "cohort")))
    found.append(("next", printed("next", out, "-n", 2)))
    found += [("result", json.loads(path.read_text())) for path in out.glob("*/result.json")]
    found.append(("summary", json.loads((out / "summary.json").read_text())))
    training = json.loads(manifest.read_text())["training"]
    spoilt = next((case["fold"] for case in training if case["id"] == "case_1"), None)
    fold = 1 if spoilt == 0 else 0
    words = ("bundle", "precision", root / "bundle", manifest, "--fold", fold, "--out", root / "precision.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "segpipe.prediction.batch.make_worker", lambda _, options, *__: NearlyTrueLabels(options.model.precision)
        )
        found.append(("bundle", printed(*words)))
    found.append(("precision_proof", json.loads((root / "precision.json").read_text())))
    again = ("export", root / "run", root / "proven", "--precision", root / "precision.json", "--name", "bundle")
    found.append(("export", printed(*again)))
    found.append(("bundle_metadata", json.loads((root / "proven/configs/metadata.json").read_text())))
    choice = ("--split", "validation", "--fold", fold, "--try-postprocessing")
    for words, code in ((("--split", "all"), 4), (choice, 0)):
        into = root / f"evaluation_{code}"
        found.append(("evaluate", printed("evaluate", manifest, out, "--out", into, *words, code=code)))
        found.append(("metrics", json.loads((into / "metrics.json").read_text())))
    found.append(("test_readings", json.loads((root / "manifest.test_readings.json").read_text())))
    found.append(("postprocessing", json.loads((into / "postprocessing.json").read_text())))
    return found


def _dicom(root: Path) -> list[tuple[str, Any]]:
    write(series(), root / "dicom" / "whole")
    write(series()[:1], root / "dicom" / "single")
    (root / "dicom" / "note.txt").write_text("no image")
    words = ("convert", root / "dicom", root / "nifti")
    return [
        ("scan", printed("scan", root / "dicom")),
        ("convert", printed(*words, code=4)),
        ("convert", printed(*words, code=4)),
    ]


class FullArchive:
    """An archive that takes the first file alone."""

    name = "ARCHIVE@pacs:104"

    def __init__(self, *_: Any, **__: Any) -> None:
        self.stored: list[Any] = []

    def store(self, file: Any) -> None:
        if self.stored:
            raise NotStoredError("the server answered status 0xC123")
        self.stored.append(file)

    def close(self) -> None:
        pass


def _send(root: Path) -> list[tuple[str, Any]]:
    segmentations = [blank("SEG", "1.2.840.10008.5.1.4.1.1.66.4", "1.2", "1.3", "1.4") for _ in range(2)]
    write(segmentations, root / "results" / "dcm-0", "seg")
    words = ("send", root / "results", "--to", FullArchive.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segpipe.dicom.send.open_archive", FullArchive)
        found = [("send", printed(*words, code=4)), ("send", printed(*words))]
    return [*found, *(("sent", json.loads(line)) for line in (root / "results" / "sent.jsonl").open())]


def _fetch(root: Path) -> list[tuple[str, Any]]:
    folder = root / "heart"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        (folder / part / "a.nii.gz").write_bytes(b"")
    dataset = {
        "name": "heart",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "left atrium"},
        "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}],
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    words = ("fetch", "msd_task02_heart", root / "public", "--from", folder)
    first = printed(*words)
    shutil.copy(root / "manifest.json", root / "public" / "Task02_Heart")
    return [("fetch", first), ("fetch", printed(*words))]


def _compare(root: Path) -> list[tuple[str, Any]]:
    words = (
        "compare",
        root / "manifest.json",
        "--task",
        root / "task.yaml",
        "--network",
        "unet",
        "--loss",
        "dice,tversky",
        "--steps",
        2,
        "--out",
        root / "comparison",
    )
    lost = {("predict", "tversky"): Ended(1, {"error": {"message": "lost", "exit_code": 1}})}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segpipe.studies.comparison_run.Subprocesses", lambda: FakeSubprocesses(lost))
        patch.setattr("segpipe.studies.comparison_page.draw_figures", lambda *_: [])
        first = printed(*words, code=4)
        lost.clear()
        return [("compare", each) for each in (first, printed(*words))]


def _auto(root: Path) -> list[tuple[str, Any]]:
    fake = FakeSearch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segpipe.studies.auto_run.search", fake.search)
        patch.setattr("segpipe.studies.auto_run.export", fake.export)
        patch.setattr("segpipe.studies.auto_run.startup_seconds", lambda: 5.0)
        words = ("auto", root / "manifest.json", "--budget", "1h", "-o", root / "auto", "--candidate", "unet")
        found = [("auto", printed(*words))]
    return [*found, ("auto", json.loads((root / "auto/auto.json").read_text()))]


def _tune(root: Path) -> list[tuple[str, Any]]:
    pytest.importorskip("optuna")
    fake = FakeTraining()
    fake.fails = {"trial_1": DataError("lost")}
    (root / "space.yaml").write_text(SPACE)
    words = ("tune", root / "manifest.json", "--task", root / "task.yaml", "--space", root / "space.yaml")
    words += ("--trials", 4, "--epochs", 6, "--storage", "journal", "--out", root / "tune")
    with pytest.MonkeyPatch.context() as patch:
        fake.put(patch)
        printed(*words, code=3)
        fake.fails = {"trial_1": UsageError("the loss is not finite")}
        found = [("tune", json.loads((root / "tune/tune.json").read_text())), ("tune", printed(*words))]
    return [*found, ("tune", json.loads((root / "tune/tune.json").read_text()))]


def _submit(root: Path) -> list[tuple[str, Any]]:
    engine = FakeEngine(0, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segpipe.cluster.submission.engine_of", lambda *_: engine)
        words = ("submit", "--array", 2, "--jobs", root / "jobs", "--no-wait", "--json", "--", "predict", "a", "b", "c")
        out = io.StringIO()
        with redirect_stdout(out):
            assert run([str(word) for word in words]) == 0
        found = [("submit", json.loads(out.getvalue()))]
    return [*found, ("submit", json.loads((root / "jobs/submission.json").read_text()))]


def _demo(root: Path) -> list[tuple[str, Any]]:
    from segpipe.cli import demo

    fake, real = FakeCommands(root / "demo"), demo.run_steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "run_steps", lambda *given: real(*given[:3], fake.run, fake.run_python))
        patch.setattr(demo, "write_demo_page", lambda *_: None)
        patch.setattr("segpipe.cli.demo_.QUICK_COARSENESS", 4.0)
        return [("demo", printed("demo", root / "demo", "--quick", "--cases", 8))]


def _view(root: Path) -> list[tuple[str, Any]]:
    return [("view", printed("view", root / "manifest.json", "--page", root / "page.html"))]


def _about(root: Path) -> list[tuple[str, Any]]:
    words = ("info", "networks", "--network", "unet", "--task", root / "task.yaml")
    library = {"imports": True, "seconds": 1.0, "error": None, "facts": {"gpus": []}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segpipe.cli.doctor.try_libraries", lambda: {"torch": library})
        doctor = printed("doctor")
    return [("info", printed(*words)), ("info", printed("info", "losses")), ("doctor", doctor)]


def test_every_verb_and_file_has_a_schema_and_each_is_linked() -> None:
    assert set(NAMES) == {*VERBS, *FILES, "error"}
    listed = (FOLDER.parent / "reference/json.md").read_text()
    for name in NAMES:
        assert f"schemas/{name}.schema.json" in listed
        if name in VERBS:
            assert f"schemas/{name}.schema.json" in (FOLDER.parent / f"reference/commands/{name}.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))
    assert schema(name)["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "error"])
def test_real_documents_follow_their_schema_and_nothing_else_does(name: str, documents: Documents) -> None:
    assert documents[name]
    for document in documents[name]:
        validate(name, document)
        if name in VERBS:
            assert (document["schema_version"], document["command"]) == (1, name)
        with pytest.raises(ValidationError):
            validate(name, {**document, "surprise": 1})
        for key in set(schema(name).get("required", [])) & set(document):
            with pytest.raises(ValidationError):
                validate(name, {other: value for other, value in document.items() if other != key})


def test_the_documents_show_what_there_is_to_show(documents: Documents) -> None:
    events = [event["event"] for event in documents["prediction_event"]]
    assert set(events) == {"start", "crashed", "done", "failed", "skipped"}
    assert {"missing_file"} <= set(documents["check"][-1]["kinds"])
    assert [set(each) & {"origins", "dry_run", "status", "seeds", "folds"} for each in documents["train"]] == [
        {"origins"},
        {"dry_run"},
        {"status"},
        {"seeds"},
        {"folds"},
        {"status"},
    ]
    assert documents["evaluate"][0]["failures"] and "rules" in documents["evaluate"][1]
    assert [each["manifest"] is None for each in documents["fetch"]] == [True, False]


@pytest.mark.parametrize("name", ["check", "predict", *FILES])
def test_reports_and_state_name_no_path(name: str, documents: Documents, root: Path) -> None:
    assert str(root) not in json.dumps(documents[name])


def test_words_of_the_code_are_those_of_the_schemas() -> None:
    assert schema("check")["$defs"]["kind"]["enum"] == list(KINDS)
    assert schema("error")["properties"]["command"]["enum"] == [*VERBS, ""]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_fails_with_the_document_of_errors(verb: str) -> None:
    document = printed(verb, "--no-such-option", code=2)
    validate("error", document)
    assert document["command"] == verb


@pytest.mark.parametrize(
    ("raised", "code"),
    [(ZeroDivisionError("a bug"), 1), (DataError("bad", path="/p", case_id="c"), 3), (KeyboardInterrupt(), 130)],
)
def test_every_exit_code_has_a_document(raised: BaseException, code: int, monkeypatch: Any) -> None:
    def fail(path: object) -> None:
        raise raised

    monkeypatch.setattr("segpipe.data.load_manifest", fail)
    document = printed("split", "manifest.json", code=code)
    validate("error", document)
    assert document["error"]["exit_code"] == code


def test_no_verb_at_all_is_an_error_too() -> None:
    document = printed(code=2)
    validate("error", document)
    assert document["command"] == ""
