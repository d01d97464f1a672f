"""A cross-validation as a whole command, killed while it trains and while it predicts: the same bits at the end.

In bfloat16, with averaged weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import segpipe
from segpipe.cli.app import run
from segpipe.common.result_folder import SEGMENTATION
from tiny_data import train_arguments
from whole_commands import start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SETTINGS = ("--epochs", "8", "--set", "precision=bfloat16", "--set", "averaging=0.8")


def kill(process) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def statuses(out: Path) -> list[str]:
    return [row["status"] for row in json.loads((out / "cross_validation.json").read_text())["folds"]]


def test_killed_in_training_and_in_prediction_it_goes_on_to_what_each_fold_would_be_alone(tiny_manifest, tmp_path):
    out = tmp_path / "folds"
    process = start(*train_arguments(tiny_manifest, out, *SETTINGS, "--folds", "all", "--jobs", "2"))
    wait_for(process, "fold_")  # an epoch of either
    kill(process)
    assert "finished" not in statuses(out)
    process = start("train", "--resume", out, "--jobs", "2")
    wait_for(process, "predicting the cases of fold")
    kill(process)
    assert statuses(out) == ["finished", "finished"]
    assert not (out / "out_of_fold.json").exists()
    process = start("train", "--resume", out, "--jobs", "2", "--json")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    pooled = json.loads((out / "out_of_fold.json").read_text())
    assert [case["failure"] for case in pooled["cases"]] == [None] * 6
    for fold in (0, 1):
        alone = tmp_path / f"alone{fold}"
        more = ("--fold", str(fold), "--set", "keep_weights=last")
        assert run(train_arguments(tiny_manifest, alone, *SETTINGS, *more)) == 0
        ours, theirs = (torch.load(each / "final.pt", weights_only=True) for each in (out / f"fold_{fold}", alone))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        bundle = segpipe.open_bundle(out / "measured" / f"fold_{fold}" / "bundle")
        case = f"case_{fold}"  # of this fold
        mine = bundle.segment(tiny_manifest.parent / f"images/{case}.nii.gz", threads=1).array
        stored = np.asarray(nib.load(out / "out_of_fold" / case / SEGMENTATION).dataobj)
        assert np.array_equal(stored, mine)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_ctrl_c_says_how_to_go_on_and_a_full_disk_why_it_does_not(tiny_manifest, disk) -> None:
    out = disk / "folds"
    process = start(*train_arguments(tiny_manifest, out, "--epochs", "400", "--folds", "all", "--jobs", "2"))
    wait_for(process, "fold_1 epoch 2/400")
    for _ in range(2):  # the line of an epoch comes before its checkpoint
        wait_for(process, "fold_0 epoch")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert f"segpipe train --resume {out}" in said
    assert "Traceback" not in said
    assert statuses(out) == ["interrupted", "interrupted"]
    last = {fold: (out / f"fold_{fold}" / "last.pt").read_bytes() for fold in (0, 1)}
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    process = start("train", "--resume", out, "--jobs", "2")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert "No space left" in said
    assert "Traceback" not in said
    (disk / "filler").unlink()
    assert statuses(out) == ["interrupted", "interrupted"]
    assert all((out / f"fold_{fold}" / "last.pt").read_bytes() == content for fold, content in last.items())
