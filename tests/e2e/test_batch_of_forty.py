"""A mixed batch of 40 cases, 6 of them bad, killed twice: what is whole stays, what is bad has its reason."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from pydicom import dcmread

from dicom import make
from segpipe.common.partial import PARTIAL
from segpipe.common.result_folder import read_events
from tiny_bundle import DETERMINISTIC, TILTED, write_bundle, write_scan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GOOD = 34
BAD = {"gap", "single_slice", "truncated", "unreadable", "cannot read the NIfTI file", "not finite"}
COMMAND = "import sys; from segpipe.cli.app import run; sys.exit(run(sys.argv[1:]))"


def write_series(folder: Path, seed: int, keep: Callable[[int], bool] = lambda k: True) -> list[Path]:
    images = make.series(make.Grid(rows=9, columns=8, slices=5), "MR", seed)
    return make.write([image for k, image in enumerate(images) if keep(k)], folder)


def write_tree(root: Path) -> Path:
    """17 good NIfTI files and 17 good series in several depths, and six of which each is bad in its own way."""
    for seed in range(GOOD // 2):
        write_scan(root / f"site{seed % 3}" / f"scan{seed:02}.nii.gz", seed, shape=(8, 8, 8))
        write_series(root / f"site{seed % 2}" / "dicom" / str(seed), seed)
    write_series(root / "bad" / "gap", 100, lambda k: k != 2)
    write_series(root / "bad" / "single", 101, lambda k: k == 0)
    cut = write_series(root / "bad" / "cut", 102)[1]
    image = dcmread(cut)
    image.PixelData = image.PixelData[:-30]
    image.save_as(cut)
    (root / "bad" / "lost").mkdir()
    (root / "bad" / "lost" / "1.dcm").write_bytes(bytes(128) + b"DICM" + b"no header")
    (root / "bad" / "noise.nii.gz").write_bytes(b"no image")
    voxels = np.random.default_rng(0).random((8, 8, 8), np.float32)
    voxels[1, 2, 3] = np.nan
    nib.save(nib.Nifti1Image(voxels, TILTED), root / "bad" / "nan.nii.gz")
    return root


def start(bundle: Path, folder: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "predict", str(bundle), str(folder), str(out), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def done(out: Path) -> list[str]:
    return [event["id"] for event in read_events(out) if event["event"] == "done"]


def is_under_way(out: Path, number: int) -> bool:
    return len(done(out)) >= number and (out / PARTIAL).is_dir()


def final(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.glob("[!.]*/*")}


def test_a_batch_of_forty_killed_twice(tmp_path: Path) -> None:
    bundle, folder, out = write_bundle(tmp_path / "tiny"), write_tree(tmp_path / "in"), tmp_path / "out"
    before: dict[str, int] = {}
    for number in (6, 18):
        process = start(bundle, folder, out)
        until(process, partial(is_under_way, out, number))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert before.items() <= final(out).items()
        before = final(out)
        assert number <= len({Path(path).parent for path in before}) < GOOD
    process = start(bundle, folder, out, "--json")
    text, err = process.communicate(timeout=1200)
    assert process.returncode == 4, err
    assert before.items() <= final(out).items()  # no case with a final folder was computed again
    assert max(Counter(done(out)).values()) == 1

    document = json.loads(text)
    assert len(document["cases"]) == 40
    bad = [case for case in document["cases"] if case["status"] in ("failed", "refused")]
    words = [f"{case['reason']} {case['detail']}" for case in bad]
    assert all(sum(reason in text for text in words) == 1 for reason in BAD), words
    assert len(bad) == 6 and document["counts"]["done"] + document["counts"]["skipped"] == GOOD

    whole = sorted(path.parent for path in out.glob("*/result.json"))
    assert len(whole) == GOOD and not (out / PARTIAL).exists()
    for case in whole:
        labels = nib.load(case / "segmentation.nii.gz")
        assert labels.get_fdata().any()
        expected = {"overlay.png", "result.json", "segmentation.nii.gz"}
        expected |= {"seg.dcm"} if case.name.startswith("dcm-") else set()
        assert {path.name for path in case.iterdir()} == expected
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert Counter(row["state"] for row in rows) == {"done": GOOD, "refused": 4, "failed": 2}
    assert all(row["seconds"] for row in rows if row["state"] == "done" and row["id"] in done(out))
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") == GOOD + 1 and str(tmp_path) not in page


def test_a_case_over_its_memory_and_one_whose_worker_the_system_kills_cost_themselves_alone(tmp_path: Path) -> None:
    hungry = (  # takes a gigabyte for good at the sight of 1000, and dies as if killed for want of memory at 1001
        "$lambda x: (int(x.max()) == 1000 and (globals().update(kept=bytearray(b'1' * 2**30)), "
        "__import__('time').sleep(60)), "
        "int(x.max()) == 1001 and __import__('os').kill(__import__('os').getpid(), 9), x)[-1]"
    )
    steps = [*DETERMINISTIC, {"_target_": "Lambdad", "keys": "image", "func": hungry}]
    bundle = write_bundle(tmp_path / "hungry", deterministic=steps)
    for name, most in (("a", 7), ("b", 1000), ("c", 1001), ("d", 7)):
        voxels = np.random.default_rng(0).integers(0, 200, (8, 8, 8)).astype(np.int16)
        voxels[1, 1, 1] = most if most > 200 else 199
        (tmp_path / "in").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, TILTED), tmp_path / "in" / f"{name}.nii.gz")
    process = start(
        bundle,
        tmp_path / "in",
        tmp_path / "out",
        "--json",
        "--max-case-memory",
        "1200M",
        "--retries",
        "0",
        "--run-unvetted-code",
    )
    text, err = process.communicate(timeout=900)
    assert process.returncode == 4, err
    cases = {case["id"]: case for case in json.loads(text)["cases"]}
    assert [cases[id]["status"] for id in "abcd"] == ["done", "failed", "failed", "done"]
    assert "too much memory" in cases["b"]["reason"] and "was killed" in cases["c"]["reason"]
    assert process.pid not in {os.getsid(each) for each in psutil.pids()}  # none of its processes is left
