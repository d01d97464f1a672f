"""A small generated data set with folds and a task fragment, for the tests that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import segpipe.training
from segpipe.common.subprocesses import Ended
from segpipe.data.manifest import Manifest, save_manifest
from segpipe.data.phantom import make_phantom

TASK = """
task_name: tiny
channels: [MRI]
labels: [background, liver, kidney, lesion]
ignore_label: null
regions: {}
annotated_sets: []
in_channels: 1
out_channels: 4
activation: softmax
patch_size: [16, 16, 16]
deterministic_transforms:
  - {_target_: LoadImaged, keys: [image, label], reader: NibabelReader, image_only: true, allow_missing_keys: true}
  - {_target_: EnsureChannelFirstd, keys: [image, label], allow_missing_keys: true}
  - _target_: Orientationd
    keys: [image, label]
    axcodes: RAS
    labels: [[L, R], [P, A], [I, S]]
    allow_missing_keys: true
  - {_target_: NormalizeIntensityd, keys: [image], channel_wise: true, allow_missing_keys: true}
  - {_target_: EnsureTyped, keys: [image, label], allow_missing_keys: true}
"""
SMALL = [
    "network_def#channels=[4,8]",
    "network_def#strides=[2]",
    "network_def#num_res_units=0",
    "patch_divisor=2",
    "val_interval=1",
    "batch_size=2",
]


def write_data(folder: Path, cases: int = 6) -> Path:
    """Write images, labels, manifest.json (two folds) and task.yaml; returns the manifest's path."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    training = []
    for number in range(cases):
        name = f"case_{number}"
        make_phantom(number, shape=(20, 18, 16), spacing_mm=(3.0, 3.0, 3.5)).write(
            folder / f"images/{name}.nii.gz", folder / f"labels/{name}.nii.gz"
        )
        training.append(
            {"id": name, "image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz", "fold": number % 2}
        )
    manifest = Manifest.model_validate(
        {
            "name": "tiny",
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "liver", "2": "kidney", "3": "lesion"},
            "training": training,
        }
    )
    save_manifest(manifest, folder / "manifest.json")
    (folder / "task.yaml").write_text(TASK)
    return folder / "manifest.json"


def train_arguments(manifest: Path, out: Path, *more: str, small: bool = True) -> list[str]:
    """The command line of a short training on it."""
    settings = [word for item in SMALL for word in ("--set", item)] if small else []
    task = str(manifest.parent / "task.yaml")
    return ["train", str(manifest), "--task", task, "--out", str(out), "--threads", "1", *settings, *more]


class InThisProcess:
    """Makes the calls here; ``instead`` says how that of a folder ends otherwise."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.stopped = False
        self.instead: dict[str, Ended | BaseException] = {}

    def call(self, name: str, arguments: dict[str, Any], on_line: Any) -> Ended:
        assert name == "segpipe.train"
        folder = Path(arguments["resume"]).name
        self.folders.append(folder)
        instead = self.instead.get(folder)
        if isinstance(instead, BaseException):
            raise instead
        if instead is not None:
            return instead
        return Ended(0, {"result": segpipe.training.train(**arguments, progress=on_line).document()})

    def stop(self) -> None:
        self.stopped = True
