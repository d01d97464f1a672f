"""What a training reads are the files that its manifest was made of."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import pytest

from segpipe.cli.app import run
from segpipe.common.files import sha256_of
from segpipe.data.imported_files import require_as_imported
from segpipe.data.manifest import Manifest, load_manifest
from segpipe.errors import BAD_DATA, INTERRUPTED, OK, DataError
from tiny_data import train_arguments


def listed(root: Path) -> Manifest:
    """Two cases with hashes and one without."""
    cases = []
    for name in ("a", "b", "c"):
        paths = {"image": f"{name}.nii", "label": f"{name}_label.nii"}
        for path in paths.values():
            (root / path).write_bytes(path.encode())
        seen = {path: sha256_of(root / path) for path in paths.values()}
        cases.append({"id": name, **paths, "sha256": None if name == "c" else seen})
    document = {"name": "x", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "a"}, "training": cases}
    return Manifest.model_validate(document)


def test_other_bytes_are_refused_by_case(tmp_path: Path) -> None:
    dataset = listed(tmp_path)
    (tmp_path / "c.nii").write_bytes(b"of which no hash is known")
    (tmp_path / "a.nii").unlink()  # whoever reads it says so
    require_as_imported(dataset.training, tmp_path)
    for path in ("b.nii", "b_label.nii"):
        (tmp_path / path).write_bytes(b"mended in place")
    with pytest.raises(DataError, match="not those that the manifest was made of") as caught:
        require_as_imported(dataset.training, tmp_path)
    assert caught.value.found == "other bytes in 2 files of b" and caught.value.exit_code == BAD_DATA


def test_what_did_not_change_since_it_was_compared_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, since = listed(tmp_path), tmp_path / "since"
    (tmp_path / "b.nii").write_bytes(b"changed")
    since.touch()
    with pytest.raises(DataError):
        require_as_imported(dataset.training, tmp_path, since)
    later = (tmp_path / "b.nii").stat().st_ctime + 1000
    os.utime(since, (later, later))
    monkeypatch.setattr("segpipe.data.imported_files._compared", {})  # as in another process
    require_as_imported(dataset.training, tmp_path, since)


def test_what_was_left_out_since_then_is_not_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on has compared what changed since; building its data set need not read all of the rest."""
    dataset, since = listed(tmp_path), tmp_path / "since"
    since.touch()
    later = since.stat().st_ctime + 1000
    os.utime(since, (later, later))
    monkeypatch.setattr("segpipe.data.imported_files.sha256_of", pytest.fail)
    require_as_imported(dataset.training, tmp_path, since)
    require_as_imported(dataset.training, tmp_path)


def test_a_dry_run_refuses_other_files(tiny_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(shutil.copytree(tiny_manifest.parent, tmp_path / "data"))
    document = json.loads((data / "manifest.json").read_text())
    case = next(each for each in document["training"] if each["fold"] != 0)
    case["sha256"] = {case["image"]: 64 * "0"}
    (data / "manifest.json").write_text(json.dumps(document))
    assert run(train_arguments(data / "manifest.json", tmp_path / "run", "--dry-run")) == BAD_DATA
    assert f"other bytes in 1 file of {case['id']}" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_neither_a_new_run_nor_one_that_goes_on_reads_other_files(
    tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("segpipe.training.session._execute", stopped)
    data = Path(shutil.copytree(tiny_manifest.parent, tmp_path / "data"))
    manifest = data / "manifest.json"
    names = [word for name in ("liver", "kidney", "lesion") for word in ("--label-name", name)]
    imported = ["import", "--images", f"{data}/images", "--labels", f"{data}/labels", *names, "--modality", "MRI"]
    imported += ["--overwrite"]
    split = ["split", str(manifest), "--test", "0", "--folds", "2"]
    assert run(imported) == OK and run(split) == OK
    folds = {case.id: case.fold for case in load_manifest(manifest).training}
    assert run(train_arguments(manifest, tmp_path / "run")) == INTERRUPTED
    label = data / "labels/case_1.nii.gz"
    before = label.read_bytes()
    values = nib.load(label)
    nib.save(nib.Nifti1Image(values.get_fdata().astype("uint8")[::-1].copy(), values.affine), label)
    for words in (["train", "--resume", str(tmp_path / "run")], train_arguments(manifest, tmp_path / "other")):
        assert run(words) == BAD_DATA
        assert "other bytes in 1 file of case_1" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "other/run.json").exists()
    assert run(imported) == OK and run(split) == OK  # as the hint says
    assert {case.id: case.fold for case in load_manifest(manifest).training} == folds
    assert run(train_arguments(manifest, tmp_path / "other")) == INTERRUPTED
    label.write_bytes(before)  # as it says, too
    assert run(["train", "--resume", str(tmp_path / "run")]) == INTERRUPTED
