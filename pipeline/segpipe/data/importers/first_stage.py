"""The label maps of a cross-validation become channels: a mask of each label, to train a second stage on.

Each case has the label map of the fold that did not see it, so the second stage meets the faults that the first one
makes of new scans. A mask is a file of 0 and 1 on the grid of the scan; empty ones are usual.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.common.console import quoted, some_of
from segpipe.common.files import read_json, sha256_of
from segpipe.common.grids import require_one_grid
from segpipe.common.nifti import INTENT_LABEL, read_header, read_volume, require_3d, write_nifti_whole
from segpipe.common.processes import Progress
from segpipe.common.result_folder import SEGMENTATION
from segpipe.data.importers.dataset_import import Imported
from segpipe.data.importers.made_files import write_beside
from segpipe.data.importers.places import require_beside, require_new
from segpipe.data.manifest import Case, FirstStage, Manifest, load_manifest, manifest_sha256, save_manifest
from segpipe.errors import DataError, RefusedError, SegpipeError, UsageError

OUT_OF_FOLD, LABEL_MAPS = "out_of_fold.json", "out_of_fold"


def import_first_stage(
    source: str | Path,
    run: str | Path,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> Imported:
    """Write the manifest of a second stage: the training cases of the first, with its label maps as channels.

    Test cases are left out: no fold has a label map of them, and what predicts them runs both stages.

    Args:
        source: the manifest that the first stage was trained with.
        run: folder of its cross-validation, measured out of fold.
        output: manifest to write, in the folder of ``source``; None: ``NAME_second_stage.json`` beside it.
        overwrite: replace a manifest that is there.
        progress: called with the number of cases done and of all.

    Raises:
        UsageError: no such manifest or run, ``output`` is taken or lies elsewhere, or the scans are not beside it.
        DataError: a label map cannot be used, or lies on another grid than its scan.
        RefusedError: the run is of another manifest, has not every case, or regions that overlap.
    """
    source, run = Path(source), Path(run)
    manifest, root = load_manifest(source), source.resolve().parent
    beside = source.with_name(f"{source.stem}_second_stage.json")
    path = require_new(beside if output is None else Path(output), overwrite)
    require_beside(path, root)
    files = (root / name for case in manifest.training for name in case.paths)
    absent = next((file for file in files if not file.exists()), None)
    if absent is not None:
        raise UsageError(
            "a file of the data set is not there",
            path=absent,
            expected="the manifest in the folder that its paths start from",
            hint="copy the manifest there, train the first stage with that one, and name it here",
        )
    weights = _weights_of(source, manifest, run)
    folder = f"first_stage_{hashlib.sha256(''.join(weights).encode()).hexdigest()[:8]}"
    cases = []
    for done, case in enumerate(manifest.training, 1):
        try:
            cases.append(_with_masks(case, manifest, root, folder, run / LABEL_MAPS / case.id / SEGMENTATION))
        except SegpipeError as error:
            error.case_id = case.id
            raise
        progress(done, len(manifest.training))
    labels = list(manifest.foreground.values())
    masks = {str(manifest.n_channels + index): f"mask of {name}" for index, name in enumerate(labels)}
    changed: dict[str, Any] = {
        "modality": {**manifest.modality, **masks},
        "first_stage": FirstStage(labels=labels, weights_sha256=weights),
        "training": cases,
        "test": [],
    }
    second = Manifest.model_validate({**dict(manifest), **changed})
    save_manifest(second, path)
    return Imported(second, path, root, [])


def require_one_stage(manifest: Manifest, path: str | Path | None = None) -> None:
    """Refuse a manifest that no first stage can be trained with.

    Raises:
        RefusedError: it has regions that overlap, or masks of a first stage.
    """
    if manifest.regions is not None or manifest.first_stage is not None:
        raise RefusedError(
            "a first stage has one label map, and no stage before it",
            path=path,
            found="regions that overlap" if manifest.regions is not None else "a manifest of a second stage",
            hint="train one stage alone, or the first one on a manifest without",
        )


def _weights_of(source: Path, manifest: Manifest, run: Path) -> list[str]:
    """Return the SHA-256 of the weights of each fold that label maps are there of.

    Raises:
        UsageError, DataError, RefusedError: as `import_first_stage`.
    """
    hint = f"a cross-validation has it: `segpipe train {quoted(source)} --folds all --task TASK --out RUN`"
    document = read_json(run / OUT_OF_FOLD, "out-of-fold figures", hint)
    try:
        weights = [str(row["weights"]["sha256"]) for row in document["folds"]]
        of = document["manifest_sha256"]
    except (KeyError, TypeError) as error:
        raise DataError("not the out-of-fold figures of a training", path=run / OUT_OF_FOLD, hint=hint) from error
    if of != manifest_sha256(source):
        raise RefusedError(
            "the first stage was trained on another manifest",
            path=run,
            found=str(of)[:12],
            expected=f"{manifest_sha256(source)[:12]}, {source.name}",
            hint="name the manifest that it was trained with",
        )
    require_one_stage(manifest, source)
    gone = [case.id for case in manifest.training if not (run / LABEL_MAPS / case.id / SEGMENTATION).is_file()]
    if gone:
        raise RefusedError(
            "the first stage has no label map of some cases",
            path=run / LABEL_MAPS,
            found=some_of(gone),
            expected="one of each training case, by the fold that did not see it",
            hint=f"go on with `segpipe train --resume {quoted(run)}`; cases that no fold measures have to be taken out",
        )
    return weights


def _with_masks(case: Case, manifest: Manifest, root: Path, folder: str, label_map: Path) -> Case:
    """Write the masks of a case; return it with them."""
    import nibabel as nib

    header = read_header(label_map)
    require_3d(header)
    scans = [read_header(root / image) for image in case.images]
    if len(scans) != manifest.n_channels:
        raise DataError("channels are stacked in one file", path=scans[0].path, expected="a file a channel")
    require_one_grid([*scans, header])
    values = np.asarray(read_volume(header))
    unknown = set(np.unique(values).tolist()) - {0, *manifest.foreground}
    if unknown:
        raise DataError("the label map has values that are no label", path=label_map, found=sorted(unknown)[:5])
    masks = []
    for value in manifest.foreground:
        image = nib.Nifti1Image((values == value).astype(np.uint8), header.affine)  # type: ignore[attr-defined, no-untyped-call, unused-ignore]
        image.header.set_xyzt_units("mm")
        image.header.set_intent(INTENT_LABEL)
        # the empty masks of two cases have hashes of their own, by which cases are known
        image.header["descrip"] = hashlib.sha256(f"{case.id} {value}".encode()).hexdigest()[:32]
        path = write_beside(root / folder / f"{case.id}_{value}.nii.gz", partial(write_nifti_whole, image))
        masks.append(path.relative_to(root).as_posix())
    hashes: Mapping[str, str] = case.sha256 or {}
    known = {**hashes, **{name: sha256_of(root / name) for name in masks}} if hashes else None
    return case.model_copy(update={"image": [*case.images, *masks], "sha256": known})
