"""What a bundle records of its training, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bundle import open_bundle
from pipeline.bundle.record import MANIFEST, PROVENANCE, TRAIN
from pipeline.bundle.tensors import State, read_state, tensors_sha256
from pipeline.compose import Composed
from pipeline.errors import RefusedError, UsageError
from pipeline.files import read_json
from pipeline.manifest import Manifest, load_manifest

NEEDED = ("run_dir", "manifest", "dataset_dir", "fold", "seed", "threads", "num_workers", "max_epochs")
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
        provenance: ``provenance.json``; empty where the bundle has none.
    """

    bundle: dict[str, str]
    config: dict[str, Any]
    manifest_file: Path
    manifest: Manifest
    weights: State
    provenance: Mapping[str, Any]

    @property
    def environment(self) -> dict[str, Any] | None:
        """Versions, system and hardware that it was trained with; None where nothing is recorded."""
        return self.provenance.get("environment")

    @property
    def best(self) -> dict[str, Any] | None:
        """Best epoch and its validation Dice; None where nothing is recorded."""
        return self.provenance.get("best")

    @property
    def spread(self) -> dict[str, Any] | None:
        """Mean, sd, min, max and n of the validation Dice over seeds; None where it was not measured."""
        seeds = self.provenance.get("seeds")
        return seeds and seeds.get("val_mean_dice")

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
    config = read_json(root / TRAIN, "training config")
    missing = [name for name in NEEDED if name not in config] if isinstance(config, dict) else [*NEEDED]
    if missing:
        raise UsageError(
            "not a training config of segpipe", path=root / TRAIN, found=f"no {', '.join(missing)}",
            hint="a bundle of other origin is trained by its own means",
        )  # fmt: skip
    provenance = read_json(root / PROVENANCE, "provenance") if (root / PROVENANCE).is_file() else {}
    weights = read_state(bundle.weights)
    stated = provenance.get("weights", {}).get("tensors_sha256")
    for what, said, found in (
        (TRAIN, provenance.get("config"), config),
        ("the weights", stated, tensors_sha256(weights)),
    ):
        if said is not None and said != found:
            raise RefusedError(
                f"{PROVENANCE} is not of this bundle: {what} is another", path=root,
                hint="get the bundle again from where it came from",
            )  # fmt: skip
    return Recorded(
        {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256}, config, root / MANIFEST,
        load_manifest(root / MANIFEST), weights, provenance,
    )  # fmt: skip
