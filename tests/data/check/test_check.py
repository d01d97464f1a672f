from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.common.files import sha256_of
from segpipe.data.check.case_check import KINDS, Finding
from segpipe.data.check.dataset_check import check_manifest
from segpipe.data.manifest import Case, Manifest, save_manifest
from segpipe.errors import UsageError

N_CASES = 5
SHAPE = (6, 7, 5)


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 10, shape).astype(np.float32)


def mask(seed: int, *values: float, dtype: type = np.uint8) -> np.ndarray:
    label = np.zeros(SHAPE, dtype)
    label.flat[seed + 3 : seed + 3 + len(values)] = values
    return label


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Manifest, Path]:
    """Five sound cases."""
    for index in range(N_CASES):
        save(tmp_path / f"i{index}.nii.gz", noise(index))
        save(tmp_path / f"l{index}.nii.gz", mask(index, 1, 2))
    return manifest_of(), tmp_path


def manifest_of(channels: int = 1) -> Manifest:
    cases = [
        Case(id=f"c{index}", image=f"i{index}.nii.gz", label=f"l{index}.nii.gz", patient_id=f"P{index}")
        for index in range(N_CASES)
    ]
    modality = {str(index): "MRI" for index in range(channels)}
    labels = {"0": "background", "1": "a", "2": "b"}
    return Manifest(name="d", modality=modality, labels=labels, training=cases)


def shifted(root: Path) -> None:
    affine = np.eye(4)
    affine[0, 3] = 0.5
    save(root / "l1.nii.gz", mask(1, 1), affine)


def turned(root: Path) -> None:
    affine = np.diag([-1.0, 1, 1, 1])
    save(root / "i1.nii.gz", noise(1), affine)
    save(root / "l1.nii.gz", mask(1, 1), affine)


def thick(root: Path) -> None:
    affine = np.diag([1.0, 1, 3.5, 1])
    save(root / "i1.nii.gz", noise(1), affine)
    save(root / "l1.nii.gz", mask(1, 1), affine)


def with_nan(root: Path) -> None:
    values = noise(1)
    values[0, 0, :2] = np.nan, np.inf
    save(root / "i1.nii.gz", values)


def truncated(root: Path) -> None:
    path = root / "i1.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])


def copied_and_packed_again(root: Path) -> None:
    (root / "i1.nii.gz").write_bytes(gzip.compress(gzip.decompress((root / "i0.nii.gz").read_bytes()), 1))


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing image": (lambda root: (root / "i1.nii.gz").unlink(), "missing_file", "image"),
    "missing label": (lambda root: (root / "l1.nii.gz").unlink(), "missing_file", "label"),
    "truncated": (truncated, "unreadable_file", "image"),
    "not NIfTI": (lambda root: (root / "l1.nii.gz").write_text("no"), "unreadable_file", "label"),
    "empty file": (lambda root: (root / "i1.nii.gz").write_bytes(b""), "unreadable_file", "image"),
    "complex": (lambda root: save(root / "i1.nii.gz", noise(1) * 1j), "unreadable_file", "image"),
    "colours": (
        lambda root: save(root / "i1.nii.gz", np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "unreadable_file",
        "image",
    ),
    "2D": (lambda root: save(root / "i1.nii.gz", noise(1, (6, 7))), "not_a_volume", "image"),
    "4D": (lambda root: save(root / "i1.nii.gz", noise(1, (*SHAPE, 2))), "not_a_volume", "image"),
    "4D label": (lambda root: save(root / "l1.nii.gz", noise(1, (*SHAPE, 2))), "not_a_volume", "label"),
    "other shape": (lambda root: save(root / "i1.nii.gz", noise(1, (6, 7, 6))), "label_geometry_differs", "label"),
    "shifted": (shifted, "label_geometry_differs", "label"),
    "NaN": (with_nan, "not_finite", "image"),
    "constant": (lambda root: save(root / "i1.nii.gz", np.full(SHAPE, 7.0)), "constant_image", "image"),
    "unknown": (lambda root: save(root / "l1.nii.gz", mask(1, 1, 5)), "unknown_label", "label"),
    "negative": (lambda root: save(root / "l1.nii.gz", mask(1, 1, -1, dtype=np.int16)), "unknown_label", "label"),
    "fraction": (lambda root: save(root / "l1.nii.gz", mask(1, 1, 1.5, dtype=float)), "fractional_label", "label"),
    "empty": (lambda root: save(root / "l1.nii.gz", mask(1)), "empty_label", "label"),
    "copy": (copied_and_packed_again, "identical_image", "image"),
    "label copy": (lambda root: save(root / "l1.nii.gz", mask(0, 1, 2)), "identical_label", "label"),
    "turned": (turned, "outlying_orientation", "image"),
    "thick": (thick, "outlying_spacing", "image"),
}


def test_sound_data_gives_no_findings(dataset):
    assert check_manifest(*dataset) == []


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_alone_and_never_stops_the_others(dataset, name, capsys):
    manifest, root = dataset
    spoil, kind, part = FAULTS[name]
    spoil(root)
    findings = check_manifest(manifest, root)
    assert [(finding.kind, finding.part) for finding in findings] == [(kind, part)], findings
    assert findings[0].case_id in ("c0", "c1")
    assert str(root) not in json.dumps([finding.as_dict() for finding in findings])
    save_manifest(manifest, root / "manifest.json")
    assert run(["check", str(root / "manifest.json")]) == (3 if KINDS[kind] == "error" else 0)
    assert kind in capsys.readouterr().out


def test_what_is_found_is_said_in_numbers(dataset):
    manifest, root = dataset
    save(root / "l1.nii.gz", mask(1, 1, 5, 9))
    with_nan(root)
    thick_affine = np.diag([1.0, 1, 0.2, 1])
    save(root / "i2.nii.gz", noise(2), thick_affine)
    save(root / "l2.nii.gz", mask(2, 1), thick_affine)
    words = {finding.kind: finding for finding in check_manifest(manifest, root)}
    assert words["unknown_label"].found == "5, 9" and "0, 1, 2" in (words["unknown_label"].expected or "")
    assert words["not_finite"].found.startswith("2 voxels")
    assert words["outlying_spacing"].found == "0.2 mm head-foot"


def test_spacing_is_compared_along_the_patient_not_along_the_array(dataset):
    manifest, root = dataset
    for index in range(N_CASES):
        affine = np.diag([1.0, 1, 4, 1])
        image, label = noise(index), mask(index, 1, 2)
        if index == 2:  # the same grid, stored with its axes in another order
            affine, image, label = affine[:, [2, 1, 0, 3]], image.transpose(2, 1, 0), label.transpose(2, 1, 0)
        save(root / f"i{index}.nii.gz", image, affine)
        save(root / f"l{index}.nii.gz", label, affine)
    assert [finding.kind for finding in check_manifest(manifest, root)] == ["outlying_orientation"]


def test_hashes_are_verified_where_the_manifest_has_them(dataset):
    manifest, root = dataset
    for case in manifest.training:
        case.sha256 = {path: sha256_of(root / path) for path in case.paths}
    assert check_manifest(manifest, root) == []
    save(root / "l3.nii.gz", mask(3, 2, 1))
    assert check_manifest(manifest, root) == [
        Finding(
            "c3",
            "hash_differs",
            "other bytes than when imported",
            f"sha256 {manifest.training[3].sha256['l3.nii.gz'][:12]}...",
            "label",
        )
    ]


def test_a_patient_in_two_splits(dataset):
    manifest, root = dataset
    manifest.test, manifest.training = manifest.training[3:], manifest.training[:3]
    manifest.test[0].patient_id = "P1"
    (finding,) = check_manifest(manifest, root)
    assert finding.kind == "patient_in_two_splits" and finding.found == "one patient: c1 (training), c3 (test)"
    manifest.test[0].label = None
    (finding,) = check_manifest(manifest, root)
    assert finding.kind == "patient_with_unlabelled_test" and finding.severity == "warning"


def test_channels_as_files_and_as_a_fourth_axis(dataset):
    _, root = dataset
    manifest = manifest_of(channels=2)
    for index, case in enumerate(manifest.training):
        case.image = [f"i{index}.nii.gz", f"j{index}.nii.gz"]
        save(root / f"j{index}.nii.gz", noise(100 + index))
    assert check_manifest(manifest, root) == []
    affine = np.diag([1.0, 1, 1.1, 1])
    save(root / "j2.nii.gz", noise(102), affine)
    (finding,) = check_manifest(manifest, root)
    assert (finding.kind, finding.part) == ("channel_geometry_differs", "image 1")

    stacked = manifest_of(channels=2)
    for index in range(N_CASES):
        save(root / f"i{index}.nii.gz", noise(index, (*SHAPE, 2 if index else 3)))
    (finding,) = check_manifest(stacked, root)
    assert (finding.case_id, finding.kind, finding.found) == ("c0", "wrong_channels", "3 channels")


def test_json_and_report_are_the_same_document(dataset, capsys):
    manifest, root = dataset
    save_manifest(manifest, root / "m" / "manifest.json")
    truncated(root)
    arguments = ["check", str(root / "m" / "manifest.json"), "--data", str(root), "--json"]
    assert run([*arguments, "--report", str(root / "check.json")]) == 3
    printed = capsys.readouterr().out
    document = json.loads(printed)
    assert document == json.loads((root / "check.json").read_text())
    assert document["schema_version"] == 1 and document["errors"] == 1 and document["cases"] == N_CASES
    assert set(document["findings"][0]) == {"severity", "case_id", "kind", "found", "expected", "part"}
    assert str(root) not in printed


def test_forgotten_data_folder_is_one_error_not_hundreds(dataset, tmp_path_factory, capsys):
    manifest, _ = dataset
    with pytest.raises(UsageError, match="none of the manifest's files") as caught:
        check_manifest(manifest, tmp_path_factory.mktemp("empty"))
    assert "--data" in (caught.value.hint or "")
    assert run(["check", "nowhere.json"]) == 2


def test_processes_find_what_one_process_finds(dataset):
    manifest, root = dataset
    truncated(root)
    assert check_manifest(manifest, root, workers=2) == check_manifest(manifest, root)


@pytest.mark.skipif("SEGPIPE_DATA" not in os.environ, reason="SEGPIPE_DATA does not name a folder of real scans")
@pytest.mark.realdata
def test_the_real_hippocampi_are_sound(capsys):
    manifest = Path(__file__).parents[3] / "data_manifests" / "msd_task04_hippocampus.json"
    data = Path(os.environ["SEGPIPE_DATA"]) / "Task04_Hippocampus"
    assert run(["check", str(manifest), "--data", str(data)]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out


def test_ignored_voxels_are_known_and_must_not_be_all(dataset):
    manifest, root = dataset
    manifest.ignore_label = 9
    save(root / "l1.nii.gz", mask(1, 1, 9))
    assert check_manifest(manifest, root) == []
    save(root / "l1.nii.gz", np.full(SHAPE, 9, np.uint8))
    save(root / "l2.nii.gz", mask(2, 9))
    assert [(each.case_id, each.kind) for each in check_manifest(manifest, root)] == [
        ("c1", "nothing_annotated"),
        ("c2", "empty_label"),
    ]


def test_labels_are_counted_where_they_were_looked_for(dataset, capsys):
    manifest, root = dataset
    manifest.training[0].annotated_labels = ["a"]
    manifest.training[1].annotated_labels = [2]
    for index, value in ((0, 1), (1, 1)):
        save(root / f"l{index}.nii.gz", mask(index, value))
    save_manifest(manifest, root / "manifest.json")
    assert run(["check", str(root / "manifest.json"), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["labels"] == {"a": {"looked_for": 4, "present": 5}, "b": {"looked_for": 4, "present": 3}}
    assert [(each["case_id"], each["kind"], each["found"]) for each in found["findings"]] == [
        ("c1", "label_not_looked_for", "1")
    ]
    run(["check", str(root / "manifest.json")])
    assert "cases looked at for it" in " ".join(capsys.readouterr().out.split())
