"""Decisions of a batch: said everywhere, DICOM of a held case put aside, other rules decide anew without computing."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from pydicom import dcmread

from dicom import make
from segpipe.cli.app import run
from segpipe.common.files import sha256_of
from segpipe.dicom.labels import read_labels
from segpipe.dicom.scanning import scan
from segpipe.prediction import refresh_summary, worker
from segpipe.prediction.client import Worker
from segpipe.prediction.options import Outputs
from segpipe.prediction.protocol import CaseFiles, Segment, Segmented
from segpipe.quality import QUALITY, Assessment, Rules, fit, shipped_rules
from tiny_bundle import write_scan
from tiny_quality import LABEL, rows

pytestmark = pytest.mark.usefixtures("one_worker")
SCHEMAS = Path(__file__).parents[2] / "docs/schemas"
GOOD = Assessment(
    patients=96,
    p_value=0.5,
    distance=0.7,
    groups={"image": 0.7, "labels": 0.2},
    dice={"bright": 0.93},
    dice_low={"bright": 0.88},
    volume_ml={"bright": (0.001, 99.0)},
)
ODD = replace(GOOD, p_value=0.02, findings=("volume of bright 81 mL; 90 % of 96 cases: 0.9 to 2.1 mL",))
BAD = replace(GOOD, dice={"bright": 0.41})
BY_ID = {"a_good": GOOD, "b_odd": ODD, "c_bad": BAD}
Assess = Callable[[str], dict[str, Any] | None]


@pytest.fixture
def assessed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Assess], list[str]]:
    """Let the worker say what a function says of each case; it returns the cases that are computed."""

    def use(assess: Assess) -> list[str]:
        original, computed = Worker.segment, list[str]()

        def segment(self: Worker, request: Segment, *arguments: Any) -> Segmented:
            computed.append(request.case.id)
            return replace(original(self, request, *arguments), quality=assess(request.case.id))

        monkeypatch.setattr(Worker, "segment", segment)
        return computed

    return use


def as_by_id(case_id: str) -> dict[str, Any]:
    return BY_ID.get(case_id, BAD).as_dict()


def predict(code: int, bundle: Path, inputs: Path, out: Path, *words: str) -> None:
    assert run(["predict", str(bundle), str(inputs), str(out), *words]) == code


def result_of(out: Path, case_id: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((out / case_id / "result.json").read_text())
    validate("result", result)
    return result


def validate(name: str, document: Any) -> None:
    Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text())).validate(document)


def last_events(out: Path) -> list[str]:
    events = [json.loads(line) for line in (out / "predictions.jsonl").open()]
    for event in events:
        validate("prediction_event", event)
    names = [event["event"] for event in events]
    return names[len(names) - names[::-1].index("start") :]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for seed, name in enumerate(BY_ID):
        write_scan(tmp_path / "in" / f"{name}.nii.gz", seed)
    return tmp_path / "in"


def test_a_decision_is_said_everywhere(
    tiny_bundle: Path, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], assessed: Any
) -> None:
    assessed(as_by_id)
    out = tmp_path / "out"
    predict(6, tiny_bundle, three, out)
    terminal = capsys.readouterr().out
    assert "decisions: 1 ok, 1 to look at, 1 held, 0 released" in terminal and "not judged" not in terminal
    predict(6, tiny_bundle, three, out, "--json")
    document = json.loads(capsys.readouterr().out)
    summary = json.loads((out / "summary.json").read_text())
    validate("predict", document)
    validate("summary", summary)
    expected = {"ok": 1, "look": 1, "hold": 1, "released": 0, "not_judged": 0}
    assert document["decisions"] == summary["decisions"] == expected
    for cases in (document["cases"], summary["cases"]):
        assert [case["decision"] for case in cases] == ["ok", "look", "hold"]
        assert [bool(case["quality"]["volume_ml"]) for case in cases] == [True, True, False]
        assert [case["quality"]["no_interval"] for case in cases] == [None, None, "the case is held"]
        assert cases[2]["reasons"] == ["predicted Dice of bright 0.41, below 0.5"]
        assert cases[1]["quality"]["findings"] == list(ODD.findings)
    rows = {row["id"]: row for row in csv.DictReader((out / "summary.csv").open())}
    assert rows["c_bad"]["decision"] == "hold" and "0.41" in rows["c_bad"]["reasons"]
    page = (out / "report.html").read_text()
    assert "held: predicted Dice of bright 0.41, below 0.5" in page and "volume of bright 81 mL" in page
    assert "0.88 or more" in page and "0.41 (" not in page and "clinical verification" in page
    result = result_of(out, "c_bad")
    assert (result["decision"], result["rules"]) == ("hold", Rules().as_dict())
    assert Assessment.from_dict(result["quality"]) == BAD  # whole, so that other rules can decide anew


def test_without_a_quality_model_it_is_said_once(
    tiny_bundle: Path, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(0, tiny_bundle, three, tmp_path / "out")
    assert capsys.readouterr().out.count("not judged: the bundle has no quality model") == 1
    assert (tmp_path / "out/report.html").read_text().count("not judged: the bundle has no quality model") == 1
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["decisions"]["not_judged"] == 3
    assert {case["decision"] for case in summary["cases"]} == {None}
    assert result_of(tmp_path / "out", "a_good")["rules"] is None


def test_a_failed_case_counts_for_more_than_a_held_one(
    tiny_bundle: Path, three: Path, tmp_path: Path, assessed: Any
) -> None:
    (three / "broken.nii.gz").write_bytes(b"no image")
    assessed(as_by_id)
    predict(4, tiny_bundle, three, tmp_path / "out")
    assert result_of(tmp_path / "out", "c_bad")["decision"] == "hold"


def test_what_cannot_be_said_of_quality_fails_its_case_alone(
    tiny_bundle: Path, three: Path, tmp_path: Path, assessed: Any
) -> None:
    assessed(lambda case_id: {**GOOD.as_dict(), "distance": -1} if case_id == "b_odd" else GOOD.as_dict())
    predict(4, tiny_bundle, three, tmp_path / "out")
    cases = {case["id"]: case for case in json.loads((tmp_path / "out/summary.json").read_text())["cases"]}
    assert [cases[name]["state"] for name in BY_ID] == ["done", "failed", "done"]
    assert "distance" in cases["b_odd"]["reason"] and not (tmp_path / "out/b_odd").exists()


def test_other_rules_decide_anew_and_nothing_is_computed(
    tiny_bundle: Path, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], assessed: Any
) -> None:
    computed = assessed(as_by_id)
    out, rules = tmp_path / "out", tmp_path / "rules.yaml"
    predict(6, tiny_bundle, three, out)
    before = result_of(out, "a_good")
    rules.write_text("hold_dice: 0.4\nlook_dice: 0.4\nlook_p_value: null\nhold_distance: 0.7\n")
    computed.clear()
    predict(6, tiny_bundle, three, out, "--rules", str(rules))
    assert [result_of(out, name)["decision"] for name in BY_ID] == ["hold"] * 3
    assert sorted(last_events(out)) == ["judged"] * 3 + ["skipped"] * 3
    rules.write_text("hold_dice: 0.4\nlook_dice: 0.4\nlook_p_value: null\n")
    predict(0, tiny_bundle, three, out, "--rules", str(rules))
    now = result_of(out, "a_good")
    assert now == {**before, "rules": {**Rules().as_dict(), "hold_dice": 0.4, "look_dice": 0.4, "look_p_value": None}}
    predict(0, tiny_bundle, three, out, "--rules", str(rules))
    assert last_events(out) == ["skipped"] * 3
    assert computed == []
    summary = json.loads((out / "summary.json").read_text())
    assert summary["decisions"]["ok"] == 3


def test_wrong_rules_end_the_batch_before_it_begins(
    tiny_bundle: Path, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rules.yaml").write_text("hold_dcie: 0.4\n")
    predict(2, tiny_bundle, three, tmp_path / "out", "--rules", str(tmp_path / "rules.yaml"))
    said = capsys.readouterr().err
    assert "hold_dcie" in said and "rules.yaml" in said and not (tmp_path / "out").exists()


def test_rules_that_a_bundle_ships(tmp_path: Path) -> None:
    from segpipe.errors import DataError

    assert shipped_rules(tmp_path) == Rules()
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs/quality.json"
    file.write_text(json.dumps({"patients": 96, "rules": {"hold_dice": 0.6}}))
    assert shipped_rules(tmp_path) == Rules(hold_dice=0.6)
    file.write_text(json.dumps({"rules": {"hold_dice": "0.6"}}))
    with pytest.raises(DataError, match="hold_dice"):
        shipped_rules(tmp_path)


def test_dicom_of_a_held_case_lies_aside_and_comes_back_by_other_rules(
    tiny_bundle: Path, tmp_path: Path, assessed: Any
) -> None:
    computed = assessed(as_by_id)
    make.write(make.series(make.Grid(make.OBLIQUE, slices=7), "MR"), tmp_path / "in")
    (series,) = scan(tmp_path / "in").series
    out, case = tmp_path / "out", tmp_path / "out" / series.case_id
    words = ("--format", "nifti,seg,rtstruct,sr")
    predict(6, tiny_bundle, tmp_path / "in", out, *words)
    held = result_of(out, series.case_id)
    assert held["files"] == {
        "nifti": "segmentation.nii.gz",
        "seg": "held/seg.dcm",
        "rtstruct": "held/rtstruct.dcm",
        "sr": "held/sr.dcm",
    }
    assert list(case.glob("*.dcm")) == [] and {"held/seg.dcm", "segmentation.nii.gz"} < set(held["sha256"])
    labels = np.asarray(nib.load(case / "segmentation.nii.gz").dataobj)  # type: ignore[attr-defined]
    uid = dcmread(case / "held/seg.dcm").SOPInstanceUID

    (tmp_path / "rules.json").write_text(json.dumps({"hold_dice": 0.3}))
    predict(0, tiny_bundle, tmp_path / "in", out, *words, "--rules", str(tmp_path / "rules.json"))
    look = result_of(out, series.case_id)
    assert look["decision"] == "look" and look["files"]["seg"] == "seg.dcm" and not (case / "held").exists()
    seg, sr = dcmread(case / "seg.dcm"), dcmread(case / "sr.dcm")
    assert "Decision look;" in seg.ContentDescription and seg.SOPInstanceUID != uid
    assert "Decision look;" in dcmread(case / "rtstruct.dcm").StructureSetDescription
    assert sr.CurrentRequestedProcedureEvidenceSequence is not None
    for name in ("seg.dcm", "rtstruct.dcm"):
        (mask,) = read_labels(case / name, series).values()
        np.testing.assert_array_equal(mask, labels, name)

    predict(6, tiny_bundle, tmp_path / "in", out, *words)
    again = result_of(out, series.case_id)
    assert (again["decision"], again["files"]) == ("hold", held["files"])
    assert "Decision hold;" in dcmread(case / "held/seg.dcm").ContentDescription
    assert computed == [series.case_id]


def test_a_case_without_a_label_map_is_computed_again_where_its_decision_changes(
    tiny_bundle: Path, tmp_path: Path, assessed: Any
) -> None:
    computed = assessed(as_by_id)
    make.write(make.series(make.Grid(slices=7), "MR"), tmp_path / "in")
    (tmp_path / "rules.yaml").write_text("hold_dice: 0.3\n")
    words = ("--format", "seg")
    predict(6, tiny_bundle, tmp_path / "in", tmp_path / "out", *words)
    predict(6, tiny_bundle, tmp_path / "in", tmp_path / "out", *words)
    assert len(computed) == 1
    predict(0, tiny_bundle, tmp_path / "in", tmp_path / "out", *words, "--rules", str(tmp_path / "rules.yaml"))
    assert len(computed) == 2


def test_a_released_case_is_left_to_who_released_it(tiny_bundle: Path, tmp_path: Path, assessed: Any) -> None:
    assessed(as_by_id)
    make.write(make.series(make.Grid(slices=7), "MR"), tmp_path / "in")
    (series,) = scan(tmp_path / "in").series
    predict(6, tiny_bundle, tmp_path / "in", tmp_path / "out")
    words = ("--to", "A@127.0.0.1:1", "--retries", "0", "--release", series.case_id, "--by", "Doe^Jane")
    assert run(["send", str(tmp_path / "out"), *words]) == 4  # nobody listens there; the release holds
    released = result_of(tmp_path / "out", series.case_id)
    summary = json.loads((tmp_path / "out/summary.json").read_text())  # at once
    validate("summary", summary)
    assert summary["decisions"]["released"] == 1 and summary["cases"][0]["released"] is True
    assert "held, then released" in (tmp_path / "out/report.html").read_text()
    assert "done,released," in (tmp_path / "out/summary.csv").read_text()
    assert summary["cases"][0]["files"] == released["files"]
    (tmp_path / "rules.yaml").write_text("hold_distance: 0.1\n")
    predict(0, tiny_bundle, tmp_path / "in", tmp_path / "out", "--rules", str(tmp_path / "rules.yaml"))
    assert result_of(tmp_path / "out", series.case_id) == released
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["decisions"] == {"ok": 0, "look": 0, "hold": 0, "released": 1, "not_judged": 0}
    assert summary["cases"][0]["released"] is True and summary["cases"][0]["quality"]["volume_ml"] == {}
    assert "Doe^Jane" not in json.dumps(summary) + (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize("words", [(), ("--viewer",), ("--modality", "MR")])
def test_a_summary_that_is_written_anew_is_the_same(
    tiny_bundle: Path, tmp_path: Path, assessed: Any, words: tuple[str, ...]
) -> None:
    assessed(as_by_id)
    make.write(make.series(make.Grid(slices=7), "MR"), tmp_path / "in/mr")
    if words and words[0] == "--modality":
        make.write(make.series(make.Grid(slices=7), "CT"), tmp_path / "in/ct")
    predict(6, tiny_bundle, tmp_path / "in", tmp_path / "out", *words)
    names = ("summary.json", "summary.csv", "report.html")
    before = {name: (tmp_path / "out" / name).read_text() for name in names}
    assert refresh_summary(tmp_path / "out")
    for name in names:
        after = (tmp_path / "out" / name).read_text()
        parsed = json.loads if name.endswith(".json") else str
        assert parsed(after) == parsed(before[name]), name
    (tmp_path / "out/summary.json").unlink()
    assert not refresh_summary(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "decision"), [(Rules(), "hold"), (Rules(hold_dice=0.3), "look")])
def test_the_worker_writes_the_decision_of_the_rules_it_was_given(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: Rules, decision: str
) -> None:
    from segpipe.bundle import Segmentation, open_bundle
    from segpipe.inference import ModelOptions, Segmenter

    make.write(make.series(make.Grid(slices=7), "MR"), tmp_path / "in")
    (series,) = scan(tmp_path / "in").series
    original = Segmentation.of
    monkeypatch.setattr(Segmentation, "of", lambda *given: replace(original(*given), quality=BAD))
    segmenter = Segmenter(open_bundle(tiny_bundle).recipe(ModelOptions.parse(device="cpu"), ()))
    (tmp_path / "out").mkdir()
    case = CaseFiles(id=series.case_id, series=series.as_dict())
    outputs = Outputs(format=("seg", "sr"), overlay=False)
    answer = worker.segment(segmenter, Segment(case=case, folder=str(tmp_path / "out"), outputs=outputs, rules=rules))
    assert answer.quality == BAD.as_dict()
    assert f"Decision {decision};" in dcmread(tmp_path / "out/seg.dcm").ContentDescription
    sr = str(dcmread(tmp_path / "out/sr.dcm"))
    assert ("range of upper measurement uncertainty" in sr) == (decision == "look")


@pytest.mark.slow
def test_the_quality_model_of_a_bundle_decides_in_the_real_worker(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    bright = [
        replace(
            row,
            features={name.replace(LABEL, "bright"): value for name, value in row.features.items()},
            dice={"bright": row.dice[LABEL]},
            volume_ratio={"bright": row.volume_ratio[LABEL]},
        )
        for row in rows(40)
    ]
    model = fit(bright, ["bright"])
    (bundle / QUALITY).write_text(json.dumps(model.as_dict()))
    make.write(make.series(make.Grid(slices=7), "MR"), tmp_path / "in")
    (series,) = scan(tmp_path / "in").series
    predict(6, bundle, tmp_path / "in", tmp_path / "out", "--format", "nifti,seg,sr")
    result = result_of(tmp_path / "out", series.case_id)
    assert result["decision"] == "hold" and result["quality"]["patients"] == 40  # noise is far from all of these
    assert result["rules"]["hold_distance"] == model.rules["hold_distance"] <= result["quality"]["distance"]
    held = tmp_path / "out" / series.case_id / "held"
    assert "Decision hold;" in dcmread(held / "seg.dcm").ContentDescription
    words = " ".join(str(item.value) for item in dcmread(held / "sr.dcm").iterall() if item.VR != "SQ")
    assert sha256_of(bundle / QUALITY) in words and "range of upper measurement uncertainty" not in words
