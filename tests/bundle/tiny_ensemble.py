"""A cross-validation as `segpipe train --folds` leaves it, with random weights: two folds of a tiny run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tiny_run import record_as_trained

from segpipe.common.files import write_json


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
