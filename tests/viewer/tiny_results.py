"""A result folder of a small scan whose axes lie as no program would choose them, without predicting anything."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from segpipe.common.result_folder import ENTROPY, MAPPING, OVERLAY, RESULT, SEGMENTATION, STATE
from segpipe.reporting.case_overlay import OverlaySlice, overlay

SHAPE, SPACING_MM = (40, 48, 30), (2.0, 1.5, 3.0)  # towards right, front and head
LEFT, RIGHT = 1, 2
NAMES = {LEFT: "mark on the left", RIGHT: "mark on the right"}


@dataclass(frozen=True)
class Tiny:
    """What was written; volumes (X, Y, Z) towards the patient's right, front and head.

    Attributes:
        out: the result folder.
        truth: a manifest with true labels.
        image, labels, true: the voxels.
    """

    out: Path
    truth: Path
    image: np.ndarray
    labels: np.ndarray
    true: np.ndarray


def ras_affine(turned: bool = False) -> np.ndarray:
    affine = np.diag([*SPACING_MM, 1.0])
    if turned:  # by 20 degrees around the long axis, and 10 around another
        a, b = np.radians(20), np.radians(10)
        about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        affine[:3, :3] = about_x @ about_z @ affine[:3, :3]
    affine[:3, 3] = (-35.0, -30.0, 12.0)
    return affine


def save(path: Path, ras: np.ndarray, codes: str, affine: np.ndarray) -> None:
    """Write voxels with other axes in the file: ``codes`` such as PSL."""
    image = nib.Nifti1Image(ras, affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turn), path)


def write_results(root: Path, codes: str = "PSL", turned: bool = False, case_id: str = "case_1") -> Tiny:
    rng = np.random.default_rng(7)
    image = rng.integers(100, 900, SHAPE).astype(np.int16)
    labels = np.zeros(SHAPE, np.uint8)
    labels[6:14, 20:34, 12:22] = LEFT  # x rises towards the right
    labels[27:33, 14:26, 8:16] = RIGHT
    true = np.zeros(SHAPE, np.uint8)
    true[7:15, 20:34, 12:22] = LEFT
    entropy = np.where(labels == LEFT, 0.625, 0).astype(np.float32)
    affine = ras_affine(turned)
    out, data = root / "out", root / "data"
    folder = out / case_id
    for path, voxels in (
        (data / "image.nii.gz", image),
        (data / "label.nii.gz", true),
        (folder / SEGMENTATION, labels),
        (folder / ENTROPY, entropy),
    ):
        save(path, voxels, codes, affine)
    piece = OverlaySlice(np.zeros((*SHAPE[:2], 1), np.uint8), labels.max(axis=2, keepdims=True), SPACING_MM, 2)
    (folder / OVERLAY).write_bytes(overlay(piece))
    hashes = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (SEGMENTATION, ENTROPY, OVERLAY)
    }
    result: dict[str, Any] = {
        "labels": {name: value for value, name in NAMES.items()},
        "sha256": hashes,
        "source_sha256": [hashlib.sha256((data / "image.nii.gz").read_bytes()).hexdigest()],
        "notes": ["a note of the batch"],
    }
    (folder / RESULT).write_text(json.dumps(result))
    (out / STATE).write_text("")
    (out / MAPPING).write_text(json.dumps({"id": case_id, "paths": [str(data / "image.nii.gz")]}) + "\n")
    manifest = {
        "schema_version": 1,
        "name": "tiny",
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(value): name for value, name in NAMES.items()}},
        "training": [{"id": case_id, "image": "image.nii.gz", "label": "label.nii.gz"}],
    }
    (data / "manifest.json").write_text(json.dumps(manifest))
    return Tiny(out, data / "manifest.json", image, labels, true)
