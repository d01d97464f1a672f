"""A cross-validation as `segpipe train --folds` leaves it, with random weights: two folds of a tiny run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tiny_run import record_as_trained

from segpipe.bundle import weights_of
from segpipe.common.files import sha256_of, write_json


def write_folds(run: Path, folder: Path, folds: int = 2) -> Path:
    """Make the folds of a tiny run: the cases by fold, and weights that grow from fold to fold."""
    import torch

    document = json.loads((run / "manifest.json").read_text())
    rows = []
    for fold in range(folds):
        member = Path(shutil.copytree(run, folder / f"fold_{fold}"))
        config = json.loads((member / "config.json").read_text())
        write_json(member / "config.json", {**config, "fold": fold, "bundle_root": str(member)})
        cases = {
            name: [case["id"] for case in document["training"] if (case["fold"] == fold) == (name == "validation")]
            for name in ("training", "validation")
        }
        record = json.loads((member / "run.json").read_text())
        write_json(member / "run.json", {**record, "fold": fold, "cases": cases})
        record_as_trained(member)
        state = torch.load(member / "best.pt", weights_only=True)
        noise = torch.Generator().manual_seed(fold)
        changed = {
            name: tensor + 0.3 * torch.randn(tensor.shape, generator=noise) if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        }
        torch.save(changed, member / "best.pt")
        rows.append({"fold": fold, "folder": member.name, "status": "finished", "epochs": 3})
    write_json(folder / "cross_validation.json", {"schema_version": 1, "folds": rows})
    return folder


def write_out_of_fold(folder: Path) -> None:
    """Write the figures that a cross-validation's ``out_of_fold.json`` has, of the weights that are there."""
    folds = sorted(folder.glob("fold_*"))
    document: dict[str, object] = {
        "schema_version": 1,
        "of": "each case by the model of the fold that left it out: figures of the fold models",
        "patients": {"known": False, "rule": None, "note": "patients unknown: figures may be too good"},
        "folds": [
            {
                "fold": index,
                "folder": fold.name,
                "epochs": 3,
                "weights": {"file": weights_of(fold).name, "sha256": sha256_of(weights_of(fold))},
                "cases": 2,
                "patients": 2,
                "mean_dice": {"mean": 0.87, "low": 0.8, "high": 0.9, "median": 0.87, "n": 2},
            }
            for index, fold in enumerate(folds)
        ],
        "figure": {
            "measure": "mean Dice",
            "raw": {"mean": 0.8711, "low": 0.8502, "high": 0.8899, "median": 0.88, "n": 4},
            "corrected": {"mean": 0.86423, "low": 0.84211, "high": 0.88404},
            "candidates": 3,
            "chosen_again": 0.7,
            "method": "by a bootstrap over patients",
        },
        "cases": [
            {"id": f"case_{index}", "fold": index % 2, "failure": None, "mean_dice": 0.8711 + shift, "labels": []}
            for index, shift in enumerate((-0.02, -0.01, 0.01, 0.02))
        ],
        "selected": [
            {
                "what": "training",
                "chosen": "second",
                "candidates": [{"name": name} for name in ("first", "second", "c")],
            },
            {"what": "post-processing of right part", "chosen": "none", "candidates": 14},
        ],
    }
    document["postprocessing"] = {"applied": False, "rules": {}, "labels": [], "raw": 0.8812, "corrected": 0.87111}
    write_json(folder / "out_of_fold.json", document)
