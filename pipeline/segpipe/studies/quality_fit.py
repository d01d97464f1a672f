"""How good is a case: the models of a cross-validation set to the cases that they did not see, as they are and spoiled.

RUN/quality/rows.jsonl   features and Dice of each, one a line, as they come: what is there is not computed again
RUN/quality.json         what `export` takes into the bundle: quantiles, covariances and trees, no row of a patient
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.bundle import Bundle, LoadedBundle, Segmentation, open_bundle
from segpipe.common.files import cannot_write, sha256_of, write_json
from segpipe.common.grids import require_one_grid
from segpipe.common.nifti import read_header, read_volume
from segpipe.data import Case, Manifest, load_manifest
from segpipe.errors import DataError, UsageError
from segpipe.evaluation import Targets, dice, targets_of
from segpipe.inference import ModelOptions, RegisteredFiles, Source, read_source
from segpipe.quality import (
    AS_IT_IS,
    GRADES,
    KINDS_OF_CORRUPTION,
    RUN_QUALITY,
    Labelled,
    Population,
    QualityModel,
    Row,
    fit,
    of_member,
    spoiled,
)
from segpipe.training import FoldModel, fold_models

ROWS = "quality/rows.jsonl"
VERSION = 2  # of the features: rows of another one are measured anew
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class _Task:
    """One image to be segmented and measured: a case, as it is or spoiled."""

    case: Case
    kind: str = AS_IT_IS
    grade: int = 0

    @property
    def key(self) -> str:
        return f"{self.case.id} {self.kind} {self.grade}"


def fit_quality(
    run: str | Path,
    *,
    data: str | Path | None = None,
    spoil: int = 8,
    level: float = 0.9,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> QualityModel:
    """Measure the cases of a cross-validation, fit a quality model and write it into the run's folder.

    Args:
        run: folder of a cross-validation that was measured.
        data: of the data set, where it moved.
        spoil: how many spoiled images of each case are measured too, at most one of a kind.
        level: that bounds and intervals hold at.
        seed: of what is drawn.
        threads: CPU threads of a model; None takes the cores that may be used.
        progress: called with the images done and of all.

    Raises:
        UsageError: no such cross-validation, or it was not measured.
        DataError: cases of too few patients, or one cannot be read.
        SegpipeError: as `Bundle.segment`.
    """
    run = Path(run)
    models = fold_models(run)
    manifest = load_manifest(models[0].manifest)
    rows = list(_measured(run, models, None if data is None else Path(data), spoil, seed, threads, progress))
    targets = list(manifest.targets.values())
    model = fit(rows, targets, level, seed, _population(manifest, rows), manifest.knows_patients)
    document = model.as_dict() | {
        "made_by": {
            "models": [open_bundle(each.bundle).weights_sha256 for each in models],
            "spoiled_images_a_case": spoil,
            "seed": seed,
        }
    }
    write_json(run / RUN_QUALITY, document)
    return model


def _population(manifest: Manifest, rows: Sequence[Row]) -> Population:
    """Return who the patients are that rows are of; without cases of which it is not said whose they are.

    Five of these may be one patient.
    """
    measured = {row.case for row in rows}
    return Population.of(
        [
            (case.patient_id, case.covariates.known if case.covariates is not None else {})
            for case in manifest.cases()
            if case.id in measured and case.patient_id
        ]
    )


def _measured(
    run: Path,
    models: Sequence[FoldModel],
    data: Path | None,
    spoil: int,
    seed: int,
    threads: int | None,
    progress: Progress | None,
) -> Iterator[Row]:
    """Yield a row for each image; those that are there from the file, new ones are added to it."""
    path, done = run / ROWS, 0
    known = _rows_of(path)
    total = sum(len(_tasks(each, spoil, seed)) for each in models)
    try:
        path.parent.mkdir(exist_ok=True)
        is_cut = path.is_file() and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as stream:
            stream.write("\n" if is_cut else "")
            for member, each in enumerate(models):
                bundle = open_bundle(each.bundle)
                measure = _Fold(bundle, each, data or each.data, threads)
                tasks = _tasks(each, spoil, seed)
                cases = {task.case.id: task.case for task in tasks}
                files = {case_id: _sha256_of_files(case, data or each.data) for case_id, case in cases.items()}
                for task in tasks:
                    tie = {"key": task.key, "weights": bundle.weights_sha256, "version": VERSION, "seed": seed}
                    tie["files"] = files[task.case.id]
                    row = known.get(json.dumps(tie))
                    if row is None:
                        row = measure(task, seed)
                        stream.write(json.dumps({"tie": tie, "row": asdict(row)}) + "\n")
                        stream.flush()
                    row = replace(row, features=of_member(row.features, member))  # folds may have come since
                    done += 1
                    if progress is not None:
                        progress(done, total)
                    yield row
    except OSError as error:
        raise cannot_write(path, error) from error


def _sha256_of_files(case: Case, data: Path) -> str:
    """Return a hash of image and label as they are now: a case whose label was corrected since is measured anew."""
    try:
        hashes = [sha256_of(data / path) for path in case.paths]
    except OSError as error:
        hint = "name the data folder with --data"
        raise UsageError("a case cannot be read", case_id=case.id, found=error.strerror, hint=hint) from error
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _rows_of(path: Path) -> dict[str, Row]:
    """Return the rows of a file by what ties them; a last line that a kill cut off is passed over."""
    if not path.is_file():
        return {}
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            parts = json.loads(line)
            rows[json.dumps(parts["tie"])] = Row(**parts["row"])
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def _tasks(model: FoldModel, spoil: int, seed: int) -> list[_Task]:
    """Return what is measured with the model of a fold, in an order that does not depend on how much is spoiled."""
    tasks = []
    for case in load_manifest(model.manifest).select("validation", model.fold):
        if case.label is None:
            continue
        drawn = random.Random(f"{seed} {case.id}")
        kinds = sorted(KINDS_OF_CORRUPTION)
        drawn.shuffle(kinds)
        tasks.append(_Task(case))
        tasks += [_Task(case, kind, drawn.choice(GRADES)) for kind in kinds[:spoil]]
    return tasks


class _Fold:
    """The model of a fold, loaded when a case is to be measured, and its case that was read last.

    Args:
        bundle: of the fold.
        model: of the fold.
        data: folder of the data set.
        threads: CPU threads.
    """

    def __init__(self, bundle: Bundle, model: FoldModel, data: Path, threads: int | None) -> None:
        self.bundle, self.data, self.threads = bundle, data, threads
        self.manifest: Manifest = load_manifest(model.manifest)
        self._loaded: LoadedBundle | None = None
        self._read: tuple[str, Source, Labelled] | None = None

    def __call__(self, task: _Task, seed: int) -> Row:
        """Segment an image and measure it."""
        if self._loaded is None:
            recipe = self.bundle.recipe(ModelOptions(threads=self.threads))
            self._loaded = LoadedBundle(recipe, self.bundle.policy, self.bundle.is_foreign)
        if self._read is None or self._read[0] != task.case.id:
            self._read = (task.case.id, *self._labelled(task.case))
        _, source, case = self._read
        if task.kind != AS_IT_IS:
            case = spoiled(case, task.kind, task.grade, f"{seed} {task.case.id}")
        shape, edges = case.truth.shape, np.linalg.norm(case.affine[:3, :3], axis=0)
        header = type(source.header)(
            **{
                **vars(source.header),
                "shape": shape,
                "affine": case.affine,
                "spacing_mm": tuple(edges),
                "qform": None,
                "qform_code": 0,
            }
        )
        segmentation = self._loaded.segment(Source(header, case.image.copy()), measured=True)
        if not segmentation.features:
            raise DataError(
                "this bundle's scores cannot be looked at, so that nothing can be learnt of its quality",
                found="; ".join(self.bundle.unsupported) or "an engine of MONAI's own",
            )
        return self._row(task, segmentation, case)

    def _labelled(self, case: Case) -> tuple[Source, Labelled]:
        paths = [str(self.data / image) for image in case.images]
        channels = max(1, len(self.bundle.channels))
        files = RegisteredFiles(paths) if case.registered else paths
        source = read_source(files, channels, masks=self.bundle.masks)
        label = read_header(self.data / str(case.label))
        require_one_grid([source.header, label])
        image = np.asarray(source.array, np.float32)
        return source, Labelled(image, read_volume(label).astype(np.uint8), source.header.affine)

    def _row(self, task: _Task, segmentation: Segmentation, case: Labelled) -> Row:
        targets = targets_of(self.manifest, task.case)
        counted = targets.counted(case.truth)
        true = _by_target(targets.masks(case.truth, counted), targets)
        predicted = _by_target(targets.masks(_labels_or_masks(segmentation), counted), targets)
        scores, ratios = {}, {}
        for number in sorted(targets.looked_for):
            name = targets.names[number]
            score = dice(true[number], predicted[number])
            if score is not None:
                scores[name] = round(score, 6)
            voxels = int(np.count_nonzero(true[number])), int(np.count_nonzero(predicted[number]))
            if all(voxels):
                ratios[name] = round(voxels[0] / voxels[1], 6)
        return Row(task.case.id, task.case.group, task.kind, task.grade, segmentation.features, scores, ratios)


def _labels_or_masks(segmentation: Segmentation) -> NDArray[np.uint8]:
    if not segmentation.regions:
        return segmentation.array
    return np.stack([(segmentation.array >> bit) & 1 for bit in range(segmentation.regions)])


def _by_target(values: NDArray[np.uint8], targets: Targets) -> dict[int, NDArray[np.bool_]]:
    """Return a mask of each target, of a label map or of masks of regions."""
    if values.ndim == 4:
        return {number: values[number - 1] > 0 for number in targets.names}
    return {number: values == number for number in targets.names}
