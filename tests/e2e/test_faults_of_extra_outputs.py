"""Kills and want of memory while probabilities are written: a clear message, and nothing that is not whole."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from test_predict_faults import finish, start, under_way, until, worker_of

from segpipe.common.partial import PARTIAL
from segpipe.common.result_folder import ENTROPY, PROBABILITIES, RESULT, read_events
from tiny_bundle import write_bundle, write_scan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OPTIONS = ("--probabilities", "all", "--entropy", "--threads", 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "plain")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans of which each takes a second or more to be written."""
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(3):
        write_scan(folder / f"s{seed}.nii.gz", seed, shape=(110, 110, 110))
    return folder


def writing(out: Path, id: str) -> bool:
    return any(any((out / PARTIAL).glob(f"*/{id}/{name}")) for name in ("*.nii.gz*", ".*.raw", ".*.partial"))


def assert_whole(out: Path, *ids: str) -> None:
    for id in ids:
        folder = out / id
        values = np.asarray(nib.load(folder / PROBABILITIES).dataobj)
        assert values.shape == (110, 110, 110, 2) and np.allclose(values.sum(-1), 1, atol=1e-4)
        assert np.asarray(nib.load(folder / ENTROPY).dataobj).max() > 0
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert {path.name for path in out.iterdir() if path.is_dir() and path.name != PARTIAL} == set(ids)


def test_a_worker_that_is_killed_while_it_writes_is_replaced(bundle: Path, scans: Path, tmp_path: Path) -> None:
    process = start(bundle, scans, tmp_path / "out", *OPTIONS)
    until(lambda: writing(tmp_path / "out", "s1"))
    worker_of(process).kill()
    code, text, err = finish(process)
    assert code == 0, err
    assert "3 done" in text and "was killed" in err
    assert_whole(tmp_path / "out", "s0", "s1", "s2")
    assert not (tmp_path / "out" / PARTIAL).exists()


def test_a_parent_that_is_killed_meanwhile_leaves_whole_cases_and_goes_on(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(bundle, scans, out, *OPTIONS)
    until(lambda: writing(out, "s1"))
    worker = worker_of(process)
    process.kill()
    finish(process)
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    assert not (out / "s1").exists() and under_way(out)
    if (out / "s0").exists():
        assert_whole(out, "s0")
    code, _, err = finish(start(bundle, scans, out, *OPTIONS))
    assert code == 0, err
    assert_whole(out, "s0", "s1", "s2")
    assert not (out / PARTIAL).exists()


def test_a_case_without_memory_fails_alone_with_the_numbers(bundle: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "in/a.nii.gz")
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((700, 700, 400))
    header["magic"], header["vox_offset"] = b"n+1", 352
    with (tmp_path / "in/large.nii").open("wb") as stream:  # a file with holes, whose voxels are never read
        stream.write(header.binaryblock)
        stream.truncate(352 + 2 * 700 * 700 * 400)
    out = tmp_path / "out"
    code, text, err = finish(start(bundle, tmp_path / "in", out, "--max-memory", "1G", "--json"))
    cases = {case["id"]: case for case in json.loads(text)["cases"]}
    assert code == 4 and "Traceback" not in err
    assert "more memory than it may take" in cases["large"]["reason"]
    assert "1.00 GiB (--max-memory)" in cases["large"]["detail"]
    assert cases["a"]["status"] == "done" and (out / "a" / RESULT).is_file()
    assert not (out / "large").exists() and not (out / PARTIAL).exists()
    assert [event["id"] for event in read_events(out) if event["event"] == "failed"] == ["large"]
