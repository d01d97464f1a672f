"""A bundle of two stages: the first one is a bundle in it, and a config writes what the second one reads.

first_stage/              the first stage, a bundle of its own
configs/first_stage.json  scans to a mask of each of its labels, with stock MONAI
configs/inference.json    scans and masks to label maps, as that of any other bundle of several channels
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segpipe.bundle.exporting.bundle_configs import inference_config, network_definition
from segpipe.bundle.exporting.label_masks import one_mask_each
from segpipe.bundle.exporting.markdown import code
from segpipe.bundle.exporting.members import Members, Weights, read_members
from segpipe.bundle.exporting.run_record import PROVENANCE, Run, weights_of
from segpipe.bundle.exporting.tied_evaluation import INFERENCE
from segpipe.bundle.vet import FIRST_STAGE
from segpipe.common.files import json_text, sha256_of, write_json
from segpipe.common.partial import temporary_folder
from segpipe.data import Manifest
from segpipe.errors import RefusedError, UsageError

CONFIG = f"configs/{FIRST_STAGE}.json"
SCANS = ["[!.]*_0000.nii.gz"]  # also where a case has one
ANY_MASK = [[0.0, 1.0]] * 5  # percentiles of a mask say nothing of an image


@dataclass(frozen=True, eq=False)
class Stage:
    """A first stage, read.

    Attributes:
        folder: of the cross-validation.
        members: its folds.
        run: all of them together.
        weights: of each.
        inference: text of its own inference config.
    """

    folder: Path
    members: Members
    run: Run
    weights: tuple[Weights, ...]
    inference: str

    @property
    def contents(self) -> dict[str, bytes]:
        """Return what of it decides on a label map, by file of the whole bundle."""
        own = {INFERENCE: self.inference.encode(), **{each.file: each.content for each in self.weights}}
        return {f"{FIRST_STAGE}/{file}": content for file, content in own.items()}

    def seen_by(self, run: Run) -> Run:
        """Return a run whose record lists as trained on what either stage was, so that no figure is of such a case."""
        seen = {*self.run.cases.get("training", []), *run.cases.get("training", [])}
        training = sorted(seen)  # also those that the second manifest has for a test, or not any more
        left_out = [case for case in run.cases.get("validation", []) if case not in seen]
        return replace(run, record={**run.record, "cases": {"training": training, "validation": left_out}})

    def config(self) -> dict[str, Any]:
        """Return the config that writes the masks of a folder of scans."""
        scans = self.run.manifest.n_channels
        config = inference_config(self.run.config, {}, scans, len(self.members))
        config["files"] = {**config["files"], "masks": SCANS}
        for loader in config["handlers"]:
            loader["load_path"] = loader["load_path"].replace("'/models/", f"'/{FIRST_STAGE}/models/")
        *steps, save = config["postprocessing"]["transforms"]
        values = [0, *self.run.manifest.foreground]
        names = [f"{FIRST_STAGE}_{value}" for value in values[1:]]
        config["postprocessing"]["transforms"] = [
            *steps,
            *one_mask_each("pred", names, values, [[value] for value in values[1:]]),
            *({**save, "keys": name, "output_postfix": name} for name in names),
        ]
        return config


def read_stage(folder: Path | None, second: Manifest) -> Stage | None:
    """Read the first stage of a run, and require that its label maps are what the run was trained on.

    Args:
        folder: of its cross-validation; None: masks are channels like others, which a case has to bring.
        second: manifest of the run.

    Raises:
        UsageError: the run has no first stage, or the folder is no cross-validation.
        DataError: its weights cannot be read.
        RefusedError: it is another one, or not finished.
    """
    if folder is None:
        return None
    if second.first_stage is None:
        raise UsageError(
            "the run was trained without a first stage",
            found=", ".join(second.channels),
            expected="channels that `segpipe import MANIFEST --first-stage RUN` made",
            hint="export it without --first-stage",
        )
    members = read_members(folder)
    found = sorted(sha256_of(weights_of(each)) for each in members.folders)
    known = sorted(second.first_stage.weights_sha256)
    if found != known:
        raise RefusedError(
            "the run was trained on the label maps of another first stage",
            path=folder,
            found=", ".join(sha256[:12] for sha256 in found),
            expected=", ".join(sha256[:12] for sha256 in known),
            hint="name the cross-validation whose label maps were imported",
        )
    run = members.together()
    weights = members.read(network_definition(run.config))
    text = json_text(inference_config(run.config, {}, run.manifest.n_channels, len(members)))
    return Stage(folder, members, run, weights, text)


def add_stage(stage: Stage, folder: Path, metadata: dict[str, Any], export: Callable[[Path, Path], object]) -> None:
    """Write the first stage into a bundle folder, and note it in the metadata.

    Args:
        stage: as it was read.
        folder: of the whole bundle.
        metadata: of the whole bundle.
        export: writes a run as a bundle.
    """
    with temporary_folder() as fresh:
        export(stage.folder, fresh / FIRST_STAGE)
        shutil.copytree(fresh / FIRST_STAGE, folder / FIRST_STAGE)
    write_json(folder / CONFIG, stage.config())
    labels = list(stage.run.manifest.foreground.values())
    metadata["first_stage"] = {
        "folder": FIRST_STAGE,
        "config": CONFIG,
        "labels": labels,
        "members": len(stage.members),
        "weights_sha256": sorted(each.sha256 for each in stage.weights),
    }
    metadata["config_requirements"][Path(CONFIG).name] = []
    seen = metadata["training_data"].get("seen")
    if seen is not None:
        seen["intensity"][-len(labels) :] = [ANY_MASK] * len(labels)
    commands, name = metadata["commands"], metadata["name"]
    second, first = commands["predict_stock"], f"python -m monai.bundle run --config_file {name}/{CONFIG}"
    commands["predict_stock"] = f"{second} --first_stage_dir MASKS"
    commands["first_stage_stock"] = f"{first} --bundle_root {name} --dataset_dir IMAGES --output_dir MASKS"


def stage_record(folder: Path) -> dict[str, str]:
    """Return where provenance of the first stage stands in a bundle, for that of the whole."""
    file = f"{FIRST_STAGE}/{PROVENANCE}"
    return {"file": file, "sha256": sha256_of(folder / file)}


def first_stage_section(metadata: Mapping[str, Any]) -> list[str]:
    """Return what a card says of the first of two stages, as a section; nothing where there is one alone."""
    stage = metadata.get("first_stage")
    if not stage:
        return []
    words = (
        f"A first stage (`{FIRST_STAGE}/`, a bundle of its own) finds {', '.join(stage['labels'])}; a mask of each is "
        "a channel of this one, which was trained on masks of cases that the first stage had not seen. "
        "`segpipe predict` runs both. With stock MONAI the first one runs before, and the second is told where its "
        "masks are:"
    )
    commands = [metadata["commands"][each] for each in ("first_stage_stock", "predict_stock")]
    return ["\n\n".join(["## Two stages", words, code(*commands)])]
