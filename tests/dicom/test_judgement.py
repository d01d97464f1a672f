"""What DICOM results say of their quality: codes, uncertainties, words; other words have another UID."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from labelled import ALGORITHM, INFOS, some_labels, write_series
from pydicom import dcmread

from oracles import call, own_errors
from segpipe.dicom.codes import label_infos
from segpipe.dicom.model import Series
from segpipe.dicom.write.all_formats import write_dicom
from segpipe.dicom.write.judgement import Judgement
from segpipe.dicom.write.release import check_name, write_release
from segpipe.dicom.write.stored_object import WORDING, series_uid, uid_of
from segpipe.errors import DataError, UsageError

VOLUMES = {"liver": 1234.5678, "liver_tumor": 0.25, "kidney_left": 3.0}
LOOK = Judgement(
    decision="look",
    reasons=(("low_dice", "Low predicted Dice", "predicted Dice of liver_tumor 0.61, below 0.7"),),
    findings=("volume of liver_tumor 0.25 mL; 90 % of 96 cases: 1 to 9 mL",),
    patients=96,
    p_value=0.21,
    distance=0.8,
    dice={"liver": 0.95, "liver_tumor": 0.61},
    dice_low={"liver": 0.9, "liver_tumor": 0.3},
    volume_ml={"liver": (1200.0, 1300.5), "liver_tumor": (0.5, 0.9)},
    rules='{"look_dice": 0.7}',
    model_sha256="ab" * 32,
)
HOLD = replace(LOOK, decision="hold", dice_low={}, volume_ml={}, no_interval="the case is held")
ALL = ("seg", "labelmap", "rtstruct", "sr")


def write(
    folder: Path, judgement: Judgement | None, infos: Any = INFOS, series: Series | None = None, formats: Any = ALL
) -> dict[str, Any]:
    series = series or write_series(folder / "in", PatientID="P1")
    folder.mkdir(exist_ok=True)
    volumes = {info.name: VOLUMES.get(info.name, 1.0) for info in infos}
    labels = some_labels(series)
    files, refused = write_dicom(folder, formats, series, labels, volumes, infos, ALGORITHM, judgement=judgement)
    assert refused == {}
    return {name: dcmread(folder / file) for name, file in files.items()}


def test_an_ensemble_and_mirrored_axes_are_named_and_have_series_of_their_own(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in")
    made = {
        "alone": ALGORITHM,
        "ensemble": replace(ALGORITHM, averaged_with=("c" * 64, "d" * 64)),
        "mirrored": replace(ALGORITHM, mirror=("x", "y")),
    }
    uids: dict[str, list[str]] = {"SeriesInstanceUID": [], "SOPInstanceUID": []}
    for name, algorithm in made.items():
        (tmp_path / name).mkdir()
        files, refused = write_dicom(
            tmp_path / name, ALL, series, some_labels(series), VOLUMES, INFOS, algorithm, judgement=LOOK
        )
        assert refused == {}
        for kind, file in files.items():
            dataset = dcmread(tmp_path / name / file)
            for keyword, found in uids.items():
                found.append(str(dataset.get(keyword)))
            text, description = " ".join(values(dataset)), dataset.SeriesDescription
            assert description.startswith("AI, not verified: ") and len(description) <= 64
            assert all(word in text for word in algorithm.averaged_with) or kind == "rtstruct"
            assert all(f"averaged with bundle {word[:16]}" in text for word in algorithm.averaged_with)
            assert ("mirrored" in text and "x,y" in text) == (name == "mirrored")
            assert (", 3 bundles" in description) == (name == "ensemble")
            assert description.endswith(", mirrored x,y") == (name == "mirrored")
    assert all(len(set(found)) == 3 * len(ALL) for found in uids.values())


def test_results_of_one_bundle_alone_keep_their_uids(tmp_path: Path) -> None:
    series = write_series(tmp_path / "in")
    words = "AlgorithmInfo(name='abdomen_ct', version='1.2.0', bundle_sha256='" + "0123456789abcdef" * 4 + "')"
    assert series_uid("seg.dcm", series, ALGORITHM) == uid_of(
        "series", "seg.dcm", series.series_uid, series.case_id, words, WORDING
    )


def values(dataset: Any) -> list[str]:
    """All values, which printing a dataset would cut short."""
    found: list[str] = []
    dataset.walk(lambda _, element: None if element.VR == "SQ" else found.append(str(element.value)))
    return found


def of_a_group(group: Any, name: str) -> list[Any]:
    return [item for item in group[0].ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == name]


def test_every_result_says_that_nobody_verified_it(tmp_path: Path) -> None:
    for judgement in (None, HOLD):
        written = write(tmp_path / str(judgement and judgement.decision), judgement)
        for dataset in written.values():
            assert dataset.SeriesDescription.startswith("AI, not verified: ")
            assert len(dataset.SeriesDescription) <= 64
        assert {item.SegmentAlgorithmType for item in written["seg"].SegmentSequence} == {"AUTOMATIC"}
        assert written["rtstruct"].ApprovalStatus == "UNAPPROVED"
        assert (written["sr"].VerificationFlag, written["sr"].PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")


@pytest.mark.parametrize("judgement", [LOOK, HOLD], ids=["look", "hold"])
def test_seg_and_rtstruct_say_the_decision(tmp_path: Path, judgement: Judgement) -> None:
    written = write(tmp_path, judgement)
    for name in ("seg", "labelmap"):
        assert f"Decision {judgement.decision};" in written[name].ContentDescription
        assert len(written[name].ContentDescription) <= 64
    described = written["rtstruct"].StructureSetDescription
    assert f"Decision {judgement.decision};" in described and "predicted Dice of liver_tumor 0.61" in described


def test_nothing_is_said_where_nothing_was_judged(tmp_path: Path) -> None:
    written = write(tmp_path, None)
    assert "Decision" not in written["seg"].ContentDescription + written["rtstruct"].StructureSetDescription
    assert "99SEGPIPE" not in values(written["sr"])


def test_decision_and_reasons_are_coded_evaluations_of_a_group_of_their_own(tmp_path: Path) -> None:
    sr = write(tmp_path, LOOK)["sr"]
    report = hd.sr.srread(tmp_path / "sr.dcm")
    (group,) = report.content.get_image_measurement_groups()
    found = [(each.name.value, each.value.value, each.value.scheme_designator)
             for each in group.get_qualitative_evaluations()]  # fmt: skip
    assert found == [("decision", "look", "99SEGPIPE"), ("reason", "low_dice", "99SEGPIPE")]
    numbers = {each.name.value: (each.value, each.unit.value) for each in group.get_measurements()}
    assert numbers == {
        "distance": (0.8, "1"), "p_value": (0.21, "{ratio}"), "patients": (96, "{patients}"), "level": (90, "%"),
    }  # fmt: skip
    texts = [item.TextValue for item in group[0].ContentSequence if item.ValueType == "TEXT"]
    assert LOOK.reasons[0][2] in texts and LOOK.findings[0] in texts
    assert 'rules={"look_dice": 0.7}' in texts and "quality_model_sha256=" + "ab" * 32 in texts
    (scheme,) = sr.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99SEGPIPE"


def test_an_interval_around_the_volume_is_its_uncertainty_to_either_side(tmp_path: Path) -> None:
    write(tmp_path, LOOK)
    report = hd.sr.srread(tmp_path / "sr.dcm")
    liver, tumour, kidney = report.content.get_volumetric_roi_measurement_groups()
    (volume,) = of_a_group(liver, "118565006")
    sides = {
        item.ConceptNameCodeSequence[0].CodeValue: (
            float(item.MeasuredValueSequence[0].NumericValue),
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
        )
        for item in volume.ContentSequence
    }
    assert float(volume.MeasuredValueSequence[0].NumericValue) == 1234.568
    assert sides == {"371886008": (65.932, "ml"), "371885007": (34.568, "ml")}  # 1300.5 and 1200 from the volume
    (dice,) = of_a_group(liver, "dice")
    assert float(dice.MeasuredValueSequence[0].NumericValue) == 0.95
    (down,) = dice.ContentSequence
    assert down.ConceptNameCodeSequence[0].CodeValue == "371885007"
    assert float(down.MeasuredValueSequence[0].NumericValue) == pytest.approx(0.05)
    (volume,) = of_a_group(tumour, "118565006")  # 0.25 mL lie outside of 0.5 to 0.9
    assert "ContentSequence" not in volume
    (group,) = report.content.get_image_measurement_groups()
    assert any("expected between 0.5 and 0.9 mL, 0.25 mL" in item.TextValue for item in of_a_group(group, "finding"))
    (volume,) = of_a_group(kidney, "118565006")
    assert "ContentSequence" not in volume and of_a_group(kidney, "dice") == []


def test_a_held_case_has_no_uncertainties(tmp_path: Path) -> None:
    sr = write(tmp_path, HOLD)["sr"]
    assert not {"371885007", "371886008", "level"} & set(values(sr))
    assert "the case is held" in values(sr)


@pytest.mark.slow
def test_other_words_have_another_uid_and_the_same_ones_the_same(tmp_path: Path) -> None:
    variants = [
        None,
        LOOK,
        replace(LOOK, decision="ok"),
        replace(LOOK, reasons=()),
        replace(LOOK, findings=()),
        replace(LOOK, dice={**LOOK.dice, "liver": 0.951}),
        replace(LOOK, volume_ml={}),
        replace(LOOK, rules="{}"),
        replace(LOOK, model_sha256="cd" * 32),
        replace(LOOK, p_value=0.22),
    ]
    series, formats = write_series(tmp_path / "in"), ("seg", "rtstruct", "sr")
    made = [write(tmp_path / str(k), judgement, INFOS, series, formats) for k, judgement in enumerate(variants)]
    again = write(tmp_path / "again", LOOK, INFOS, series, formats)
    for name in formats:
        assert len({written[name].SOPInstanceUID for written in made}) == len(variants)
        assert again[name].SOPInstanceUID == made[1][name].SOPInstanceUID
        assert again[name].SeriesInstanceUID == made[2][name].SeriesInstanceUID


def test_words_that_are_not_ascii_can_be_read_again(tmp_path: Path) -> None:
    infos = label_infos({0: "background", 1: "Überrest", 3: "b", 7: "c"})[0]
    reasons = (("low_dice", "Low predicted Dice", "predicted Dice of Überrest 0.6, below 0.7"),)
    written = write(tmp_path, replace(LOOK, reasons=reasons, dice={"Überrest": 0.6}), infos)
    assert "Überrest 0.6" in written["rtstruct"].StructureSetDescription
    assert "predicted Dice of Überrest 0.6, below 0.7" in values(written["sr"])


def test_a_release_names_the_person_and_verifies_nothing(tmp_path: Path) -> None:
    written = write(tmp_path, HOLD)
    files = [tmp_path / name for name in ("seg.dcm", "rtstruct.dcm", "sr.dcm")]
    write_release(files, tmp_path / "release.dcm", by="Müller^Eva", time=1.5, case_id="a")
    release = dcmread(tmp_path / "release.dcm")
    assert (release.VerificationFlag, release.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert "VerifyingObserverSequence" not in release
    report = hd.sr.srread(tmp_path / "release.dcm")
    (person,) = report.content.get_observer_contexts(observer_type=hd.sr.CodedConcept("121006", "DCM", "Person"))
    assert str(person.observer_identifying_attributes.name) == "Müller^Eva"
    (group,) = report.content.get_image_measurement_groups()
    assert [each.value.value for each in group.get_qualitative_evaluations()] == ["released"]
    assert any("no clinical verification" in value for value in values(release))
    assert (release.StudyInstanceUID, release.PatientID) == (written["seg"].StudyInstanceUID, "P1")
    referred = {
        item.ReferencedSOPInstanceUID
        for name in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in release.get(name, [])
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert referred == {written[name].SOPInstanceUID for name in ("seg", "rtstruct", "sr")}
    write_release(files, tmp_path / "again.dcm", by="Müller^Eva", time=1.5, case_id="a")
    write_release(files, tmp_path / "other.dcm", by="Doe^Jane", time=1.5, case_id="a")
    uids = [dcmread(tmp_path / name).SOPInstanceUID for name in ("release.dcm", "again.dcm", "other.dcm")]
    assert uids[0] == uids[1] != uids[2]


def test_a_release_of_what_is_no_dicom(tmp_path: Path) -> None:
    (tmp_path / "seg.dcm").write_bytes(np.arange(600, dtype=np.uint8).tobytes())
    with pytest.raises(DataError, match="release"):
        write_release([tmp_path / "seg.dcm"], tmp_path / "release.dcm", by="Doe", time=1.0, case_id="a")
    assert not (tmp_path / "release.dcm").exists()


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, "a\nb", "a\\b", "a=b", "\x00"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="not the name"):
        check_name(name)
    assert check_name(" Doe^Jane ") == "Doe^Jane"


@pytest.mark.slow
@pytest.mark.parametrize("judgement", [LOOK, HOLD], ids=["look", "hold"])
def test_independent_readers_understand_it(tmp_path: Path, judgement: Judgement) -> None:
    series = write_series(tmp_path / "in")
    write(tmp_path / "out", judgement, INFOS, series)
    files = [tmp_path / "out" / name for name in ("seg.dcm", "rtstruct.dcm", "sr.dcm")]
    release = tmp_path / "out" / "release.dcm"
    write_release(files, release, by="Müller^Eva", time=1.5, case_id="a")
    for file in (*files, release):
        assert own_errors(file, series.frames[0].path) == [], file.name
    dumped = call("dsrdump", "+Pl", files[2]).stdout
    assert judgement.reasons[0][2] in dumped and "not verified" in dumped
    assert ("range of upper measurement uncertainty" in dumped) == (judgement is LOOK)
    assert "ller^Eva" in call("dsrdump", release).stdout
    report = tmp_path / "report.json"
    assert call("tid1500reader", "--inputDICOM", files[2], "--outputMetadata", report).returncode == 0
    groups = {group["TrackingIdentifier"]: group for group in json.loads(report.read_text())["Measurements"]}
    found = {name: float(groups[name]["measurementItems"][0]["value"]) for name in VOLUMES}
    assert found == {name: round(volume, 3) for name, volume in VOLUMES.items()}


def test_calibration_cases_of_unknown_patients_are_counted_as_cases(tmp_path: Path) -> None:
    report = write(tmp_path, replace(LOOK, patients_known=False))["sr"]
    assert {"cases", "{cases}"} <= set(values(report)) and not {"patients", "{patients}"} & set(values(report))
