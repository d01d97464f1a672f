"""What a bundle records of its training, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bundle import open_bundle
from pipeline.bundle.record import MANIFEST, PROVENANCE, TRAIN
from pipeline.bundle.tensors import State, read_state, tensors_sha256
from pipeline.compose import Composed
from pipeline.errors import DataError, RefusedError, UsageError
from pipeline.files import read_json
from pipeline.manifest import Manifest, load_manifest

NUMBERS = ("fold", "seed", "threads", "num_workers", "max_epochs")
NEEDED = ("run_dir", "manifest", "dataset_dir", *NUMBERS)
OF_A_RUN = {"run_dir": "@bundle_root", "manifest": "$@bundle_root + '/manifest.json'", "resume": False}


@dataclass(frozen=True)
class Recorded:
    """A bundle's training.

    Attributes:
        bundle: name, version and sha256 of the bundle.
        config: ``configs/train.json``.
        manifest_file: the bundle's manifest, whose patients are numbers and whose cases stand in their order.
        manifest: the same, read.
        weights: the state dict.
        environment: versions, system and hardware that it was trained with; None where nothing is recorded.
        best: best epoch and its validation Dice; None where nothing is recorded.
        spread: mean, sd, min, max and n of the best validation Dice over seeds; None where it was not measured.
        finished: whether the training went to its end.
    """

    bundle: dict[str, str]
    config: dict[str, Any]
    manifest_file: Path
    manifest: Manifest
    weights: State
    environment: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    spread: dict[str, Any] | None = None
    finished: bool = True

    @property
    def on_gpu(self) -> bool:
        """Whether it was trained on a GPU."""
        return "cuda" in str(self.config.get("device"))

    def at(self, out: Path, data: Path) -> Composed:
        """The config of the training, with a run folder and a data folder of this machine."""
        places = {"bundle_root": str(out.resolve()), "dataset_dir": str(data.resolve())}
        config = {**self.config, **OF_A_RUN, **places}
        origin = f"bundle {self.bundle['name']} {self.bundle['version']}"
        return Composed(
            config, {**dict.fromkeys(config, origin), **dict.fromkeys(places, "segpipe reproduce")}
        )


def read_recorded(root: Path, changed_too: bool = False) -> Recorded:
    """Read what a bundle records; nothing of it is evaluated.

    Args:
        root: the bundle's folder.
        changed_too: take one whose files are not those of SHA256SUMS, too.

    Raises:
        UsageError: not a bundle, or none that says how it was trained.
        DataError: a file of it cannot be read.
        RefusedError: its record contradicts its content.
    """
    for name in (TRAIN, MANIFEST):
        if not (root / name).is_file():
            raise UsageError(
                "the bundle does not say how it was trained", path=root, found=f"no {name}",
                expected=f"{TRAIN} and {MANIFEST}, as `segpipe export` writes them",
            )  # fmt: skip
    bundle = open_bundle(root, changed_too)
    config, weights = _read_config(root), read_state(bundle.weights)
    return Recorded(
        {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256}, config, root / MANIFEST,
        load_manifest(root / MANIFEST), weights, **_read_provenance(root, config, weights),
    )  # fmt: skip


def _read_config(root: Path) -> dict[str, Any]:
    config = read_json(root / TRAIN, "training config")
    given = config if isinstance(config, dict) else {}
    missing = [name for name in NEEDED if name not in given]
    missing += [name for name in NUMBERS if name in given and not isinstance(given[name], int)]
    if missing:
        raise UsageError(
            "not a training config of segpipe", path=root / TRAIN, found=f"no {', '.join(missing)}",
            hint="a bundle of other origin is trained by its own means",
        )  # fmt: skip
    return given


def _read_provenance(root: Path, config: dict[str, Any], weights: State) -> dict[str, Any]:
    """What ``provenance.json`` adds, empty where there is none, after a look whether it is of this bundle."""
    path = root / PROVENANCE
    if not path.is_file():
        return {}
    document = read_json(path, "provenance")
    try:
        stated = {"the settings": document["config"], "the weights": document["weights"]["tensors_sha256"]}
        best, seeds = document["best"], document["seeds"]
        found = {
            "environment": document["environment"] and dict(document["environment"]),
            "best": best and {"epoch": int(best["epoch"]), "val_mean_dice": float(best["val_mean_dice"])},
            "spread": seeds
            and {name: seeds["val_mean_dice"][name] for name in ("mean", "sd", "min", "max", "n")},
            "finished": document["status"] in ("finished", None),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "the provenance cannot be read", path=path, found=f"{type(error).__name__}: {error}",
            expected="what `segpipe export` writes",
        ) from error  # fmt: skip
    for what, here in (("the settings", config), ("the weights", tensors_sha256(weights))):
        if stated[what] != here:
            raise RefusedError(
                f"{PROVENANCE} is not of this bundle: {what} differ", path=root,
                hint="get the bundle again from where it came from",
            )  # fmt: skip
    return found
