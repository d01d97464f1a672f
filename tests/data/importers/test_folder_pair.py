"""A folder of images beside one of label maps is a data set, as long as their names tell which is which."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segpipe.cli.app import run
from segpipe.data.importers.folder_pair import folder_pair
from segpipe.data.importers.to_manifest import find_dataset
from segpipe.data.manifest import load_manifest
from segpipe.errors import UsageError


def write(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.eye(4, dtype=np.uint8)[None].repeat(3, 0), np.eye(4)), root / folder / "a.nii.gz")
    return root


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("imagesTr", "labelsTr"), ("Scans", "masks")])
def test_two_folders_are_taken_as_if_they_were_named(images, labels, tmp_path, capsys):
    root = write(tmp_path, images, labels)
    words = ["--label-name", "liver", "--modality", "CT", "--json"]
    assert run(["import", str(root), *words]) == 0
    said = capsys.readouterr()
    assert f"the folders {images} and {labels}" in said.err
    found = json.loads(said.out)
    assert (found["training"], found["labels"]) == (1, {"0": "background", "1": "liver"})
    case = load_manifest(root / "manifest.json").training[0]
    assert (case.image, case.label) == (f"{images}/a.nii.gz", f"{labels}/a.nii.gz")
    assert find_dataset(root).labels == {"0": "background", "1": "label_1"}


@pytest.mark.parametrize("folders", [("images", "labels", "imagesTs"), ("t1", "t2"), ("images", "scans"), ("images",)])
def test_what_is_not_two_such_folders_is_refused_with_what_is_there(folders, tmp_path, capsys):
    root = write(tmp_path, *folders)
    assert run(["import", str(root)]) == 2
    said = capsys.readouterr().err
    assert all(folder in said for folder in folders) and "--images DIR --labels DIR" in said
    with pytest.raises(UsageError, match="which folder"):
        folder_pair(root)


def test_folders_that_an_import_wrote_and_hidden_ones_do_not_count(tmp_path):
    root = write(tmp_path, "images", "labels", "labels_for_segpipe", ".old")
    assert folder_pair(root) == (root / "images", root / "labels")
