"""A first stage that was not trained: the label maps that a cross-validation of the tiny data set would leave."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from segpipe.common.result_folder import SEGMENTATION
from segpipe.data.manifest import load_manifest, manifest_sha256

LOST = "case_1"  # in which the first stage found nothing


def write_first_stage(manifest: Path, run: Path, weights: tuple[str, ...] = ("a" * 64, "b" * 64)) -> Path:
    """Write out_of_fold.json and its label maps: the truth, moved by a voxel."""
    for case in load_manifest(manifest).training:
        truth = nib.load(manifest.parent / str(case.label))
        moved = np.roll(np.asarray(truth.dataobj).astype(np.uint8), 1, 0) * (case.id != LOST)
        (run / "out_of_fold" / case.id).mkdir(parents=True)
        nib.save(nib.Nifti1Image(moved.astype(np.uint8), truth.affine), run / "out_of_fold" / case.id / SEGMENTATION)
    folds = [{"fold": fold, "weights": {"file": "final.pt", "sha256": each}} for fold, each in enumerate(weights)]
    document = {"folds": folds, "manifest_sha256": manifest_sha256(manifest)}
    (run / "out_of_fold.json").write_text(json.dumps(document))
    return run
