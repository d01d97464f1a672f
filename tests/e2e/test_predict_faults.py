"""Whole predictions that meet crashes, kills, a full disk and interruption: nothing finished is ever lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from segpipe.common.partial import PARTIAL
from segpipe.common.result_folder import read_events
from tiny_bundle import DETERMINISTIC, TILTED, write_bundle, write_scan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXITS, ABORTS, SLEEPS, RAISES = 1000, 1001, 1002, 1003
# A foreign bundle, whose own transform misbehaves at the sight of certain values, and always talks: no list admits it.
TRICK = (
    "$lambda x: ("
    "print('noise on standard output'), "
    "__import__('time').sleep(0.3), "
    f"__import__('os')._exit(9) if int(x.max()) == {EXITS} else 0, "
    f"__import__('os').abort() if int(x.max()) == {ABORTS} else 0, "
    f"__import__('time').sleep(600) if int(x.max()) == {SLEEPS} else 0, "
    f"1 / 0 if int(x.max()) == {RAISES} else 0, "
    "x)[-1]"
)
# The parent of the batch, which must be free of torch to the end.
PARENT = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job would ignore
from segpipe.cli.app import run
code = run(sys.argv[1:])
heavy = {'torch', 'monai', 'ignite'} & set(sys.modules)
sys.exit(f'the parent imported {heavy}' if heavy else code)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    steps = [*DETERMINISTIC, {"_target_": "Lambdad", "keys": "image", "func": TRICK}]
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tricky", deterministic=steps)


def scans(root: Path, count: int, **special: int) -> Path:
    for seed in range(count):
        write_scan(root / f"s{seed}.nii.gz", seed)
    for name, value in special.items():
        voxels = np.random.default_rng(0).integers(0, 200, (12, 10, 9)).astype(np.int16)
        voxels[3, 3, 3] = value
        root.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, TILTED), root / f"{name}.nii.gz")
    return root


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, "predict", *map(str, arguments), "--run-unvetted-code"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=400)
    finally:
        process.kill()
    return process.returncode, out, err


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def done(out: Path) -> list[str]:
    return [event["id"] for event in read_events(out) if event["event"] == "done"]


def under_way(out: Path) -> bool:
    return any((out / PARTIAL).glob("*/[!~]*"))


def worker_of(process: subprocess.Popen[str]) -> psutil.Process:
    (worker,) = psutil.Process(process.pid).children()
    return worker


def times(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.glob("[!.]*/*")}


def assert_complete(out: Path, *ids: str) -> None:
    for id in ids:
        names = {path.name for path in (out / id).iterdir()}
        assert names == {"overlay.png", "result.json", "segmentation.nii.gz"}
        assert nib.load(out / id / "segmentation.nii.gz").get_fdata().shape == (12, 10, 9)
    assert sorted(path.name for path in out.iterdir() if path.is_dir() and path.name != PARTIAL) == sorted(ids)


def test_cases_that_crash_hang_or_raise_stop_nothing_else(bundle: Path, tmp_path: Path) -> None:
    folder = scans(tmp_path / "in", 2, aborts=ABORTS, exits=EXITS, hangs=SLEEPS, raises=RAISES)
    out = tmp_path / "out"
    code, text, err = finish(start(bundle, folder, out, "--json", "--timeout", 3, "--retries", 0))
    assert code == 4, err
    cases = {case["id"]: case for case in json.loads(text)["cases"]}
    assert {id for id, case in cases.items() if case["status"] == "done"} == {"s0", "s1"}
    assert "SIGABRT" in cases["aborts"]["reason"] and "code 9" in cases["exits"]["reason"]
    assert "too long" in cases["hangs"]["reason"] and "ZeroDivisionError" in cases["raises"]["detail"]
    assert_complete(out, "s0", "s1")
    assert not (out / PARTIAL).exists()
    result = json.loads((out / "s0/result.json").read_text())
    assert result["route"] == "stock" and "Lambdad" in " ".join(result["route_reasons"])
    crashed = [event["id"] for event in read_events(out) if event["event"] == "crashed"]
    assert crashed == ["aborts", "exits"]
    assert "Traceback" not in err and str(tmp_path) not in (out / "predictions.jsonl").read_text()


def test_a_killed_worker_is_replaced(bundle: Path, tmp_path: Path) -> None:
    folder, out = scans(tmp_path / "in", 4), tmp_path / "out"
    process = start(bundle, folder, out)
    until(lambda: done(out) and under_way(out))
    worker_of(process).kill()
    code, text, err = finish(process)
    assert code == 0, err
    assert "4 done" in text and "was killed" in err
    assert_complete(out, "s0", "s1", "s2", "s3")


def test_a_killed_parent_leaves_only_whole_cases_and_the_batch_goes_on(bundle: Path, tmp_path: Path) -> None:
    folder, out = scans(tmp_path / "in", 5), tmp_path / "out"
    process = start(bundle, folder, out)
    until(lambda: len(done(out)) >= 2 and under_way(out))
    worker = worker_of(process)
    process.kill()
    finish(process)
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    finished = [path.name for path in out.iterdir() if (path / "result.json").is_file()]
    assert 2 <= len(finished) < 5
    assert_complete(out, *finished)
    before = times(out)
    code, text, err = finish(start(bundle, folder, out))
    assert code == 0, err
    assert f"{5 - len(finished)} done, {len(finished)} skipped, 0 failed" in text
    assert_complete(out, "s0", "s1", "s2", "s3", "s4")
    assert not (out / PARTIAL).exists()
    assert before.items() <= times(out).items()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_ends_with_130_and_a_second_batch_is_refused_meanwhile(
    bundle: Path, tmp_path: Path, signal_number: int
) -> None:
    folder, out = scans(tmp_path / "in", 1, z=SLEEPS), tmp_path / "out"
    process = start(bundle, folder, out)
    until(lambda: done(out) and under_way(out))
    worker = worker_of(process)
    code, _, err = finish(start(bundle, folder, out))
    assert code == 5 and "another prediction" in err
    process.send_signal(signal_number)
    code, _, err = finish(process)
    assert code == 130 and "interrupted" in err and "Traceback" not in err
    assert not worker.is_running()
    assert_complete(out, "s0")
    assert not (out / PARTIAL).exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_stops_with_2_and_loses_nothing_finished(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, small_disk: Path
) -> None:
    bundle = write_bundle(tmp_path_factory.mktemp("bundle") / "plain")
    for seed in range(6):  # random labels do not compress: about 90 KB each
        write_scan(tmp_path / f"in/s{seed}.nii.gz", seed, shape=(80, 80, 80))
    out = small_disk / "out"
    code, _, err = finish(start(bundle, tmp_path / "in", out))
    assert code == 2 and "No space left" in err and "Traceback" not in err
    finished = sorted(path.name for path in out.iterdir() if path.is_dir() and path.name != PARTIAL)
    assert 0 < len(finished) < 6
    for id in finished:
        assert nib.load(out / id / "segmentation.nii.gz").get_fdata().any()
        json.loads((out / id / "result.json").read_text())
    assert not under_way(out)
    before = times(out)
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    code, text, err = finish(start(bundle, tmp_path / "in", out))
    assert code == 0, err
    assert f"{6 - len(finished)} done, {len(finished)} skipped, 0 failed" in text and err == ""
    assert before.items() <= times(out).items()
