from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segpipe.cli.app import run
from segpipe.data.importers import import_dataset
from segpipe.data.importers.layouts import read_folders
from segpipe.data.importers.to_manifest import add_hashes, detect_layout, find_dataset, to_manifest
from segpipe.data.manifest import load_manifest
from segpipe.errors import DataError, SegpipeError, UsageError


def write(path: Path, values: object = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = np.zeros((4, 4, 4), np.uint8)
    volume.flat[: np.size(values)] = values
    nib.save(nib.Nifti1Image(volume, np.eye(4)), path)


def decathlon(root: Path, **fields: object) -> Path:
    ids = ("b_1", "b_2", "b_3")
    for name in ids:
        write(root / "imagesTr" / f"{name}.nii.gz", 5)
        write(root / "labelsTr" / f"{name}.nii.gz", 1)
    write(root / "imagesTs" / "b_9.nii.gz", 5)
    write(root / "imagesTs" / "b_11.nii.gz", 5)
    document = {
        "name": "Brains",
        "reference": "somebody",
        "licence": "CC0",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "Background", "1": "front"},
        "numTraining": 3,
        "numTest": 2,
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ids],
        "test": ["./imagesTs/b_9.nii.gz", {"image": "./imagesTs/b_11.nii.gz"}],
        **fields,
    }
    (root / "dataset.json").write_text(json.dumps(document))
    return root


def nnunet(root: Path, **fields: object) -> Path:
    for name in ("c_001", "c_002"):
        for channel in range(2):
            write(root / "imagesTr" / f"{name}_{channel:04d}.nii.gz", 5)
        write(root / "labelsTr" / f"{name}.nii.gz", 1)
    for channel in range(2):
        write(root / "imagesTs" / f"c_003_{channel:04d}.nii.gz", 5)
    document = {
        "channel_names": {"0": "T2", "1": "ADC"},
        "labels": {"background": 0, "PZ": 1, "TZ": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        **fields,
    }
    (root / "dataset.json").write_text(json.dumps(document))
    return root


def test_decathlon_through_the_command_and_back_through_monai(tmp_path, capsys):
    root = decathlon(tmp_path / "data")
    assert run(["import", str(root), "--patient-rule", "pairs", "--source", "a friend", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["training"] == 3 and printed["patients"] == 4 and not printed["needs_data_option"]
    manifest = load_manifest(root / "manifest.json")
    assert manifest.name == "Brains" and manifest.licence == "CC0" and manifest.source == "a friend"
    assert manifest.labels == {"0": "background", "1": "front"} and manifest.patient_rule == "pairs"
    assert (manifest.numTraining, manifest.numTest) == (3, 2)
    assert [case.patient_id for case in manifest.cases()] == ["P001", "P001", "P002", "P005", "P006"]
    case = manifest.training[0]
    expected = hashlib.sha256((root / case.images[0]).read_bytes()).hexdigest()
    assert case.sha256 and case.sha256[case.images[0]] == expected and set(case.sha256) == set(case.paths)

    from monai.data import load_decathlon_datalist

    listed = load_decathlon_datalist(str(root / "manifest.json"), True, "training", str(root))
    assert [entry["patient_id"] for entry in listed] == ["P001", "P001", "P002"]
    assert Path(listed[0]["image"]) == root / "imagesTr" / "b_1.nii.gz" and Path(listed[0]["label"]).is_file()
    tested = load_decathlon_datalist(str(root / "manifest.json"), True, "test", str(root))
    assert Path(tested[0]["image"]).is_file()


def test_output_elsewhere_keeps_paths_relative_to_the_data_and_says_so(tmp_path, capsys):
    root = decathlon(tmp_path / "data")
    output = tmp_path / "else" / "m.json"
    assert run(["import", str(root / "dataset.json"), "-o", str(output), "--no-hash"]) == 0
    said = capsys.readouterr()
    assert f"--data {root}" in said.out and "a model will know what it was trained on by the ids" in said.err
    manifest = load_manifest(output)
    assert manifest.training[0].image == "imagesTr/b_1.nii.gz" and manifest.training[0].sha256 is None


def test_a_patient_in_training_and_test_is_said(tmp_path, capsys):
    root = nnunet(tmp_path / "data")
    write(root / "labelsTs" / "c_003.nii.gz", 1)
    assert run(["import", str(root), "--patient-rule", r"regex:^(c)_"]) == 0
    assert "patients of the test set are in training too (c_003)" in capsys.readouterr().err


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_manifest_that_is_there_is_replaced_on_request_alone(tmp_path, capsys, elsewhere):
    root = decathlon(tmp_path / "data")
    path = tmp_path / "other.json" if elsewhere else root / "manifest.json"
    path.write_text("a split that took thought")
    arguments = ["import", str(root), "--no-hash", *(["-o", str(path)] if elsewhere else [])]
    assert run([*arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["path"] == str(path) and "--overwrite" in error["hint"]
    assert path.read_text() == "a split that took thought"
    assert run([*arguments, "--overwrite"]) == 0
    assert len(load_manifest(path).training) == 3


def test_decathlon_missing_files_are_named(tmp_path, capsys):
    root = decathlon(tmp_path)
    (root / "labelsTr" / "b_2.nii.gz").unlink()
    assert run(["import", str(root)]) == 3
    assert "labelsTr/b_2.nii.gz" in capsys.readouterr().err
    assert not (root / "manifest.json").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"training": [{"image": "./imagesTr/b_1.nii.gz"}]}, "entry"),
        ({"training": [7]}, "entry"),
        ({"labels": {}}, "no labels"),
        ({"labels": {"0": "background", "2": "x"}}, "gaps"),
        ({"labels": {"0": "background", "1": [1, 2]}}, "region"),
        ({"modality": {}}, "channels"),
        ({"training": {}}, "Decathlon"),
        ({"test": ["/etc/passwd"], "numTest": 1}, "relative"),
    ],
)
def test_decathlon_that_cannot_be_used(tmp_path, fields, words):
    root = decathlon(tmp_path, **fields)
    with pytest.raises(DataError, match=words):
        to_manifest(find_dataset(root, "decathlon"))


def test_patients_that_are_numbered_from_0_are_patients(tmp_path):
    decathlon(tmp_path)
    document = json.loads((tmp_path / "dataset.json").read_text())
    for entry, patient in zip(document["training"], (0, 0, 1), strict=True):
        entry["patient_id"] = patient
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    assert [case.patient_id for case in find_dataset(tmp_path).training] == ["0", "0", "1"]


def test_one_known_patient_does_not_hide_that_the_others_are_unknown(tmp_path, capsys):
    decathlon(tmp_path)
    document = json.loads((tmp_path / "dataset.json").read_text())
    document["training"][0]["patient_id"] = "P1"
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    assert run(["import", str(tmp_path)]) == 0
    words = "patients of 2 of 3 cases unknown: figures may be too good"
    assert words in " ".join(capsys.readouterr().err.split())
    assert run(["split", str(tmp_path / "manifest.json"), "--test", "keep", "--folds", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert words in said["notes"] and "of 2 of 3 cases it is not known, each its own" in said["split_rule"]
    rule = ["--patient-rule", r"regex:(b)_", "--overwrite"]  # as the note says
    assert run(["import", str(tmp_path), *rule]) == 0
    assert "cases unknown" not in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("patient", ["", " ", False, 1.5, ["P1"], {}])
def test_what_names_no_patient_is_refused(tmp_path, patient):
    decathlon(tmp_path)
    document = json.loads((tmp_path / "dataset.json").read_text())
    document["training"][0]["patient_id"] = patient
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="the patient of a case cannot be read"):
        find_dataset(tmp_path)


def test_nnunet_channels_labels_and_test_cases(tmp_path):
    root = nnunet(tmp_path / "Dataset007_Prostate")
    assert detect_layout(root) == "nnunet"
    manifest = to_manifest(find_dataset(root))
    assert manifest.name == "Dataset007_Prostate" and manifest.channels == ["T2", "ADC"]
    assert manifest.labels == {"0": "background", "1": "PZ", "2": "TZ"}
    assert manifest.training[0].id == "c_001"
    assert manifest.training[0].image == ["imagesTr/c_001_0000.nii.gz", "imagesTr/c_001_0001.nii.gz"]
    assert [case.id for case in manifest.test] == ["c_003"] and manifest.test[0].label is None


def test_nnunet_version_1_is_told_from_the_decathlon(tmp_path):
    root = nnunet(tmp_path)
    document = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ"},
        "training": [{"image": "./imagesTr/c_001.nii.gz", "label": "./labelsTr/c_001.nii.gz"}],
    }
    (root / "dataset.json").write_text(json.dumps(document))
    assert detect_layout(root) == "nnunet"
    assert [case.id for case in find_dataset(root).training] == ["c_001", "c_002"]
    assert detect_layout(decathlon(tmp_path / "other")) == "decathlon"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"labels": {"background": 0, "whole": [1, 3], "core": [3]}}, "gaps"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": [1, 2]}}, "join the same labels"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "value of no label"),
        ({"labels": {"background": 0, "a": [1, "two"]}}, "whole number"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "two names"),
        ({"labels": {"background": 0, "a": "one"}}, "whole number"),
        ({"file_ending": ".png"}, "kind"),
        ({"channel_names": {"0": "T2", "1": "ADC", "2": "b"}}, "channels"),
        ({"dataset": {}}, "dataset"),
    ],
)
def test_nnunet_that_cannot_be_used(tmp_path, fields, words):
    with pytest.raises(DataError, match=words):
        to_manifest(find_dataset(nnunet(tmp_path, **fields)))


def test_nnunet_regions_and_what_it_ignores(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    manifest = to_manifest(find_dataset(nnunet(tmp_path, labels=labels, regions_class_order=[1, 2, 3])))
    assert manifest.labels == {"0": "background", "1": "label_1", "2": "label_2", "3": "enhancing"}
    assert list((manifest.regions or {}).items()) == [("whole", [1, 2, 3]), ("core", [2, 3]), ("enhancing", [3])]
    assert (manifest.ignore_label, manifest.schema_version) == (4, 2)


def test_nnunet_missing_channel_and_missing_label(tmp_path):
    root = nnunet(tmp_path)
    (root / "imagesTr" / "c_002_0001.nii.gz").unlink()
    with pytest.raises(DataError) as caught:
        find_dataset(root)
    assert caught.value.case_id == "c_002"
    (root / "imagesTr" / "c_002_0000.nii.gz").unlink()
    with pytest.raises(DataError, match="fewer cases than") as caught:
        find_dataset(root)
    assert (caught.value.found, caught.value.expected) == ("1 cases", "numTraining: 2")
    root = nnunet(tmp_path)
    (root / "labelsTr" / "c_001.nii.gz").unlink()
    with pytest.raises(DataError, match="no label"):
        find_dataset(root)


def test_folders_match_by_name_with_numbers_that_are_no_channels(tmp_path, capsys):
    for number in (1, 2):
        write(tmp_path / "scans" / f"scan_{number:04d}.nii.gz", 5)
        write(tmp_path / "masks" / f"scan_{number:04d}.nii", [1, 2])
    arguments = ["import", "--images", str(tmp_path / "scans"), "--labels", str(tmp_path / "masks")]
    assert run([*arguments, "--modality", "CT", "--label-name", "liver", "--label-name", "tumour"]) == 0
    manifest = load_manifest(tmp_path / "manifest.json")
    assert [case.id for case in manifest.training] == ["scan_0001", "scan_0002"]
    assert manifest.foreground == {1: "liver", 2: "tumour"} and manifest.channels == ["CT"]
    assert manifest.training[0].label == "masks/scan_0001.nii"
    assert run([*arguments, "--overwrite"]) == 0
    assert load_manifest(tmp_path / "manifest.json").foreground == {1: "label_1", 2: "label_2"}
    assert "--modality" in capsys.readouterr().out


def test_folders_group_channels_and_subfolders(tmp_path):
    for channel in (1, 0):
        write(tmp_path / "i" / "p1" / f"a_{channel:04d}.nii.gz", 5)
    write(tmp_path / "l" / "p1" / "a.nii.gz", 1)
    found = read_folders(tmp_path / "i", tmp_path / "l")
    assert found.training[0].id == "p1_a"
    assert found.training[0].images == ["i/p1/a_0000.nii.gz", "i/p1/a_0001.nii.gz"]
    assert found.modality == {"0": "unknown", "1": "unknown"}


def test_folders_may_hold_links_to_files_elsewhere(tmp_path):
    write(tmp_path / "far" / "x.nii.gz", 1)
    for folder in ("i", "l"):
        (tmp_path / "d" / folder).mkdir(parents=True)
        (tmp_path / "d" / folder / "a.nii.gz").symlink_to(tmp_path / "far" / "x.nii.gz")
    found = read_folders(tmp_path / "d" / "i", tmp_path / "d" / "l")
    assert found.training[0].images == ["i/a.nii.gz"] and found.root == tmp_path / "d"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    found = find_dataset(decathlon(tmp_path))
    manifest = to_manifest(found)
    (tmp_path / "imagesTr" / "b_2.nii.gz").unlink()
    with pytest.raises(UsageError, match="cannot read") as caught:
        add_hashes(manifest, tmp_path)
    assert str(caught.value.path).endswith("b_2.nii.gz")


def test_folders_without_partner_are_named(tmp_path, capsys):
    write(tmp_path / "i" / "a.nii.gz", 5)
    write(tmp_path / "i" / "only_image.nii.gz", 5)
    write(tmp_path / "l" / "a.nii.gz", 1)
    write(tmp_path / "l" / "only_label.nii.gz", 1)
    assert run(["import", "--images", str(tmp_path / "i"), "--labels", str(tmp_path / "l")]) == 3
    words = capsys.readouterr().err
    assert "image only_image" in words and "label only_label" in words


@pytest.mark.parametrize("values", [[2], [1, 255], []])
def test_label_values_with_gaps_need_names(tmp_path, values):
    write(tmp_path / "i" / "a.nii.gz", 5)
    write(tmp_path / "l" / "a.nii.gz", values)
    with pytest.raises(DataError, match="1, 2, 3"):
        read_folders(tmp_path / "i", tmp_path / "l")


def test_empty_folders_unequal_channels_and_one_folder(tmp_path):
    (tmp_path / "i").mkdir()
    (tmp_path / "l").mkdir()
    with pytest.raises(DataError, match="no images"):
        read_folders(tmp_path / "i", tmp_path / "l")
    for name in ("a_0000", "a_0001", "b_0000"):
        write(tmp_path / "i" / f"{name}.nii.gz", 5)
    write(tmp_path / "l" / "a.nii.gz", 1)
    write(tmp_path / "l" / "b.nii.gz", 1)
    with pytest.raises(DataError, match="different channels"):
        read_folders(tmp_path / "i", tmp_path / "l")
    with pytest.raises(UsageError, match="side by side"):
        read_folders(tmp_path, tmp_path / "l")


@pytest.mark.parametrize("names", [("a_0000", "a_0001", "b_0000", "b_0002"), ("a_0000", "b_0001")])
def test_cases_with_other_channels_are_refused(tmp_path, names):
    for name in names:
        write(tmp_path / "images" / f"{name}.nii.gz")
    for name in ("a", "b"):
        write(tmp_path / "labels" / f"{name}.nii.gz", 1)
    with pytest.raises(DataError, match="different channels") as error:
        read_folders(tmp_path / "images", tmp_path / "labels")
    assert "b has" in str(error.value.found)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("make", [decathlon, nnunet])
def test_no_dataset_json_is_odd_enough_for_another_error_than_ours(make, tmp_path):
    root = make(tmp_path / "data")
    sound = json.loads((root / "dataset.json").read_text())
    keys = ["training", "test", "labels", "modality", "channel_names", "file_ending", "name", "dataset"]

    @given(st.dictionaries(st.sampled_from(keys), JSON, min_size=1, max_size=2))
    @example({"test": 5})
    @example({"training": 5})
    @example({"labels": {"9" * 5000: "x"}})
    @example({"labels": {"background": 0, "x": True}})
    @settings(max_examples=60)
    def try_it(odd):
        (root / "dataset.json").write_text(json.dumps({**sound, **odd}))
        with contextlib.suppress(SegpipeError):
            to_manifest(find_dataset(root))

    try_it()


def test_pseudonyms_hide_file_names_and_patients_but_keep_patients_together(tmp_path):
    dataset = find_dataset(decathlon(tmp_path))
    manifest = to_manifest(dataset, "pairs", pseudonymise=True, key=b"ab" * 32)
    path = b"imagesTr/b_1.nii.gz"
    first, second, third = manifest.training
    assert first.id == f"case-{hmac.new(b'ab' * 32, path, 'sha256').hexdigest()[:12]}"
    assert hashlib.sha256(path).hexdigest()[:12] not in first.id  # nobody finds it by trying numbers
    other = to_manifest(dataset, "pairs", pseudonymise=True, key=b"cd" * 32)
    assert not {case.id for case in manifest.cases()} & {case.id for case in other.cases()}
    assert first.patient_id == second.patient_id != third.patient_id
    assert all(case.patient_id.startswith("patient-") for case in manifest.cases())


@pytest.mark.parametrize("name", ["Jane Doe", "report.html", "Größe", "-x", "a" * 200, "nul"])
def test_a_name_that_cannot_be_an_id_has_one_of_its_path_and_the_others_stay(tmp_path, capsys, name):
    for stem in (name, "plain"):
        write(tmp_path / "i" / f"{stem}.nii.gz", 5)
        write(tmp_path / "l" / f"{stem}.nii.gz", 1)
    assert run(["import", "--images", str(tmp_path / "i"), "--labels", str(tmp_path / "l")]) == 0
    output = capsys.readouterr()
    manifest = load_manifest(tmp_path / "manifest.json")
    digest = hashlib.sha256(f"i/{name}.nii.gz".encode()).hexdigest()[:12]
    assert {case.id: case.image for case in manifest.training} == {
        "plain": "i/plain.nii.gz",
        f"case-{digest}": f"i/{name}.nii.gz",
    }
    assert f"1 have ids of their own: case-{digest}" in output.out + output.err


def test_equal_names_in_different_folders_and_one_file_twice(tmp_path):
    entries = []
    for site in ("north", "south"):
        write(tmp_path / site / "scan.nii.gz", 5)
        write(tmp_path / site / "mask.nii.gz", 1)
        entries.append({"image": f"./{site}/scan.nii.gz", "label": f"./{site}/mask.nii.gz"})
    for training in (entries, entries[::-1]):
        root = decathlon(tmp_path, training=training, numTraining=2)
        ids = {case.image: case.id for case in to_manifest(find_dataset(root)).training}
        assert ids == {
            f"{site}/scan.nii.gz": f"scan-{hashlib.sha256(f'{site}/scan.nii.gz'.encode()).hexdigest()[:8]}"
            for site in ("north", "south")
        }
    with pytest.raises(DataError, match="listed twice"):
        to_manifest(find_dataset(decathlon(tmp_path, training=entries[:1] * 2, numTraining=2)))


def test_equal_names_keep_their_own_label_maps_and_patients_where_these_are_written_anew(tmp_path):
    entries = []
    for number, site in enumerate(("north", "south"), 1):
        write(tmp_path / site / "scan_1.nii.gz", 5)
        write(tmp_path / site / "mask.nii.gz", [0, 254 + (number == 2)])
        entries.append({"image": f"./{site}/scan_1.nii.gz", "label": f"./{site}/mask.nii.gz"})
    root = decathlon(tmp_path, training=entries, test=[], numTraining=2, numTest=0)
    found = import_dataset(root, label_values=["254=1,255=0"], patient_rule="pairs", hashes=False)
    labels = {case.image: nib.load(found.root / case.label).get_fdata().max() for case in found.manifest.training}
    assert labels == {"north/scan_1.nii.gz": 1, "south/scan_1.nii.gz": 0}
    assert {case.patient_id for case in found.manifest.training} == {"P001"}


def dangling(path):
    path.unlink()
    path.symlink_to("../.git/annex/objects/not_fetched")


@pytest.mark.parametrize("part", ["images", "labels", "both"])
def test_links_to_nothing_are_missing_files_in_every_layout(tmp_path, part):
    for name in ("a", "b", "c"):
        write(tmp_path / "f/i" / f"{name}.nii.gz", 5)
        write(tmp_path / "f/l" / f"{name}.nii.gz", 1)
    roots = {"decathlon": decathlon(tmp_path / "d"), "nnunet": nnunet(tmp_path / "n"), "folders": tmp_path / "f"}
    files = {"decathlon": ("b_2", "b_2"), "nnunet": ("c_002_0001", "c_002"), "folders": ("b", "b")}
    for layout, root in roots.items():
        images, labels = ("i", "l") if layout == "folders" else ("imagesTr", "labelsTr")
        if part != "labels":
            dangling(root / images / f"{files[layout][0]}.nii.gz")
        if part != "images":
            dangling(root / labels / f"{files[layout][1]}.nii.gz")
        with pytest.raises(DataError, match="are missing") as caught:
            read_folders(root / "i", root / "l") if layout == "folders" else find_dataset(root)
        links = 2 if part == "both" else 1
        assert f"({links} links to files that are not there)" in caught.value.found
        assert caught.value.path


def test_what_is_no_part_of_a_data_set_is_said(tmp_path, capsys):
    root = decathlon(tmp_path / "d")
    write(root / "imagesTr" / "extra.nii.gz", 5)
    (root / "imagesTr" / "._b_1.nii.gz").touch()
    assert run(["import", str(root)]) == 0
    assert "passed over: 1 files beside them that dataset.json does not name, e.g. extra.nii.gz" in "".join(
        capsys.readouterr()
    ).replace("\n", " ")
    root = nnunet(tmp_path / "n")
    write(root / "imagesTr" / "c_009.nii.gz", 5)
    write(root / "labelsTr" / "c_010.nii.gz", 1)
    assert "passed over: 2 files" in find_dataset(root).notes[0]
    for name in ("i/a.nii.gz", "l/a.nii.gz"):
        write(tmp_path / name, 1)
    for name in ("i/notes.txt", "i/scan.nii.gz.part", "l/._a.nii.gz"):
        (tmp_path / name).touch()
    found = read_folders(tmp_path / "i", tmp_path / "l")
    assert found.notes == (
        "passed over: 2 other files in the folder i, e.g. notes.txt",
        "passed over: 1 hidden images in the folder l, e.g. ._a.nii.gz",
    )


def convert(path, ending):
    image = SimpleITK.ReadImage(str(path))
    path.unlink()
    SimpleITK.WriteImage(image, str(path.with_name(path.name.replace(".nii.gz", ending))))


@pytest.mark.parametrize("layout", ["decathlon", "nnunet", "folders"])
@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".hdr"])
def test_other_formats_become_nifti_that_training_reads(tmp_path, layout, ending):
    make = {"decathlon": decathlon, "nnunet": nnunet, "folders": decathlon}[layout]
    plain = import_dataset(make(tmp_path / "plain"), hashes=False)
    root = make(tmp_path / "d")
    for path in root.rglob("*.nii.gz"):
        if layout != "decathlon" or path.parent.name == "labelsTr":
            convert(path, ending)
    listed = (root / "dataset.json").read_text()
    if layout == "decathlon":
        listed = re.sub(r"(labelsTr/\w+)[.]nii[.]gz", rf"\1{ending}", listed)
    (root / "dataset.json").write_text(listed.replace('"file_ending": ".nii.gz"', f'"file_ending": "{ending}"'))
    if layout == "folders":
        found = import_dataset(images=root / "imagesTr", labels=root / "labelsTr", hashes=False)
    else:
        found = import_dataset(root, hashes=False)
    assert "files were written as NIfTI" in " ".join(found.notes)
    assert [case.id for case in found.manifest.training] == [case.id for case in plain.manifest.training]
    for case, before in zip(found.manifest.training, plain.manifest.training, strict=True):
        assert all(path.endswith(".nii.gz") for path in case.paths)
        for path, other in zip(case.paths, before.paths, strict=True):
            one, two = nib.load(found.root / path), nib.load(plain.root / other)
            np.testing.assert_array_equal(one.get_fdata(), two.get_fdata())
            np.testing.assert_allclose(one.affine, two.affine)


def test_an_image_beside_itself_in_another_format_and_lonely_ones_are_passed_over(tmp_path):
    for name in ("i/a", "l/a"):
        write(tmp_path / f"{name}.nii.gz", 1)
    image = SimpleITK.ReadImage(str(tmp_path / "i/a.nii.gz"))
    for name in ("i/a.nrrd", "i/other.mha", "l/drawn.seg.nrrd"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
    found = read_folders(tmp_path / "i", tmp_path / "l")
    assert [case.images for case in found.training] == [["i/a.nii.gz"]]
    assert found.notes == (
        "passed over: 1 other files in the folder i, e.g. a.nrrd",
        "passed over: 2 files of other formats without a partner, e.g. other.mha",
    )


@pytest.mark.parametrize(("name", "promised"), [("numTraining", 4), ("numTest", 3)])
def test_a_list_that_promises_more_cases_than_it_has(tmp_path, name, promised):
    with pytest.raises(DataError, match="fewer cases") as caught:
        find_dataset(decathlon(tmp_path, **{name: promised}))
    assert f"write {promised - 1} into {name}" in caught.value.hint
    find_dataset(decathlon(tmp_path, **{name: promised - 1}))


@pytest.mark.parametrize(
    "arguments", [[], ["--images", "x"], ["nowhere"], [".", "--layout", "folders"], [".", "--layout", "bids"], ["."]]
)
def test_wrong_usage(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["import", *arguments]) == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.skipif("SEGPIPE_DATA" not in os.environ, reason="SEGPIPE_DATA does not name a folder of real scans")
@pytest.mark.realdata
def test_the_shipped_manifest_is_what_import_makes_of_the_data():
    root = Path(os.environ["SEGPIPE_DATA"]) / "Task04_Hippocampus"
    manifest = to_manifest(find_dataset(root), "pairs")
    add_hashes(manifest, root)
    shipped = load_manifest(Path(__file__).parents[3] / "data_manifests" / "msd_task04_hippocampus.json")
    plain = {case.id: (case.image, case.label, case.patient_id, case.sha256) for case in manifest.cases()}
    assert plain == {case.id: (case.image, case.label, case.patient_id, case.sha256) for case in shipped.cases()}


def test_what_was_looked_for_is_told_by_the_names_of_files_that_cannot_be_ids(tmp_path):
    for stem in ("btcv_1", "btcv_Müller 2", "msd/a", "btcv/a"):
        write(tmp_path / "i" / f"{stem}.nii.gz", 5)
        write(tmp_path / "l" / f"{stem}.nii.gz", [1, 2])
    words = ["import", "--images", str(tmp_path / "i"), "--labels", str(tmp_path / "l")]
    assert run([*words, "--label-name", "liver", "--label-name", "kidney", "--annotated", "btcv_*=liver"]) == 0
    manifest = load_manifest(tmp_path / "manifest.json")
    looked_for = {case.images[0]: case.annotated_labels for case in manifest.training}
    assert looked_for == {
        "i/btcv_1.nii.gz": ["liver"],
        "i/btcv_Müller 2.nii.gz": ["liver"],
        "i/btcv/a.nii.gz": ["liver"],
        "i/msd/a.nii.gz": None,
    }


def test_what_labels_mean_can_be_said_of_any_layout(tmp_path, capsys):
    root = decathlon(tmp_path, labels={"0": "background", "1": "front", "2": "back"})
    words = ["import", str(root), "--region", "all of it=1,2", "--region", "back=2", "--ignore-label", "7"]
    assert run([*words, "--annotated", "b_1=front", "--annotated", "b_*=front, back", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["ignore_label"], printed["regions"]) == (7, {"all of it": [1, 2], "back": [2]})
    manifest = load_manifest(root / "manifest.json")
    assert [manifest.annotated(case) for case in manifest.training] == [{1}, None, None]
    assert manifest.regions == {"all of it": [1, 2], "back": [2]} and manifest.ignore_label == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--region", "front"], "a region cannot be read"),
        (["--region", "front=1,x"], "a region cannot be read"),
        (["--region", "a=5"], "'a' joins"),
        (["--annotated", "b_1"], "what was looked for in cases cannot be read"),
        (["--annotated", "b_1=nose"], "names what is no label"),
        (["--annotated", "c*=front"], "fits no labelled case"),
        (["--ignore-label", "0"], "no such value to ignore"),
    ],
)
def test_what_labels_cannot_mean_is_refused(words, said, tmp_path, capsys):
    assert run(["import", str(decathlon(tmp_path)), *words]) != 0
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "manifest.json").exists()


def test_the_folder_that_later_commands_need_is_said_as_a_shell_takes_it(tmp_path, capsys):
    root = decathlon(tmp_path / "my data")
    assert run(["import", str(root), "-o", str(tmp_path / "manifest.json")]) == 0
    assert f"later commands need --data '{root}'" in capsys.readouterr().out
