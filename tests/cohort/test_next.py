"""Which cases to annotate next: in doubt, unlike what is annotated, and never one that is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from dicom.make import series, write
from segpipe.cli.app import run
from segpipe.cohort import next_cases
from segpipe.cohort.annotated import Annotated
from segpipe.cohort.choosing import _greedy
from segpipe.cohort.descriptors import describe
from segpipe.dicom import load_series, scan
from segpipe.errors import DataError, UsageError

SHAPE = (12, 10, 8)


class Pool:
    """Results on scans of several looks: ``look`` is where in the image something bright lies."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "predictions"
        self.rng = np.random.default_rng(0)
        (root / "scans").mkdir()

    def scan(self, name: str, look: int, codes: str = "RAS") -> Path:
        values = self.rng.normal(size=SHAPE).astype(np.float32)
        values[3 * look : 3 * look + 3] += 8
        image = nib.Nifti1Image(values, np.eye(4))
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
        )
        path = self.root / "scans" / f"{name}.nii.gz"
        nib.save(image.as_reoriented(turn), path)
        return path

    def predict(self, name: str, look: int, dice: float | None = None, entropy: float | None = None) -> None:
        folder = self.out / name
        folder.mkdir(parents=True)
        image = self.scan(name, look)
        result: dict[str, Any] = {"decision": None, "quality": None}
        if dice is not None:
            result = {"decision": "look", "quality": {"dice": {"liver": 0.95, "lesion": dice}}}
        if entropy is not None:
            labels = np.zeros(SHAPE, np.uint8)
            labels[:2] = 1
            nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / "segmentation.nii.gz")
            nib.save(nib.Nifti1Image(np.full(SHAPE, entropy, np.float32), np.eye(4)), folder / "entropy.nii.gz")
        (folder / "result.json").write_text(json.dumps(result))
        (self.out / "predictions.jsonl").touch()
        with (self.out / "mapping.jsonl").open("a") as stream:
            stream.write(json.dumps({"id": name, "paths": [str(image)]}) + "\n")

    def manifest(self, labelled: dict[str, int], unlabelled: dict[str, int]) -> Path:
        for name, look in {**labelled, **unlabelled}.items():
            self.scan(name, look)
        document = {
            "schema_version": 1,
            "name": "site",
            "modality": {"0": "CT"},
            "labels": {"0": "background", "1": "liver"},
            "training": [{"id": n, "image": f"scans/{n}.nii.gz", "label": f"{n}.nii.gz"} for n in labelled],
            "test": [{"id": n, "image": f"scans/{n}.nii.gz"} for n in unlabelled],
        }
        (self.root / "manifest.json").write_text(json.dumps(document))
        return self.root / "manifest.json"


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path)


def chosen(found: Any) -> list[str]:
    return [each.id for each in found.choices]


def test_what_the_quality_model_doubts_comes_first(pool: Pool):
    for name, dice in (("a", 0.9), ("b", 0.2), ("c", 0.8)):
        pool.predict(name, 0, dice)
    found = next_cases(pool.out, 2)
    assert found.choices[0].id == "b" and found.choices[0].doubt == pytest.approx(0.8)
    assert (found.doubt_from, found.candidates, found.annotated) == ("quality model", 3, 0)


def test_of_an_entropy_the_voxels_in_doubt_count(pool: Pool):
    pool.predict("sure", 0, entropy=0.01)
    pool.predict("unsure", 0, entropy=0.6)
    found = next_cases(pool.out, 2)
    assert chosen(found) == ["unsure", "sure"] and found.doubt_from == "entropy"
    share = SHAPE[0] * 0.6 / np.log(2)  # of slices, against two labelled ones
    assert found.choices[0].doubt == pytest.approx(share / (share + 2), abs=1e-6)


def test_one_of_each_look_before_a_second_of_one(pool: Pool):
    for look in range(3):
        for number in range(4):
            pool.predict(f"look{look}-{number}", look, 0.5)
    names = chosen(next_cases(pool.out, 3))
    assert {name[:5] for name in names} == {"look0", "look1", "look2"}


def test_what_is_unlike_the_annotated_ones_comes_first(pool: Pool):
    manifest = pool.manifest({"known0": 0, "known1": 1}, {})
    for look in range(3):
        pool.predict(f"look{look}", look, 0.5)
    found = next_cases(pool.out, 1, annotated=manifest)
    assert chosen(found) == ["look2"] and found.annotated == 2


def test_a_manifest_alone_is_chosen_from_by_distance(pool: Pool):
    manifest = pool.manifest({"known": 0}, {"same": 0, "other": 2})
    found = next_cases(manifest, 5)
    assert chosen(found) == ["other", "same"] and found.doubt_from == "none"
    assert found.choices[0].distance > found.choices[1].distance


def test_what_is_annotated_is_never_chosen_whatever_it_is_called(pool: Pool):
    manifest = pool.manifest({"known": 0}, {})
    pool.predict("new", 1, 0.9)
    pool.predict("copy", 0, 0.1)
    pool.predict("known", 0, 0.1)
    shutil.copy(pool.root / "scans/known.nii.gz", pool.root / "scans/copy.nii.gz")
    assert chosen(next_cases(pool.out, 5, annotated=manifest)) == ["new"]
    nib.save(nib.load(pool.root / "scans/known.nii.gz"), pool.root / "scans/unpacked.nii")
    with (pool.out / "mapping.jsonl").open("a") as stream:
        stream.write(json.dumps({"id": "copy", "paths": [str(pool.root / "scans/unpacked.nii")]}) + "\n")
    assert chosen(next_cases(pool.out, 5, annotated=manifest)) == ["new"]
    shutil.rmtree(pool.out / "new")
    with pytest.raises(UsageError, match="no case to choose from"):
        next_cases(pool.out, 5, annotated=manifest)


def save(path: Path, *channels: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(np.stack(channels, -1) if len(channels) > 1 else channels[0], np.eye(4)), path)
    return path


def channels(seed: int, count: int = 2) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 99, (count, *SHAPE)).astype(np.int16))


@pytest.mark.parametrize(
    ("packed", "known"),
    [
        ("the same files", True),
        ("one file of both", True),
        ("the second alone", True),
        ("in the other order", True),
        ("the first of another scan", False),
        ("an empty channel of every scan", False),
        ("an atlas of every scan", False),
    ],
)
def test_a_case_of_several_channels_is_known_however_they_are_packed(tmp_path: Path, packed: str, known: bool):
    (one, two), (other, more), (third, atlas) = (channels(seed) for seed in range(3))
    empty = np.zeros(SHAPE, np.int16)
    common = {"an atlas of every scan": atlas, "an empty channel of every scan": empty}.get(packed, two)
    scans = {
        "the same files": [save(tmp_path / "x0.nii", one), save(tmp_path / "x1.nii", two)],
        "one file of both": [save(tmp_path / "both.nii", one, two)],
        "the second alone": [save(tmp_path / "second.nii", two)],
        "in the other order": [tmp_path / "x1.nii", tmp_path / "x0.nii"],
    }
    candidate = scans.get(packed, [save(tmp_path / "other.nii", other), save(tmp_path / "common.nii", more)])
    annotated = [("a", [save(tmp_path / "a0.nii", one), save(tmp_path / "a1.nii", two)])]
    if common is not two:
        candidate = [candidate[0], save(tmp_path / "c.nii", common)]
        annotated = [("a", [tmp_path / "a0.nii", tmp_path / "c.nii"]), ("b", [save(tmp_path / "b.nii", third, common)])]
    assert Annotated(annotated).has("new", candidate) is known


def test_a_series_that_is_annotated_as_nifti_is_known(tmp_path: Path):
    files = write(series(), tmp_path / "dicom")
    volume = load_series(scan([tmp_path / "dicom"]).series[0])
    nib.save(nib.Nifti1Image(volume.array, volume.affine_ras), tmp_path / "scan.nii.gz")
    assert Annotated([("a", [tmp_path / "scan.nii.gz"])]).has("dcm-1", files)
    assert not Annotated([("a", [save(tmp_path / "b.nii", *channels(0, 1))])]).has("dcm-1", files)


def test_a_case_that_only_has_the_id_of_an_annotated_one_is_left_out_and_said(
    pool: Pool, capsys: pytest.CaptureFixture[str]
):
    manifest = pool.manifest({"case_001": 0, "case_002": 0}, {})
    (pool.root / "scans").rename(pool.root / "annotated")
    manifest.write_text(manifest.read_text().replace("scans/", "annotated/"))
    (pool.root / "scans").mkdir()
    for name in ("new", "case_001", "case_002"):  # of another hospital
        pool.predict(name, 1, 0.5)
    shutil.copy(pool.root / "annotated/case_002.nii.gz", pool.root / "scans/case_002.nii.gz")  # but this is the same
    found = next_cases(pool.out, 5, annotated=manifest)
    assert (chosen(found), found.left_out_by_id) == (["new"], ["case_001"])
    words = ["next", str(pool.out), "--annotated", str(manifest)]
    assert run(words) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "though annotated cases have other images: case_001" in said and "--pseudonymise" in said
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    schema = json.loads((Path(__file__).parents[2] / "docs/schemas/next.schema.json").read_text())
    Draft202012Validator(schema).validate(document)
    assert document["left_out_by_id"] == ["case_001"]
    shutil.rmtree(pool.out / "new")
    with pytest.raises(UsageError, match="no case to choose from") as error:
        next_cases(pool.out, 5, annotated=manifest)
    assert "case_001" in str(error.value.found) and "--pseudonymise" in str(error.value.hint)
    (pool.out / "case_001").rename(pool.out / "scan-0a1b2c3d")  # what the hint leads to
    mapping = pool.out / "mapping.jsonl"
    mapping.write_text(mapping.read_text().replace('"id": "case_001"', '"id": "scan-0a1b2c3d"'))
    assert chosen(next_cases(pool.out, 5, annotated=manifest)) == ["scan-0a1b2c3d"]


def test_an_image_that_is_gone_is_left_out_and_said(pool: Pool):
    pool.predict("here", 0, 0.5)
    pool.predict("gone", 0, 0.5)
    (pool.root / "scans/gone.nii.gz").unlink()
    found = next_cases(pool.out, 5)
    assert chosen(found) == ["here"] and found.unreadable == {"gone": "the image is not where it was"}
    (pool.root / "scans/here.nii.gz").unlink()
    with pytest.raises(UsageError, match="no image can be read"):
        next_cases(pool.out, 5)


def test_axes_and_scale_of_the_values_make_no_difference(pool: Pool):
    straight = pool.scan("straight", 1)
    image = nib.load(straight)
    values = np.asarray(image.dataobj)
    turned = image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nib.save(turned, pool.root / "turned.nii.gz")
    nib.save(nib.Nifti1Image(values * 40 - 7, image.affine), pool.root / "scaled.nii.gz")
    expected = describe([straight])
    for name in ("turned", "scaled"):
        assert np.allclose(describe([pool.root / f"{name}.nii.gz"]), expected, atol=1e-5)


def test_gain_is_the_mean_of_the_ranks():
    table = np.array([[0.0], [1.0], [3.0], [10.0]])
    found = _greedy(table, np.array([[0.0]]), [0.9, 0.2, 0.8, 0.1], 4)
    ranks = {0: (1, 0), 1: (1 / 3, 1 / 3), 2: (2 / 3, 2 / 3), 3: (0, 1)}  # by doubt, by distance
    place, far, gain = found[0]
    assert place == 2 and far == 3.0 and gain == pytest.approx(np.mean(ranks[2]))
    assert [each[0] for each in found[1:]] == [0, 1, 3]  # equal gains, so in their order


def test_the_command_writes_the_ids(pool: Pool, capsys: pytest.CaptureFixture[str]):
    for look in range(3):
        pool.predict(f"look{look}", look)
    out = pool.root / "next.txt"
    assert run(["next", str(pool.out), "-n", "2", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "segpipe predict --entropy" in printed and len(out.read_text().split()) == 2
    assert run(["next", str(pool.root / "scans")]) == 2


def test_what_is_printed_has_no_more_digits_than_anybody_reads(pool: Pool, capsys: pytest.CaptureFixture[str]):
    manifest = pool.manifest({"known": 0}, {})
    for look in range(3):
        pool.predict(f"look{look}", look, 0.1 * look + 0.123456789)
    words = ["next", str(pool.out), "--annotated", str(manifest)]
    assert run(words) == 0
    printed = re.findall(r"[0-9]+\.([0-9]+)", capsys.readouterr().out)
    assert len(printed) == 9 and {len(places) for places in printed} == {3}
    assert run([*words, "--json"]) == 0
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert all(len(str(case[name]).partition(".")[2]) <= 6 for case in cases for name in ("gain", "doubt", "distance"))


def test_a_label_whose_dice_is_not_known_is_passed_over(pool: Pool):
    for name, dice in (("some", {"liver": 0.75, "lesion": None}), ("none", {"liver": None})):
        pool.predict(name, 0)
        (pool.out / name / "result.json").write_text(json.dumps({"decision": None, "quality": {"dice": dice}}))
    doubts = {each.id: each.doubt for each in next_cases(pool.out, 2).choices}
    assert doubts == {"some": 0.25, "none": None}


@pytest.mark.parametrize("file", ["mapping.jsonl", "a/result.json"])
def test_files_that_are_not_as_they_should_are_named(pool: Pool, file: str):
    pool.predict("a", 0)
    (pool.out / file).write_text(json.dumps({"id": 5, "paths": 7, "quality": [1]}))
    with pytest.raises(DataError, match="not as `segpipe` writes it") as error:
        next_cases(pool.out)
    assert str(error.value.path) == str(pool.out / file)
