"""Values of label maps become labels while a data set is imported; every hint about values can be followed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.common.console import digits
from segpipe.data.importers.label_values import how_to_rename, parse_label_values
from segpipe.data.manifest import load_manifest
from segpipe.errors import BAD_DATA, OK, USAGE, UsageError

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def write_set(root: Path, *values: object, dtype: type = np.uint8) -> list[str]:
    """A data set of one case for each list of label values; returns the words of its import."""
    for number, some in enumerate(values):
        image = np.random.default_rng(number).integers(0, 900, (8, 7, 6)).astype(np.int16)
        label = np.zeros((8, 7, 6), dtype)
        label.flat[: np.size(some)] = some
        for folder, array in (("images", image), ("labels", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, AFFINE), root / folder / f"case_{number}.nii.gz")
    return ["import", "--images", str(root / "images"), "--labels", str(root / "labels")]


def label_of(root: Path, case_id: str) -> np.ndarray:
    case = next(case for case in load_manifest(root / "manifest.json").cases() if case.id == case_id)
    return np.asarray(nib.load(root / str(case.label)).dataobj)


def hinted(words: str) -> str:
    """The rule that a hint names."""
    return re.sub(r"\s", "", re.search(r"--label-values ([-\d.=,\s]*\d)", words)[1])


@pytest.mark.parametrize(
    ("values", "rules"),
    [
        ([[255], [255, 255]], "255=1"),
        ([[1], [1, 5]], "5=2"),
        ([[100, 200], [300]], "100=1,200=2,300=3"),
        ([[1, 255], [1]], "255=2"),
        ([[1.0000001, 2], [1, 2]], None),
        ([[2], [2, 4]], "2=1,4=2"),
    ],
    ids=str,
)
def test_a_hint_about_values_can_be_followed(
    values: list[list[float]], rules: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dtype = np.float32 if rules is None else np.uint16
    words = write_set(tmp_path, *values, dtype=dtype)
    assert run(words) == BAD_DATA
    said = " ".join(capsys.readouterr().err.split())
    if rules is None:  # 1 is there as well, so that the two have to be joined
        assert "1.0000001" in said and "case_0.nii.gz" in said
        rules = f"{hinted(said)},1=1"
    assert hinted(said) in rules
    assert run([*words, "--label-values", rules]) == OK
    assert "labels_for_segpipe" in capsys.readouterr().err
    assert run(["check", str(tmp_path / "manifest.json")]) == OK
    manifest = load_manifest(tmp_path / "manifest.json")
    assert manifest.label_values == parse_label_values([rules]).labels
    assert sorted(np.unique(label_of(tmp_path, "case_0"))) == list(range(len(np.unique(label_of(tmp_path, "case_0")))))


def test_what_is_imported_is_renamed_on_the_same_grid_and_the_data_set_stays(tmp_path: Path) -> None:
    words = write_set(tmp_path, [7, 7, 9], [9])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    assert (
        run([*words, "--label-values", "7=2", "--label-values", "9=1", "--label-name", "a", "--label-name", "b"]) == OK
    )
    assert {path: path.read_bytes() for path in before} == before
    assert label_of(tmp_path, "case_0").ravel()[:4].tolist() == [2, 2, 1, 0]
    assert label_of(tmp_path, "case_0").dtype == np.uint8
    made = nib.load(tmp_path / "labels_for_segpipe/case_0.nii.gz")
    np.testing.assert_allclose(made.affine, AFFINE)
    document = json.loads((tmp_path / "manifest.json").read_text())
    assert document["label_values"] == {"7": 2, "9": 1}
    assert document["labels"] == {"0": "background", "1": "a", "2": "b"}


def test_other_rules_leave_the_label_maps_of_an_earlier_manifest(tmp_path: Path) -> None:
    words = write_set(tmp_path, [1, 1, 1, 2], [1, 2])
    whole, tumour, again = (tmp_path / f"{name}.json" for name in ("whole", "tumour", "again"))
    assert run([*words, "-o", str(whole), "--label-values", "1=1,2=1"]) == OK
    before = (tmp_path / str(load_manifest(whole).training[0].label)).read_bytes()
    assert run([*words, "-o", str(tumour), "--label-values", "1=0,2=1"]) == OK
    first, second = (load_manifest(path).training[0] for path in (whole, tumour))
    assert (tmp_path / str(first.label)).read_bytes() == before
    counts = [int(np.count_nonzero(nib.load(tmp_path / str(case.label)).dataobj)) for case in (first, second)]
    assert counts == [4, 1]
    for rules, same in (("1=1,2=1", whole), ("1=0,2=1", tumour)):  # no file is made twice
        files = sorted(tmp_path.rglob("*.nii.gz"))
        assert run([*words, "-o", str(again), "--overwrite", "--label-values", rules]) == OK
        assert sorted(tmp_path.rglob("*.nii.gz")) == files
        assert load_manifest(again).training[0].paths == load_manifest(same).training[0].paths
    made = tmp_path / str(second.label)
    made.write_bytes(b"something else")
    assert run([*words, "-o", str(again), "--overwrite", "--label-values", "1=0,2=1"]) == BAD_DATA
    made.unlink()  # as the hint says
    assert run([*words, "-o", str(again), "--overwrite", "--label-values", "1=0,2=1"]) == OK


def test_two_values_become_one_label_only_where_both_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = write_set(tmp_path, [255], [1])  # in two cases
    assert run([*words, "--label-values", "255=1"]) == BAD_DATA
    rules = hinted(" ".join(capsys.readouterr().err.split()))
    assert sorted(rules.split(",")) == ["1=1", "255=1"]
    assert run([*words, "--label-values", rules]) == OK
    assert label_of(tmp_path, "case_1").ravel()[0] == label_of(tmp_path, "case_0").ravel()[0] == 1


def test_labels_with_names_are_read_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*write_set(tmp_path, [1], [255]), "--label-name", "one"]
    assert run(words) == BAD_DATA
    said = " ".join(capsys.readouterr().err.split())
    assert "case_1.nii.gz" in said and "255" in said
    assert run([*words, "--label-values", "255=0"]) == OK  # said to be background
    assert not label_of(tmp_path, "case_1").any()


def test_what_nobody_annotated_is_left_out_as_the_hint_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = write_set(tmp_path, [1, 255], [1])
    assert run(words) == BAD_DATA
    said = " ".join(capsys.readouterr().err.split())
    assert "--ignore-label 255" in said
    assert run([*words, "--ignore-label", "255"]) == OK
    manifest = load_manifest(tmp_path / "manifest.json")
    assert manifest.labels == {"0": "background", "1": "label_1"} and manifest.ignore_label == 255
    assert np.unique(label_of(tmp_path, "case_0")).tolist() == [0, 1, 255]
    assert run([*words, "--ignore-label", "254", "--overwrite"]) != OK
    assert "no label map has the value that is to be ignored" in " ".join(capsys.readouterr().err.split())


def test_an_ignore_label_of_nnunet_is_taken_or_called_background(tmp_path: Path) -> None:
    write_set(tmp_path, [1, 255], [1])
    for folder in ("images", "labels"):
        (tmp_path / folder).rename(tmp_path / f"{folder}Tr")
    for path in list((tmp_path / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    labels = {"background": 0, "organ": 1, "ignore": 255}
    document = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    assert run(["import", str(tmp_path)]) == OK
    manifest = load_manifest(tmp_path / "manifest.json")
    assert manifest.labels == {"0": "background", "1": "organ"} and manifest.ignore_label == 255
    assert run(["import", str(tmp_path), "--label-values", "255=0", "--overwrite"]) == OK
    assert load_manifest(tmp_path / "manifest.json").ignore_label is None
    assert np.unique(label_of(tmp_path, "case_0")).tolist() == [0, 1]


def test_a_listed_label_beyond_a_gap_can_be_renamed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path, [255], [255])
    cases = [{"image": f"images/case_{n}.nii.gz", "label": f"labels/case_{n}.nii.gz"} for n in range(2)]
    document = {"name": "x", "modality": {"0": "CT"}, "labels": {"0": "background", "255": "organ"}, "training": cases}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    assert run(["import", str(tmp_path)]) == BAD_DATA
    rules = hinted(" ".join(capsys.readouterr().err.split()))
    assert run(["import", str(tmp_path), "--label-values", rules]) == OK
    assert load_manifest(tmp_path / "manifest.json").labels == {"0": "background", "1": "organ"}
    assert label_of(tmp_path, "case_0").max() == 1


def test_check_leads_back_to_the_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = write_set(tmp_path, [1], [1])
    assert run(words) == OK
    label = nib.load(tmp_path / "labels/case_1.nii.gz")
    values = np.asarray(label.dataobj).astype(np.float32)
    values.flat[:3] = (1.0000001, 1, 255)
    nib.save(nib.Nifti1Image(values, label.affine), tmp_path / "labels/case_1.nii.gz")
    capsys.readouterr()
    assert run(["check", str(tmp_path / "manifest.json"), "--json"]) == BAD_DATA
    found = {each["kind"]: each["found"] for each in json.loads(capsys.readouterr().out)["findings"]}
    assert found["fractional_label"] == "1.0000001" and found["unknown_label"] == "255"
    assert run(["check", str(tmp_path / "manifest.json")]) == BAD_DATA
    said = " ".join(capsys.readouterr().out.split())
    assert "segpipe import" in said and "--label-values" in said
    assert run([*words, "--overwrite", "--label-values", "1=1,1.0000001=1,255=0"]) == OK
    assert run(["check", str(tmp_path / "manifest.json")]) == OK


def test_values_that_no_rule_mends_are_told_apart() -> None:
    assert "nearest neighbours" in how_to_rename([0, 0.3, 0.7, 1])
    assert "not finite" in how_to_rename([0, float("nan")])
    assert "VALUE=LABEL" in how_to_rename(range(10, 40))
    assert "-1=0" in how_to_rename([-1, 0, 1], 1)
    assert "nobody annotated" in how_to_rename([0, 1, 255])


@pytest.mark.parametrize("word", ["255", "=1", "255=", "255=300", "a=1", "1=1=1", "1e3=1", ""])
def test_what_is_no_rule_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="not a rule"):
        parse_label_values([word])


def test_rules_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="two labels"):
        parse_label_values(["2=1,2=2"])
    words = write_set(tmp_path, [1], [1])
    assert run([*words, "--label-values", "7=1,1=1"]) == USAGE
    assert "names" in capsys.readouterr().err
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (1.0000001192092896, "1.0000001"), (0.1, "0.1"), (-3.5, "-3.5"), (1 + 1e-12, "1.000000000001")],
)
def test_digits_tell_a_number_from_others(value: float, text: str) -> None:
    assert digits(value) == text


@pytest.mark.realdata
def test_the_field_sample_is_led_to_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(Path(os.environ["SEGPIPE_DATA"]) / "field/datasets/labels_0_255", tmp_path / "set")
    root = tmp_path / "set"
    words = ["import", "--images", str(root / "images"), "--labels", str(root / "labels"), "--modality", "MRI"]
    assert run(words) == BAD_DATA
    rules = hinted(" ".join(capsys.readouterr().err.split()))
    assert rules == "255=1"
    assert run([*words, "--label-values", rules, "--label-name", "hippocampus"]) == OK
    said = capsys.readouterr()
    assert "value 255 became label 1" in said.err
    assert run(["check", str(root / "manifest.json")]) == OK
