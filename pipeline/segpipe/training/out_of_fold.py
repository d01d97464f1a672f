"""The cases of a cross-validation, each by the model that did not see it: predicted, pooled, evaluated once.

OUT/measured/fold_0/bundle, /predictions   what `export` and `predict` left of the model of a fold
OUT/out_of_fold/CASE/                      the label maps of all, as `predict` writes them
OUT/evaluation/                            what `evaluate` writes of these: report.html, metrics, postprocessing.json
OUT/out_of_fold.json                       the figures, what they are of, and what was chosen by them
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.bundle import weights_of
from segpipe.common.console import Console, quoted
from segpipe.common.files import cannot_write, read_json, sha256_of, write_json
from segpipe.common.partial import Partial
from segpipe.common.result_folder import RESULT
from segpipe.common.subprocesses import Subprocesses, in_threads, require_ended_well
from segpipe.data import Manifest, load_manifest
from segpipe.errors import DataError, UsageError
from segpipe.evaluation import Evaluation, evaluate
from segpipe.training.cross_validation import read_cross_validation, series_of
from segpipe.training.out_of_fold_figures import choose_among, fold_rows, out_of_fold_document
from segpipe.training.run_folder import read_places
from segpipe.training.several_runs import Progress, Series

OUT_OF_FOLD = "out_of_fold.json"


def measure_out_of_fold(
    out: Path, data: Path | None = None, jobs: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure a finished cross-validation; what is measured already is not measured again.

    Args:
        out: its folder.
        data: of the data set, where it moved.
        jobs: folds that are predicted at the same time.
        progress: called with a line for each step; None writes them to standard error.

    Returns:
        The content of ``out_of_fold.json``.

    Raises:
        UsageError: a fold is not finished.
        SegpipeError: a model could not be exported, or none of its cases predicted.
        KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    series = _finished(out)
    progress = progress or Console("train").note
    weights = {fold: _weights_sha256(series.folder(fold), out) for fold in series.values}
    measured = _measured_before(out, progress)
    if measured and {row["fold"]: row["weights"]["sha256"] for row in measured["folds"]} == weights:
        return measured
    place = data or _place(series)
    models = _Models(series, place, weights, progress)
    in_threads(models.predict, series.values, jobs, models.children)
    _pool(series)
    progress("evaluating all of them")
    path = _begun(series) / "manifest.json"
    dataset = load_manifest(path)
    evaluation = _evaluate(series, path, dataset, place)
    rows = fold_rows(series, dataset, evaluation, weights)
    document = out_of_fold_document(rows, dataset, evaluation)
    document["manifest_sha256"] = sha256_of(path)  # also where only some of its folds were measured
    write_json(out / OUT_OF_FOLD, document)
    return document


def read_out_of_fold(out: Path) -> dict[str, Any]:
    """Return the content of ``out_of_fold.json``.

    Raises:
        UsageError: there is none.
        DataError: it is something else.
    """
    hint = f"measure the cases anew: `segpipe train --resume {quoted(out)}`"
    document = read_json(out / OUT_OF_FOLD, "out-of-fold figures", hint)
    if not _is_whole(document):
        raise DataError(f"not an {OUT_OF_FOLD} of `segpipe train --folds`", path=out / OUT_OF_FOLD, hint=hint)
    return dict(document)


def _is_whole(document: Any) -> bool:
    """Return whether a document has what is read from it, here, in the summary of a run and in a search."""
    try:
        raw, corrected = document["figure"]["raw"], document["figure"]["corrected"]
        facts = [each[name] for each in (raw, corrected) for name in ("mean", "low", "high")]
        facts += [(row["weights"]["sha256"], row["mean_dice"]["mean"], row["folder"]) for row in document["folds"]]
        facts += [(case["id"], case["mean_dice"], case["failure"]) for case in document["cases"]]
        facts += [choice["what"] for choice in document["selected"]]
        facts += [label["raw_gain"] for label in document["postprocessing"]["labels"]]
        facts += [document["of"], document["patients"]["note"], document["manifest_sha256"]]
        return all(isinstance(row["fold"], int) for row in document["folds"])
    except (KeyError, TypeError, IndexError):
        return False


def _measured_before(out: Path, progress: Progress) -> dict[str, Any] | None:
    """Return the figures that are there; None, and a word, where they cannot be read: they are made again."""
    if not (out / OUT_OF_FOLD).is_file():
        return None
    try:
        return read_out_of_fold(out)
    except DataError as error:
        progress(f"{OUT_OF_FOLD} cannot be used ({error.found or error.message}): measuring the cases anew")
        return None


def _weights_sha256(fold: Path, out: Path) -> str:
    path = weights_of(fold)
    if not path.is_file():
        raise UsageError(
            "a fold is finished, but its weights are gone",
            path=path,
            expected=f"the {path.name} of its last epoch",
            hint=f"put it back; or remove the folder {fold.name}, and `segpipe train --resume {quoted(out)}` trains it "
            "anew",
        )
    return sha256_of(path)


@dataclass(frozen=True)
class FoldModel:
    """The model of a fold as a bundle, and where the cases lie that it did not see.

    Attributes:
        fold: that it left out.
        bundle: its folder.
        manifest: of the data set.
        data: folder of its files.
    """

    fold: int
    bundle: Path
    manifest: Path
    data: Path


def fold_models(out: Path) -> list[FoldModel]:
    """Return the models of a cross-validation, in the order of its folds.

    Raises:
        UsageError: it is none, it is not finished, or it was not measured.
    """
    series = _finished(out)
    data = _place(series)
    models = [
        FoldModel(fold, _measured(series, fold) / "bundle", series.folder(fold) / "manifest.json", data)
        for fold in series.values
    ]
    gone = next((model.bundle for model in models if not model.bundle.is_dir()), None)
    if gone is not None:
        hint = f"go on with `segpipe train --resume {quoted(out)}`"
        raise UsageError("the cross-validation was not measured", path=gone, hint=hint)
    return models


def record_candidates(out: Path, candidates: Mapping[str, Path], chosen: str) -> dict[str, Any]:
    """Record between which trainings was chosen by their out-of-fold figures, and correct the figure for it.

    Args:
        out: folder of the cross-validation that was chosen; its ``out_of_fold.json`` is written anew.
        candidates: name to folder of each that was tried, the chosen one among them. One that was given up after some
            of the folds is compared on the cases of these.
        chosen: one of the names.

    Returns:
        The content of ``out_of_fold.json``.

    Raises:
        UsageError: one was not measured, or is of another data set.
    """
    dataset = load_manifest(_begun(_series(out)) / "manifest.json")
    documents = {name: read_out_of_fold(folder) for name, folder in candidates.items()}
    document = read_out_of_fold(out)
    for name, other in documents.items():
        if other["manifest_sha256"] != document["manifest_sha256"]:
            raise UsageError(
                "a candidate is of another data set or split",
                path=candidates[name],
                found=other["manifest_sha256"][:12],
                expected=document["manifest_sha256"][:12],
            )
    document = choose_among(document, documents, chosen, dataset)
    write_json(out / OUT_OF_FOLD, document)
    return document


def _series(out: Path) -> Series:
    return series_of(out, [row["fold"] for row in read_cross_validation(out)["folds"]])


def _finished(out: Path) -> Series:
    waiting = [row["fold"] for row in read_cross_validation(out)["folds"] if row["status"] != "finished"]
    if waiting:
        raise UsageError(
            "the cross-validation is not finished",
            path=out,
            found=f"folds {waiting} are not",
            hint=f"go on with `segpipe train --resume {quoted(out)}`",
        )
    return _series(out)


def _begun(series: Series) -> Path:
    return series.folder(series.values[0])


def _place(series: Series) -> Path:
    """Return where the data lay when the folds were trained."""
    folder = _begun(series)
    return Path({**read_json(folder / "config.json", "run config"), **read_places(folder)}["dataset_dir"])


class _Models:
    """The fold models, each exported and set to its own cases in processes, from several threads."""

    def __init__(self, series: Series, data: Path, weights: Mapping[int, str], progress: Progress) -> None:
        self.series, self.data, self.weights, self.progress = series, data, weights, progress
        self.children = Subprocesses()

    def predict(self, fold: int) -> None:
        """Export the model of a fold and predict the cases that it did not see; cases that are there are kept."""
        run, place = self.series.folder(fold), _measured(self.series, fold)
        self._keep_only_of(fold, place)
        if not (place / "bundle").exists():
            arguments: dict[str, Any] = {"run": run, "out": place / "bundle", "name": place.name}
            require_ended_well(self.children.call("segpipe.export", arguments), f"export of fold {fold}")
        cases = load_manifest(run / "manifest.json").select("validation", fold)
        if all((place / "predictions" / case.id / RESULT).is_file() for case in cases):
            return
        self.progress(f"predicting the cases of fold {fold}")
        arguments = {
            "bundle": place / "bundle",
            "inputs": run / "manifest.json",
            "out": place / "predictions",
            "split": "validation",
            "fold": fold,
            "data": self.data,
            "threads": read_json(run / "run.json", "run record")["threads"],
            "overlay": False,
        }
        require_ended_well(self.children.call("segpipe.predict", arguments), f"prediction of fold {fold}")

    def _keep_only_of(self, fold: int, place: Path) -> None:
        """Remove what an earlier model of this fold left, of which only the run folder was replaced."""
        path, now = place / "weights.json", {"sha256": self.weights[fold]}
        if path.is_file() and read_json(path) == now:
            return
        try:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        except OSError as error:
            raise cannot_write(place, error) from error
        write_json(path, now)


def _measured(series: Series, fold: int) -> Path:
    return series.out / "measured" / series.folder(fold).name


def _pool(series: Series) -> None:
    """Put the results of all folds into one folder, whole or not at all."""
    final = series.out / "out_of_fold"
    try:
        with Partial(series.out) as partial:
            (partial.folder / final.name).mkdir()
            for fold in series.values:
                dataset = load_manifest(series.folder(fold) / "manifest.json")
                for case in dataset.select("validation", fold):
                    result = _measured(series, fold) / "predictions" / case.id
                    if result.is_dir():
                        shutil.copytree(result, partial.folder / final.name / case.id, copy_function=_link)
            partial.publish(final.name, final)
    except OSError as error:
        raise cannot_write(final, error) from error


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _evaluate(series: Series, path: Path, dataset: Manifest, data: Path) -> Evaluation:
    """Evaluate the cases of these folds, by the path of the manifest where they are all of its folds."""
    cases = [case for case in dataset.training if case.fold in series.values]
    whole = list(series.values) == dataset.folds()
    return evaluate(
        path if whole else dataset.model_copy(update={"training": cases}),
        series.out / "out_of_fold",
        out=series.out / "evaluation",
        split="out_of_fold",
        data=data,
        try_postprocessing=True,
    )
