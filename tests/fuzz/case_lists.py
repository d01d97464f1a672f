"""Lists of cases: manifests, the splits that are drawn of them, and ``dataset.json`` of both layouts."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
from guard import BrokenPromiseError, Room
from hypothesis import strategies as st
from mutation import as_text, made, of_document, several, spoiled
from target import TURNED, VOXELS, Target, end


def manifests() -> Target:
    """Manifests, and the splits that are drawn of them."""
    document = {
        "schema_version": 1,
        "name": "tiny",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "kidney_L", "2": "kidney_R"},
        "training": [
            {
                "id": f"c{i}",
                "image": f"i/{i}.nii.gz",
                "label": f"l/{i}.nii.gz",
                "patient_id": f"p{i // 2}",
                "fold": i % 2,
            }
            for i in range(4)
        ],
        "test": [{"id": "t", "image": ["i/t.nii.gz"], "sha256": {"i/t.nii.gz": "0" * 64}}],
        "patient_rule": "none",
        "label_values": {"255": 1},
    }
    keys = ["training", "test", "labels", "sha256", "fold", "notes", "label_turned", "split_rule"]
    values = ["c0", "p0", "background", "../x", "i/0.nii.gz", "0" * 64]
    edited = made(document, several(of_document(values, keys), 1, 4)).map(as_text)
    inputs = st.one_of(edited, spoiled(edited)).map(lambda data: (".json", data))

    def use(path: Path, room: Room) -> None:
        from segpipe.data import draw_split, manifest_sha256, open_manifest, save_manifest

        manifest, _ = open_manifest(path)
        save_manifest(manifest, room.output / "manifest.json")
        if open_manifest(room.output / "manifest.json")[0] != manifest:
            raise BrokenPromiseError("a manifest that is written and read is another one")
        manifest_sha256(manifest)
        for test, folds in itertools.product((None, "0.25", 1), (0, 2)):
            end(draw_split, manifest, test, folds, redraw=True)

    return Target("manifest", [(".json", as_text(document))], inputs, use)


def datasets() -> Target:
    """``dataset.json`` of both layouts, with its labels, whose few files are there."""
    cases = [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} for i in range(2)]
    about = {"name": "tiny", "description": "d", "reference": "r", "licence": "l", "tensorImageSize": "3D"}
    decathlon = {
        **about,
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "kidney"},
        "numTraining": 2,
        "numTest": 1,
        "training": cases,
        "test": ["./imagesTs/t.nii.gz"],
    }
    nnunet = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "kidney": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    values = ["c0", "./imagesTr/c0.nii.gz", "../../x", "background", "ignore", "1", "-1", [1, 2], ".nii", ".mha"]
    keys = ["labels", "channel_names", "modality", "training", "test", "file_ending", "overwrite_image_reader_writer"]
    edits = several(of_document(values, keys), 1, 4)
    edited = st.one_of(made(decathlon, edits), made(nnunet, edits)).map(as_text)
    inputs = st.one_of(edited, spoiled(edited)).map(lambda data: (".json", data))
    voxels = VOXELS.astype(np.uint8)
    image = gzip.compress(nib.Nifti1Image(voxels, TURNED).to_bytes(), 1, mtime=0)
    binary = np.where(voxels > 128, 255, 0).astype(np.uint8)
    label = gzip.compress(nib.Nifti1Image(binary, TURNED).to_bytes(), 1, mtime=0)

    def use(path: Path, room: Room) -> None:
        from segpipe.data import import_dataset

        for folder, name, content in (
            *(("imagesTr", f"c{i}{channel}.nii.gz", image) for i in range(2) for channel in ("", "_0000")),
            *(("labelsTr", f"c{i}.nii.gz", label) for i in range(2)),
            ("imagesTs", "t.nii.gz", image),
            ("imagesTs", "t_0000.nii.gz", image),
        ):
            (path.parent / folder).mkdir(exist_ok=True)
            (path.parent / folder / name).write_bytes(content)
        path.rename(path.parent / "dataset.json")
        out = room.output / "manifest.json"
        rules = {"label_values": ["255=1"], "overwrite": True, "hashes": False}
        for layout in ("decathlon", "nnunet"):
            end(import_dataset, path.parent, output=out, layout=layout, **rules)
        import_dataset(path.parent, output=out, **rules)

    return Target("dataset", [(".json", as_text(decathlon)), (".json", as_text(nnunet))], inputs, use)
