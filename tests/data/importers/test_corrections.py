"""Corrected label maps come back as cases to train on; what they began with stays as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from dicom.make import series as slices_of_a_series
from dicom.make import tilted, write
from segpipe.cli.app import run
from segpipe.common.files import sha256_of
from segpipe.data import draw_split, import_corrections, load_manifest, readings_of, record_reading, save_manifest
from segpipe.data.manifest import Manifest
from segpipe.dicom import (
    AlgorithmInfo,
    admitted,
    label_infos,
    load_series,
    patient_pseudonym,
    scan,
    write_dicom,
    write_volume,
)
from segpipe.errors import DataError, RefusedError, UsageError

SHAPE, AFFINE = (9, 8, 7), np.diag([-1.0, 2.0, 3.0, 1.0])
LABELS = {"liver": 1, "lesion": 2}
RULE = r"regex:^(mueller\d)_"


def save(path: Path, values: Any, affine: Any = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def mask(corner: int = 2, value: int = 1) -> np.ndarray:
    values = np.zeros(SHAPE, np.uint8)
    values[corner : corner + 3, 2:5, 1:4] = value
    return values


class Site:
    """A data set with folds and a test set, predictions of new scans, and a folder for corrections."""

    def __init__(self, root: Path) -> None:
        self.data, self.out, self.back = root / "data", root / "predictions", root / "back"
        self.scans = root / "scans"
        self.back.mkdir(parents=True)
        self.manifest = self.data / "manifest.json"
        self.rng = np.random.default_rng(0)
        self.lines: list[str] = []

    def image(self, path: Path) -> Path:
        return save(path, self.rng.integers(0, 100, SHAPE).astype(np.int16))

    def write_manifest(self, hashes: bool = True, **more: Any) -> Manifest:
        cases: list[dict[str, Any]] = []
        for number in range(6):
            image = self.image(self.data / f"images/c{number}.nii.gz")
            save(self.data / f"labels/c{number}.nii.gz", mask())
            paths = {"image": f"images/c{number}.nii.gz", "label": f"labels/c{number}.nii.gz"}
            seen = {paths["image"]: sha256_of(image)} if hashes else None
            cases.append({"id": f"c{number}", **paths, "patient_id": f"P{number // 2}", "sha256": seen})
        for number, case in enumerate(cases[:4]):
            case["fold"] = number // 2
        self.image(self.data / "images/u.nii.gz")
        document = {
            "name": "site",
            "modality": {"0": "CT"},
            "labels": {"0": "background", **{str(value): name for name, value in LABELS.items()}},
            "training": cases[:4],
            "test": [*cases[4:], {"id": "u", "image": "images/u.nii.gz"}],
        }
        manifest = Manifest.model_validate({**document, **more})
        save_manifest(manifest, self.manifest)
        return manifest

    def predict(
        self, case_id: str, image: Path, labels: dict[str, int] | None = None, beside: Sequence[Path] = (), **more: Any
    ) -> Path:
        """Write what `predict` would."""
        path = save(self.out / case_id / "segmentation.nii.gz", mask())
        result = {
            "bundle": {"name": "organs", "version": "1.0", "sha256": "ab" * 32},
            "labels": labels or LABELS,
            "sha256": {"segmentation.nii.gz": sha256_of(path)},
            "source_sha256": [] if image.is_dir() else [sha256_of(path) for path in (image, *beside)],
            **more,
        }
        (path.parent / "result.json").write_text(json.dumps(result))
        (self.out / "predictions.jsonl").touch()
        files = sorted(image.iterdir()) if image.is_dir() else [image, *beside]
        self.lines.append(json.dumps({"id": case_id, "paths": [str(file) for file in files]}) + "\n")
        (self.out / "mapping.jsonl").write_text("".join(self.lines))
        return path

    def take(self, **options: Any) -> Any:
        given = {"annotator": "reader-2", "into": self.manifest if self.manifest.exists() else None}
        return import_corrections(self.out, self.back, **{**given, **options})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path.resolve())


def test_a_correction_becomes_a_case_to_train_on_with_its_history(site: Site):
    site.write_manifest()
    start = site.predict("new", site.image(site.scans / "new.nii.gz"))
    changed = save(site.back / "new.nii.gz", mask(3))
    before = sha256_of(start), sha256_of(site.manifest)

    found = site.take()

    assert found.path == site.data / "manifest_2.json" and found.taken == ["new"]
    assert (sha256_of(start), sha256_of(site.manifest)) == before
    case = next(case for case in load_manifest(found.path).training if case.id == "new")
    assert case.only_trains and case.fold is None and case.selection == "chosen" and case.patient_id is None
    (made,) = case.history or []
    assert (made.annotator, made.sha256, made.changed_voxels) == ("reader-2", sha256_of(changed), 18)
    assert made.start is not None and made.start.bundle is not None
    assert (made.start.of, made.start.sha256, made.start.bundle.name) == ("prediction", sha256_of(start), "organs")
    label = nib.load(site.data / str(case.label))
    assert np.array_equal(np.asarray(label.dataobj), mask(3)) and np.array_equal(label.affine, AFFINE)
    assert (site.data / case.images[0]).read_bytes() == (site.scans / "new.nii.gz").read_bytes()
    assert case.sha256 == {path: sha256_of(site.data / path) for path in case.paths}
    assert str(site.scans) not in found.path.read_text()


def test_nothing_is_ever_measured_on_it(site: Site):
    site.write_manifest()
    site.predict("c0", site.data / "images/c0.nii.gz")  # of fold 0, as c1 of the same patient
    save(site.back / "c0.nii.gz", mask(3))
    said: list[str] = []
    manifest = load_manifest(site.take(note=said.append).path)
    ids = [[case.id for case in manifest.select(split, 0)] for split in ("training", "validation", "out_of_fold")]
    assert ids == [["c2", "c3"], ["c1"], ["c1", "c2", "c3"]]
    assert said == ["1 case of folds will only be trained on from now on: c0"]
    assert manifest.training[0].images == ["images/c0.nii.gz"]  # where it was
    drawn = draw_split(manifest, 2, 2, redraw=True)
    assert "c0" in [case.id for case in drawn.training] and not {"c0", "c1"} & {case.id for case in drawn.test}


def test_patients_that_only_train_have_no_fold(site: Site):
    site.write_manifest()
    site.predict("new", site.image(site.scans / "new.nii.gz"))
    save(site.back / "new.nii.gz", mask(3))
    manifest = load_manifest(site.take().path)
    drawn = draw_split(manifest, None, 2, redraw=True)
    assert {case.id: case.fold for case in drawn.training}["new"] is None and drawn.folds() == [0, 1]
    with pytest.raises(UsageError, match="too few patients") as error:
        draw_split(manifest, None, 3, redraw=True)
    assert "1 only to train on" in str(error.value)


def test_a_test_case_is_refused_whatever_it_is_called_and_left_out_where_that_is_said(site: Site):
    site.write_manifest(hashes=False)
    copied = site.scans / "renamed.nii.gz"
    copied.parent.mkdir()
    shutil.copy(site.data / "images/c4.nii.gz", copied)
    site.predict("renamed", copied)
    site.predict("new", site.image(site.scans / "new.nii.gz"))
    for name in ("renamed", "new"):
        save(site.back / f"{name}.nii.gz", mask(3))
    with pytest.raises(RefusedError, match="corrections of test cases") as error:
        site.take()
    assert error.value.exit_code == 5 and "renamed" in str(error.value.found) and "--skip-bad" in str(error.value.hint)
    assert not (site.data / "manifest_2.json").exists() and not (site.data / "corrected").exists()
    found = site.take(skip_bad=True)  # as the hint says
    assert (found.taken, found.left_out) == (["new"], {"renamed": "a test case"})
    assert [case.id for case in found.manifest.test] == ["c4", "c5", "u"]


def repacked(source: Path, target: Path, kind: str) -> Path:
    """Write the same scan as another tool would."""
    image = nib.load(source)
    if kind == "turned":
        image = image.as_reoriented(np.array([[0, -1], [2, 1], [1, 1]]))
    elif kind == "header":
        image = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32), image.affine + np.eye(4) * 0.5)
    target.parent.mkdir(exist_ok=True)
    nib.save(image, target)
    return target


@pytest.mark.parametrize("kind", ["unpacked", "turned", "header"])
@pytest.mark.parametrize("hashes", [True, False])
def test_a_copy_of_a_test_case_is_told_by_its_voxels(site: Site, kind: str, hashes: bool):
    site.write_manifest(hashes)
    site.predict("other", repacked(site.data / "images/c4.nii.gz", site.scans / "other.nii", kind))
    save(site.back / "other.nii.gz", mask(3))
    with pytest.raises(RefusedError, match="corrections of test cases"):
        site.take()


@pytest.mark.parametrize("is_known", [True, False])
def test_a_series_of_a_test_case_under_another_id_is_told_by_its_voxels(site: Site, tmp_path: Path, is_known: bool):
    site.write_manifest(hashes=False)
    write(slices_of_a_series(), tmp_path / "dicom")
    (series,) = scan(tmp_path / "dicom").series
    if is_known:  # as of an import that replaced ids by hashes
        write_volume(load_series(series), site.data / "images/c4.nii.gz")
    labels = np.zeros(series.shape, np.uint8)
    site.predict(series.case_id, tmp_path / "dicom")
    save(site.out / series.case_id / "segmentation.nii.gz", labels, series.affine_ras)
    labels[1:3, 1:4, 1:] = 1
    save(site.back / f"{series.case_id}.nii.gz", labels, series.affine_ras)
    if is_known:
        with pytest.raises(RefusedError, match="corrections of test cases"):
            site.take(key=tmp_path / "key")
    else:
        assert site.take(key=tmp_path / "key").taken == [series.case_id]


def test_a_series_that_was_repaired_is_corrected_on_its_regular_grid(site: Site, tmp_path: Path):
    site.write_manifest(hashes=False)
    write(tilted(), tmp_path / "dicom")
    (series,) = admitted(scan(tmp_path / "dicom").series, ("tilt",))
    labels = np.zeros(series.shape, np.uint8)
    site.predict(series.case_id, tmp_path / "dicom")
    save(site.out / series.case_id / "segmentation.nii.gz", labels, series.affine_ras)
    labels[1:3, 1:4, 1:] = 1
    save(site.back / f"{series.case_id}.nii.gz", labels, series.affine_ras)
    case = site.take(key=tmp_path / "key").manifest.training[-1]
    assert np.allclose(nib.load(site.data / case.image).affine, series.affine_ras)


def test_a_copy_of_a_fold_case_is_that_case(site: Site):
    site.write_manifest()
    site.predict("other", repacked(site.data / "images/c0.nii.gz", site.scans / "other.nii", "unpacked"))
    save(site.back / "other.nii.gz", mask(3))
    manifest = site.take().manifest
    assert [case.id for case in manifest.training] == ["c0", "c1", "c2", "c3"]
    assert manifest.training[0].only_trains and manifest.training[0].fold == 0
    site.predict("third", repacked(site.data / "images/c1.nii.gz", site.scans / "third.nii", "turned"))
    save(site.back / "third.nii.gz", mask(3))
    with pytest.raises(DataError, match="the image is that of c1, on another grid"):
        site.take()
    site.predict("again", repacked(site.data / "images/c0.nii.gz", site.scans / "again.nii", "unpacked"))
    save(site.back / "again.nii.gz", mask(4))
    assert "of the same case as another" in site.take(skip_bad=True).left_out["other"]


@pytest.mark.parametrize("option", [["--unlabelled", "include"], ["--no-hash"], ["--first-stage", "runs/coarse"]])
def test_options_of_other_imports_do_not_go_with_corrections(option: list[str], capsys: pytest.CaptureFixture[str]):
    assert run(["import", "out", "--corrections", "back", *option]) == 2
    assert f"found: {option[0].replace('no-', '')}\n" in capsys.readouterr().err


def write_two_channels(site: Site, flat: float | None = None) -> None:
    """Give every case a second channel, of one value everywhere where one is given."""
    site.write_manifest(hashes=False)
    document = json.loads(site.manifest.read_text())
    document["modality"] = {"0": "T1", "1": "T2"}
    for case in [*document["training"], *document["test"]]:
        path = site.image(site.data / f"images/{case['id']}-t2.nii.gz")
        if flat is not None:
            save(path, np.full(SHAPE, flat, np.float32))
        case["image"] = [case["image"], f"images/{path.name}"]
    site.manifest.write_text(json.dumps(document))


@pytest.mark.parametrize("case", ["c4", "c0"])
@pytest.mark.parametrize("shared", [0, 1])
def test_a_channel_of_a_measured_case_beside_another_is_refused(site: Site, case: str, shared: int):
    write_two_channels(site)
    theirs = repacked(
        site.data / f"images/{case}{'-t2' if shared else ''}.nii.gz", site.scans / "theirs.nii", "unpacked"
    )
    images = [site.image(site.scans / "own.nii.gz"), theirs]
    images = images if shared else images[::-1]
    site.predict("mixed", images[0], beside=images[1:])
    site.predict("new", site.image(site.scans / "new.nii.gz"), beside=[site.image(site.scans / "new-t2.nii.gz")])
    for name in ("mixed", "new"):
        save(site.back / f"{name}.nii.gz", mask(3))
    with pytest.raises(RefusedError, match="has a channel of a case that is measured") as error:
        site.take()
    assert error.value.found == "mixed"
    assert site.take(skip_bad=True).taken == ["new"]  # as the hint says


def test_a_case_is_that_of_which_it_has_all_channels(site: Site):
    write_two_channels(site)
    channels = [
        repacked(site.data / f"images/c0{end}.nii.gz", site.scans / f"x{end}.nii", "unpacked") for end in ("", "-t2")
    ]
    site.predict("x", channels[0], beside=channels[1:])
    save(site.back / "x.nii.gz", mask(3))
    first = site.take().manifest.training[0]
    assert first.only_trains and first.images == ["images/c0.nii.gz", "images/c0-t2.nii.gz"]
    theirs = repacked(site.data / "images/u.nii.gz", site.scans / "theirs.nii", "unpacked")
    site.predict("half", theirs, beside=[site.image(site.scans / "half.nii.gz")])
    save(site.back / "half.nii.gz", mask(4))
    with pytest.raises(DataError, match="some channels of the image are those of a case"):
        site.take(output=site.data / "next.json")


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_channel_that_is_missing_everywhere_makes_no_two_cases_one(site: Site, value: float):
    write_two_channels(site, flat=value)
    empty = save(site.scans / "new-t2.nii.gz", np.full(SHAPE, value, np.float32))
    site.predict("new", site.image(site.scans / "new.nii.gz"), beside=[empty])
    save(site.back / "new.nii.gz", mask(3))
    assert site.take().taken == ["new"]


def test_a_channel_of_a_measured_case_is_known_by_its_numbers_where_others_are_missing(site: Site):
    write_two_channels(site)
    values = site.rng.random(SHAPE, np.float32)
    values[0] = np.nan
    save(site.data / "images/c4-t2.nii.gz", values)
    values.view(np.uint32)[0] |= 1  # another one of the patterns of bits that are no number
    site.predict("mixed", site.image(site.scans / "own.nii"), beside=[save(site.scans / "theirs.nii", values)])
    save(site.back / "mixed.nii.gz", mask(3))
    with pytest.raises(RefusedError, match="has a channel of a case that is measured"):
        site.take()


def test_channels_are_known_whether_they_lie_in_one_file_or_in_several(site: Site):
    write_two_channels(site)
    theirs = [np.asarray(nib.load(site.data / f"images/{name}.nii.gz").dataobj) for name in ("c4-t2", "c0", "c0-t2")]
    site.predict("mixed", save(site.scans / "mixed.nii.gz", np.stack([theirs[0] + 1, theirs[0]], -1)))
    site.predict("x", save(site.scans / "x.nii.gz", np.stack(theirs[1:], -1)))
    for name in ("mixed", "x"):
        save(site.back / f"{name}.nii.gz", mask(3))
    with pytest.raises(RefusedError, match="has a channel of a case that is measured"):
        site.take()
    found = site.take(skip_bad=True)
    assert found.manifest.training[0].only_trains
    assert found.manifest.training[0].images == ["images/c0.nii.gz", "images/c0-t2.nii.gz"]


@pytest.mark.parametrize("id", ["c4", "c0"])
def test_another_image_with_the_id_of_a_measured_case_is_refused(site: Site, id: str):
    site.write_manifest()
    site.predict(id, site.image(site.scans / "x.nii.gz"))
    site.predict("new", site.image(site.scans / "new.nii.gz"))
    for name in (id, "new"):
        save(site.back / f"{name}.nii.gz", mask(3))
    with pytest.raises(RefusedError, match="called as a case that is measured") as error:
        site.take()
    assert error.value.found == id
    assert site.take(skip_bad=True).taken == ["new"]


def test_without_the_images_of_measured_cases_nothing_can_be_told(site: Site):
    site.write_manifest()
    site.predict("new", site.image(site.scans / "new.nii.gz"))
    save(site.back / "new.nii.gz", mask(3))
    (site.data / "images/c4.nii.gz").unlink()
    with pytest.raises(DataError, match="cannot be told whether this is a case that is measured"):
        site.take()


def test_a_corrected_prediction_is_no_mended_label_map_of_the_manifest(site: Site):
    site.write_manifest()
    start = site.predict("c0", site.data / "images/c0.nii.gz")
    save(start, mask(1))
    for id in ("c0", "u"):
        saved = save(site.back / f"{id}.nii.gz", mask(3))
    line = {"annotator": "reader-2", "sha256": sha256_of(saved)}
    lines = [{**line, "id": id, "start_sha256": sha256_of(start)} for id in ("c0", "u")]
    said = site.back / "corrections.jsonl"
    said.write_text("".join(json.dumps(each) + "\n" for each in lines))
    with pytest.raises(DataError, match=r"2 corrections cannot be used[\s\S]*it began as something else"):
        import_corrections(site.manifest, site.back)
    save(site.back / "c0.nii.gz", mask(4))  # saved once more by another tool
    with pytest.raises(DataError, match="2 corrections cannot be used"):
        import_corrections(site.manifest, site.back, annotator="reader-2")
    (site.back / "u.nii.gz").unlink()
    assert site.take().taken == ["c0"]  # as the hint says
    save(site.back / "c1.nii.gz", mask(3))
    lines = [{**line, "id": "c1", "start_sha256": sha256_of(site.data / "labels/c1.nii.gz")}]
    (site.back / "c0.nii.gz").unlink()
    said.write_text(json.dumps(lines[0]) + "\n")
    assert import_corrections(site.manifest, site.back).taken == ["c1"]


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_another_image_of_the_same_id_goes_beside_the_first(site: Site, ending: str, tmp_path: Path):
    kept = {}
    for number in (2, 3):
        image = site.image(site.scans / f"{number}/a.nii.gz")
        if ending == ".mha":
            SimpleITK.WriteImage(SimpleITK.ReadImage(str(image)), str(image.with_name("a.mha")))
            image = image.with_name("a.mha")
        site.out, site.lines = tmp_path / f"out_{number}", []
        site.predict("a", image)
        save(site.back / "a.nii.gz", mask(number + 1))
        manifest = site.take(into=None, output=site.data / f"new_{number}.json", modality=["CT"]).manifest
        (case,) = manifest.training
        kept[case.images[0]] = sha256_of(site.data / case.images[0])
    assert len(kept) == 2 and {path: sha256_of(site.data / path) for path in kept} == kept
    (site.data / next(reversed(kept))).write_bytes(b"something else")
    with pytest.raises(DataError, match="an image that was taken before has changed"):
        site.take(into=None, output=site.data / "new_4.json", modality=["CT"])
    (site.data / next(reversed(kept))).unlink()  # as the hint says
    assert site.take(into=None, output=site.data / "new_4.json", modality=["CT"]).taken == ["a"]


def test_another_scan_of_a_test_patient_is_refused(site: Site):
    site.write_manifest()
    site.predict("P2-b", site.image(site.scans / "P2-b.nii.gz"))
    save(site.back / "P2-b.nii.gz", mask(3))
    with pytest.raises(RefusedError, match="patients of the test set"):
        site.take(patient_rule="regex:(P[0-9]+)")
    with pytest.raises(UsageError, match="no correction to take"):
        site.take(patient_rule="regex:(P[0-9]+)", skip_bad=True)


def test_a_further_scan_of_a_patient_goes_with_his_fold(site: Site):
    site.write_manifest()
    site.predict("P1-b", site.image(site.scans / "P1-b.nii.gz"))
    save(site.back / "P1-b.nii.gz", mask(3))
    manifest = site.take(patient_rule="regex:(P[0-9]+)").manifest
    assert "P1-b" not in [case.id for case in manifest.select("training", 1)]
    assert "P1-b" in [case.id for case in manifest.select("training", 0)]
    assert "P1-b" not in [case.id for case in manifest.select("validation", 1)]


@pytest.fixture
def hidden(site: Site) -> tuple[str, str]:
    """A manifest of pseudonyms with folds and a test set; the names of a patient of the test set and of a fold."""
    for number in range(4):
        site.image(site.data / f"images/mueller{number}_v1.nii.gz")
        save(site.data / f"labels/mueller{number}_v1.nii.gz", mask())
    words = ["import", "--images", f"{site.data}/images", "--labels", f"{site.data}/labels", "--label-name", "liver"]
    words += ["--pseudonymise", "--patient-rule", RULE, "--key", str(site.data.parent / "key")]
    assert run([*words, "-o", str(site.manifest), "--json"]) == 0
    manifest = draw_split(load_manifest(site.manifest), 1, 3)
    save_manifest(manifest, site.manifest)
    tested, trained = manifest.test[0].images[0], manifest.training[0].images[0]
    return Path(tested).name.partition("_")[0], Path(trained).name.partition("_")[0]


def scan_of(site: Site, who: str, **more: Any) -> None:
    site.predict(f"{who}_v2", site.image(site.scans / f"{who}_v2.nii.gz"), {"liver": 1}, **more)
    save(site.back / f"{who}_v2.nii.gz", mask(3))


def test_a_scan_of_a_test_patient_is_known_by_his_pseudonym(site: Site, hidden: tuple[str, str]):
    scan_of(site, hidden[0])
    with pytest.raises(RefusedError, match="patients of the test set"):
        site.take(patient_rule=RULE, key=site.data.parent / "key")


def test_a_new_case_of_a_manifest_of_pseudonyms_has_one(site: Site, hidden: tuple[str, str]):
    scan_of(site, hidden[1])
    found = site.take(patient_rule=RULE, key=site.data.parent / "key")
    (case,) = [case for case in found.manifest.training if case.history]
    (first,) = [each for each in found.manifest.training if f"{hidden[1]}_v1" in each.images[0]]
    assert (case.patient_id, case.fold) == (first.patient_id, first.fold)
    assert found.taken == [case.id] and case.id.startswith("case-") and len(case.id) == 17
    assert "mueller" not in str(case.model_dump())
    assert not list((site.data / "corrected").rglob("*mueller*"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "it is not known who new cases are of"),
        ({"patient_rule": RULE}, "rule and key do not name the patients"),
        ({"patient_rule": r"regex:mueller(\d)", "key": "key"}, "rule and key do not name the patients"),
    ],
)
def test_new_cases_are_named_as_those_of_the_manifest_or_refused(
    site: Site, hidden: tuple[str, str], given: dict[str, str], words: str
):
    scan_of(site, hidden[0])
    given = {**given, "key": site.data.parent / given["key"]} if "key" in given else given
    with pytest.raises(UsageError, match=words) as error:
        site.take(**given)
    assert "`--patient-rule none`" in str(error.value.hint)
    said: list[str] = []
    manifest = site.take(**{**given, "patient_rule": "none"}, note=said.append).manifest  # as the hint says
    assert any(text.startswith("it is not known who some new cases are of") for text in said)
    assert [case.patient_id for case in manifest.training if case.history] == [None]


def test_the_rule_of_the_manifest_names_new_patients(site: Site):
    site.write_manifest(patient_rule="regex:(P[0-9]+)")
    site.predict("P2-b", site.image(site.scans / "P2-b.nii.gz"))
    save(site.back / "P2-b.nii.gz", mask(3))
    with pytest.raises(RefusedError, match="patients of the test set"):
        site.take()
    site.predict("other", site.image(site.scans / "other.nii.gz"))
    save(site.back / "other.nii.gz", mask(3))
    (site.back / "P2-b.nii.gz").unlink()
    with pytest.raises(DataError, match="the patient rule does not match") as error:
        site.take()
    assert "`--patient-rule none`" in str(error.value)
    assert site.take(patient_rule="none").taken == ["other"]


def test_a_name_that_cannot_be_an_id_still_tells_the_patient(site: Site):
    site.write_manifest()
    site.predict("case-0123456789ab", site.image(site.scans / "P2 ü.nii.gz"))
    save(site.back / "case-0123456789ab.nii.gz", mask(3))
    with pytest.raises(RefusedError, match="patients of the test set"):
        site.take(patient_rule="regex:(P[0-9]+)")


def test_the_key_of_the_series_of_a_manifest_names_new_ones(site: Site, tmp_path: Path):
    write(slices_of_a_series(), tmp_path / "dicom")
    (series,) = scan(tmp_path / "dicom").series
    (tmp_path / "key").write_text("ab" * 32)
    site.write_manifest(pseudonymised=True)
    document = json.loads(site.manifest.read_text())
    document["test"][0]["patient_id"] = patient_pseudonym(series.files[0], b"ab" * 32)
    site.manifest.write_text(json.dumps(document))
    line = {"id": "c4", "paths": [str(series.files[0])]}
    (site.data / "mapping.jsonl").write_text(json.dumps(line) + "\n")
    labels = np.zeros(series.shape, np.uint8)
    site.predict(series.case_id, tmp_path / "dicom")
    save(site.out / series.case_id / "segmentation.nii.gz", labels, series.affine_ras)
    labels[1:3, 1:4, 1:] = 1
    save(site.back / f"{series.case_id}.nii.gz", labels, series.affine_ras)
    with pytest.raises(RefusedError, match="patients of the test set"):
        site.take(key=tmp_path / "key")
    with pytest.raises(UsageError, match="the key does not name the manifest's own series"):
        site.take(key=tmp_path / "another")
    assert site.take(key=tmp_path / "another", patient_rule="none").taken == [series.case_id]  # as the hint says
    (site.data / "mapping.jsonl").unlink()
    with pytest.raises(UsageError, match="whether the key is the manifest's cannot be told"):
        site.take(key=tmp_path / "key")


def test_a_key_that_names_nothing_is_refused(site: Site):
    site.write_manifest()
    site.predict("new", site.image(site.scans / "new.nii.gz"))
    save(site.back / "new.nii.gz", mask(3))
    with pytest.raises(UsageError, match="--key names the patients of DICOM series"):
        site.take(key=site.data.parent / "key")
    assert site.take().taken == ["new"]


def test_a_case_without_label_moves_from_test_to_training_and_it_is_said(site: Site):
    site.write_manifest()
    site.predict("u", site.data / "images/u.nii.gz")
    save(site.back / "u.nii.gz", mask(3))
    said: list[str] = []
    found = site.take(note=said.append)
    assert [case.id for case in found.manifest.test] == ["c4", "c5"]
    assert said[0] == "1 case without a label moved from test to training: u"


def test_what_is_unchanged_is_left_out_unless_it_is_confirmed(site: Site):
    site.write_manifest()
    site.predict("new", site.image(site.scans / "new.nii.gz"))
    save(site.back / "new.nii.gz", mask())
    with pytest.raises(UsageError, match="no correction to take") as error:
        site.take()
    assert "1 unchanged" in str(error.value.found) and "--confirmed" in str(error.value.hint)
    found = site.take(confirmed=True)  # as the hint says
    assert found.manifest.training[-1].history[0].changed_voxels == 0


def test_a_second_round_goes_on_with_the_first(site: Site):
    site.write_manifest()
    for name in ("a", "b"):
        site.predict(name, site.image(site.scans / f"{name}.nii.gz"))
    record_reading(site.manifest, "a" * 64, None, "c" * 64, 1)
    save(site.back / "a.nii.gz", mask(3))
    first = site.take()
    save(site.back / "b.nii.gz", mask(4))
    second = site.take(into=first.path)
    assert (second.path.name, second.taken, second.known) == ("manifest_3.json", ["b"], ["a"])
    save(site.back / "a.nii.gz", mask(5))  # corrected again
    third = site.take(into=second.path, annotator="reader-3")
    assert [each.model for each in readings_of(third.path)] == ["a" * 64]  # the test set is the same
    case = next(case for case in third.manifest.training if case.id == "a")
    assert [each.annotator for each in case.history] == ["reader-2", "reader-3"]
    assert np.array_equal(np.asarray(nib.load(site.data / case.label).dataobj), mask(5))
    with pytest.raises(UsageError, match="no correction to take"):
        site.take(into=third.path)


def test_label_maps_that_were_changed_in_place_are_told_by_their_hash(site: Site):
    site.write_manifest()
    for name in ("a", "b"):
        site.predict(name, site.image(site.scans / f"{name}.nii.gz"))
    kept = sha256_of(site.out / "a/segmentation.nii.gz")
    save(site.out / "a/segmentation.nii.gz", mask(3))
    found = import_corrections(site.out, site.out, into=site.manifest, annotator="reader-2")
    assert (found.taken, found.unchanged) == (["a"], ["b"])
    (made,) = found.manifest.training[-1].history
    assert made.start.sha256 == kept and made.changed_voxels is None


def test_labels_of_a_manifest_that_are_mended_stay_in_their_fold(site: Site):
    site.write_manifest()
    save(site.back / "c0.nii.gz", mask(3))
    found = import_corrections(site.manifest, site.back, annotator="reader-2")
    case = found.manifest.training[0]
    assert (case.id, case.fold, case.only_trains, case.selection) == ("c0", 0, False, None)
    assert case.history[0].start.of == "label" and case.history[0].changed_voxels == 18
    save(site.back / "c4.nii.gz", mask(3))
    with pytest.raises(RefusedError, match="test cases"):
        import_corrections(site.manifest, site.back, annotator="reader-2")


@pytest.mark.parametrize("selection", ["random", "chosen"])
def test_what_was_drawn_from_scratch_is_measured_where_it_was_drawn_at_random(site: Site, selection: str):
    site.write_manifest()
    save(site.back / "u.nii.gz", mask(3))
    found = import_corrections(site.manifest, site.back, annotator="reader-2", selection=selection)
    case = found.manifest.training[-1]
    assert (case.id, case.history[0].start, case.selection) == ("u", None, selection)
    assert case.only_trains == (selection == "chosen")
    drawn = draw_split(found.manifest, None, 2, redraw=True)
    assert ("u" in [case.id for case in drawn.select("out_of_fold")]) == (selection == "random")


def test_a_new_manifest_has_the_labels_of_the_results(site: Site):
    site.predict("new", site.image(site.scans / "new.nii.gz"))
    save(site.back / "new_seg.nii.gz", mask(3))
    with pytest.raises(UsageError, match="where is the manifest"):
        site.take()
    found = site.take(output=site.data / "manifest.json", modality=["CT"])
    assert found.manifest.labels == {"0": "background", "1": "liver", "2": "lesion"}
    assert [case.id for case in found.manifest.select("training")] == ["new"]


def turned(values: np.ndarray) -> nib.Nifti1Image:
    return nib.Nifti1Image(values, AFFINE).as_reoriented(np.array([[0, -1], [2, 1], [1, 1]]))


def test_axes_in_another_order_are_put_right(site: Site):
    site.write_manifest()
    site.predict("new", site.image(site.scans / "new.nii.gz"))
    other = turned(mask(3))
    assert other.shape != SHAPE
    nib.save(other, site.back / "new.nii.gz")
    case = site.take().manifest.training[-1]
    assert np.array_equal(np.asarray(nib.load(site.data / case.label).dataobj), mask(3))


@pytest.mark.parametrize(
    ("values", "affine", "words"),
    [
        (mask(3)[:, :, 1:], AFFINE, "does not lie on the grid of the image"),  # cropped
        (mask(3), AFFINE + np.eye(4) * [[0.0], [0.0], [0.5], [0.0]], "does not lie on the grid"),
        (mask(3, value=7), AFFINE, "values that are no label, found 7, expected 1 \\(liver\\), 2 \\(lesion\\)"),
        (mask(3) * np.float32(0.5), AFFINE, "values that are no label, found 0.5"),
    ],
)
def test_what_cannot_be_a_label_map_of_the_image_is_refused(site: Site, values: Any, affine: Any, words: str):
    site.write_manifest()
    for name in ("bad", "good"):
        site.predict(name, site.image(site.scans / f"{name}.nii.gz"))
    save(site.back / "bad.nii.gz", values, affine)
    save(site.back / "good.nii.gz", mask(3))
    with pytest.raises(DataError, match=f"1 corrections cannot be used, 1 can[\\s\\S]*{words}"):
        site.take()
    assert not (site.data / "manifest_2.json").exists()
    assert site.take(skip_bad=True).taken == ["good"]


def test_ignored_voxels_may_be_drawn(site: Site):
    site.write_manifest(ignore_label=255)
    site.predict("new", site.image(site.scans / "new.nii.gz"))
    save(site.back / "new.nii.gz", mask(3, value=255))
    assert site.take().taken == ["new"]


def test_an_image_that_changed_or_went_is_refused(site: Site):
    site.write_manifest()
    image = site.image(site.scans / "new.nii.gz")
    site.predict("new", image)
    save(site.back / "new.nii.gz", mask(3))
    site.image(image)
    with pytest.raises(DataError, match="the image has changed since it was segmented"):
        site.take()
    image.unlink()
    with pytest.raises(DataError, match="the image is not where it was"):
        site.take()


def test_labels_that_mean_something_else_in_the_manifest_are_refused(site: Site):
    site.write_manifest()
    site.predict("new", site.image(site.scans / "new.nii.gz"), {"liver": 2, "lesion": 1})
    save(site.back / "new.nii.gz", mask(3))
    with pytest.raises(DataError, match="mean something else in the manifest"):
        site.take()


def test_a_model_of_fewer_labels_looked_for_these_alone(site: Site):
    site.write_manifest()
    site.predict("new", site.image(site.scans / "new.nii.gz"), {"liver": 1})
    save(site.back / "new.nii.gz", mask(3))
    assert site.take().manifest.training[-1].annotated_labels == ["liver"]


def test_who_made_them_is_a_pseudonym(site: Site):
    site.write_manifest()
    site.predict("new", site.image(site.scans / "new.nii.gz"))
    save(site.back / "new.nii.gz", mask(3))
    with pytest.raises(UsageError, match="who made the corrections"):
        site.take(annotator=None)
    with pytest.raises(UsageError, match="not a pseudonym"):
        site.take(annotator="Doe^Jane")
    line = {"id": "new", "sha256": sha256_of(site.back / "new.nii.gz"), "annotator": "reader-9", "minutes": 2.5}
    (site.back / "corrections.jsonl").write_text(json.dumps({**line, "date": "2026-01-02T03:04:05+00:00"}) + "\n")
    (made,) = site.take(annotator=None).manifest.training[-1].history
    assert (made.annotator, made.minutes, made.date) == ("reader-9", 2.5, "2026-01-02T03:04:05+00:00")


def test_several_files_of_one_case_are_refused(site: Site):
    site.write_manifest()
    site.predict("new", site.image(site.scans / "new.nii.gz"))
    for name in ("new.nii.gz", "new_seg.nii.gz"):
        save(site.back / name, mask(3))
    with pytest.raises(DataError, match="several label maps"):
        site.take()
    site.predict("good", site.image(site.scans / "good.nii.gz"))
    save(site.back / "good.nii.gz", mask(3))
    found = site.take(skip_bad=True)
    assert found.taken == ["good"] and "several label maps" in found.left_out["new"]


def test_a_seg_corrects_a_series(site: Site, tmp_path: Path):
    site.write_manifest()
    write(slices_of_a_series(), tmp_path / "dicom")
    (series,) = scan(tmp_path / "dicom").series
    labels = np.zeros(series.shape, np.uint8)
    labels[1:3, 1:4, 1:] = 1
    labels[4, 2:4, 1] = 2
    site.predict(series.case_id, tmp_path / "dicom")
    save(site.out / series.case_id / "segmentation.nii.gz", labels, series.affine_ras)
    labels[3, 3, 1] = 1
    infos, _ = label_infos({0: "background", 1: "liver", 2: "lesion"})
    algorithm = AlgorithmInfo("organs", "1.0", "ab" * 32)
    (tmp_path / "seg").mkdir()
    write_dicom(tmp_path / "seg", ["seg"], series, labels, {"liver": 1.0, "lesion": 1.0}, infos, algorithm)
    shutil.move(tmp_path / "seg/seg.dcm", site.back / f"{series.case_id}.dcm")
    case = site.take(key=tmp_path / "key").manifest.training[-1]
    assert case.history[0].changed_voxels == 1 and str(case.patient_id).startswith("patient-")
    written, image = nib.load(site.data / case.label), nib.load(site.data / case.image)
    assert np.array_equal(np.asarray(written.dataobj), labels)
    assert np.allclose(written.affine, series.affine_ras) and np.allclose(image.affine, series.affine_ras)
    infos, _ = label_infos({0: "background", 1: "liver", 2: "Doe^Jane"})
    write_dicom(tmp_path / "seg", ["seg"], series, labels, {"liver": 1.0, "Doe^Jane": 1.0}, infos, algorithm)
    shutil.move(tmp_path / "seg/seg.dcm", site.back / f"{series.case_id}.dcm")
    with pytest.raises(DataError, match="called as no label, found 1 of 2") as error:
        site.take(key=tmp_path / "key")
    assert "Jane" not in str(error.value)


def test_the_command_says_what_became_of_each(site: Site, capsys: pytest.CaptureFixture[str]):
    site.write_manifest()
    for name in ("a", "b", "c"):
        site.predict(name, site.image(site.scans / f"{name}.nii.gz"))
    save(site.back / "a.nii.gz", mask(3))
    save(site.back / "b.nii.gz", mask())
    save(site.back / "c.nii.gz", mask(3, value=9))
    save(site.back / "stray.nii.gz", mask(3))
    words = ["import", str(site.out), "--corrections", str(site.back), "--into", str(site.manifest)]
    assert run([*words, "--annotator", "reader-2", "--skip-bad", "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["corrections"]["taken"] == ["a"] and document["corrections"]["unchanged"] == ["b"]
    assert "values that are no label" in document["corrections"]["left_out"]["c"]
    assert "passed over: 1 label map of no case of predictions: stray.nii.gz" in printed.err
    assert run([*words, "--layout", "nnunet"]) == 2
    assert run(["import", str(site.manifest), "--annotator", "x"]) == 2


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("corrections.jsonl", {"annotator": 7}),
        ("corrections.jsonl", {"annotator": "Doe^Jane"}),
        ("corrections.jsonl", {"minutes": "ten"}),
        ("corrections.jsonl", {"minutes": -1}),
        ("corrections.jsonl", {"date": 5}),
        ("corrections.jsonl", {"start_sha256": "x"}),
        ("mapping.jsonl", {"id": 5, "paths": 7}),
        ("mapping.jsonl", {"id": "bad", "paths": [None]}),
        ("result.json", []),
        ("result.json", {"labels": ["liver"]}),
        ("result.json", {"bundle": "organs"}),
        ("result.json", {"bundle": {"name": "organs", "version": "1", "sha256": "no"}}),
        ("result.json", {"source_sha256": 7}),
    ],
)
def test_files_that_are_not_as_they_should_are_named(site: Site, file: str, change: Any):
    site.write_manifest()
    for name in ("bad", "good"):
        site.predict(name, site.image(site.scans / f"{name}.nii.gz"))
        save(site.back / f"{name}.nii.gz", mask(3))
    if file == "result.json":
        (site.out / "bad/result.json").write_text(json.dumps(change))
    else:
        path = {"corrections.jsonl": site.back, "mapping.jsonl": site.out}[file] / file
        with path.open("a") as stream:
            stream.write(json.dumps({"sha256": sha256_of(site.back / "bad.nii.gz"), **change}) + "\n")
    with pytest.raises(DataError, match="not as `segpipe` writes it") as error:
        site.take()
    assert file in str(error.value) and "Jane" not in str(error.value)
    if file == "result.json":
        assert site.take(skip_bad=True).taken == ["good"]
