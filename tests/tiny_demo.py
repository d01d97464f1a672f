"""A stand-in for the commands that the demo runs, for tests of all that is around them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from segpipe.common.result_folder import SEGMENTATION
from segpipe.data.manifest import Manifest, load_manifest


class FakeCommands:
    """Stands for `segpipe.cli.app.run` and for stock MONAI: leaves the files that the real ones leave."""

    def __init__(self, out: Path, fails: str = "", code: int = 3) -> None:
        self.out, self.fails, self.code = out, fails, code
        self.ran: list[list[str]] = []

    def run(self, words: list[str]) -> int:
        self.ran.append(words)
        if words[0] == self.fails:
            return self.code
        manifest = load_manifest(self.out / "data" / "manifest.json")
        if words[0] == "train":
            (self.out / "run").mkdir()
            (self.out / "run" / "history.csv").write_text("epoch,train_loss,val_mean_dice\n1,0.9,\n2,0.5,0.4\n")
        if words[0] == "predict":
            for case in manifest.test:
                (self.out / "predictions" / case.id).mkdir(parents=True)
                truth = self.out / "data" / str(case.label)
                shutil.copy(truth, self.out / "predictions" / case.id / SEGMENTATION)
        if words[0] == "evaluate":
            (self.out / "evaluation").mkdir()
            (self.out / "evaluation" / "metrics.json").write_text(json.dumps(metrics(manifest)))
        return 0

    def run_python(self, words: list[str]) -> None:
        self.ran.append(words)
        (self.out / "stock").mkdir()
        for folder in (self.out / "predictions").iterdir():
            shutil.copy(folder / SEGMENTATION, self.out / "stock" / f"{folder.name}_seg.nii.gz")


def metrics(manifest: Manifest) -> dict[str, object]:
    """As `segpipe evaluate` writes it, of perfect predictions."""
    estimates = {
        name: {"mean": 1.0, "low": 1.0, "high": 1.0, "median": 1.0, "n": len(manifest.test)}
        for name in ("dice", "nsd", "hd95_mm", "assd_mm")
    }
    labels = [{"label": value, "name": name, "dice": 1.0} for value, name in manifest.foreground.items()]
    return {
        "summary": {
            "overall": {"metrics": estimates},
            "labels": {str(value): {"name": name, "metrics": estimates} for value, name in manifest.foreground.items()},
        },
        "cases": [{"id": case.id, "mean_dice": 1.0, "labels": labels} for case in manifest.test],
    }
