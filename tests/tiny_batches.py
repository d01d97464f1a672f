"""Many small cases, some of them bad, and what a result folder holds of them without times."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from segpipe.common.partial import PARTIAL
from segpipe.common.result_folder import RESULT, SEGMENTATION, STATE, read_events
from segpipe.common.shards import SHARDS
from tiny_bundle import TILTED, write_scan

BAD = {  # id to words of its reason
    "bad_cut": "the packed file is cut short",
    "bad_empty": "an empty file",
    "bad_short": "fewer than a header has",
    "bad_link": "a link to a file that is not there",
    "bad_two_channels": "found shape (6, 6, 6, 2)",
    "bad_slice": "found shape (6, 6)",
    "bad_nan": "voxels that are not finite",
    "bad_infinite": "voxels that are not finite",
    "bad_colour": "found RGB24",
    "bad_complex": "found complex64",
}


def write_mixed(folder: Path, good: int) -> None:
    """Write so many good scans, ``case000.nii.gz`` and on, each another, and those of `BAD` among them."""
    for seed in range(good):
        write_scan(folder / f"case{seed:03d}.nii.gz", seed, (6, 6, 6))
    scan, plain = (folder / "case000.nii.gz").read_bytes(), np.zeros((6, 6, 6), np.float32)
    rgb = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name, content in {"cut": scan[:-100], "empty": b"", "short": b"no image"}.items():
        (folder / f"bad_{name}.nii.gz").write_bytes(content)
    (folder / "bad_link.nii.gz").symlink_to("nowhere.nii.gz")
    for name, voxels in {
        "two_channels": np.stack([plain, plain], axis=-1),
        "slice": plain[0],
        "nan": np.where(np.indices(plain.shape).sum(0), plain, np.nan),
        "infinite": np.where(np.indices(plain.shape).sum(0), plain, np.inf),
        "colour": plain.astype(rgb),
        "complex": plain.astype(np.complex64),
    }.items():
        nib.save(nib.Nifti1Image(voxels, TILTED), folder / f"bad_{name}.nii.gz")


def results_of(out: Path) -> dict[str, Any]:
    """Return what a folder holds, without times and the process's own figures."""
    files: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        if path.is_dir() or path.name in (STATE, "mapping.jsonl", "report.html"):
            continue
        content: Any = path.read_bytes()
        if path.suffix == ".json":
            content = without_times(json.loads(content))
        if path.name == "summary.csv":
            rows = csv.DictReader(content.decode().splitlines())
            content = [{name: cell for name, cell in row.items() if name != "seconds"} for row in rows]
        files[str(path.relative_to(out))] = content
    return files


def without_times(value: Any) -> Any:
    """Return plain values without those that differ between two runs."""
    if isinstance(value, dict):
        dropped = ("seconds", "peak_memory_mb", "max_memory")
        return {name: without_times(part) for name, part in value.items() if name not in dropped}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def require_whole(out: Path, expected: Path, good: int) -> None:
    """Require of a folder of `write_mixed` what one process leaves: nothing lost, twice or partial, bad ones named."""
    assert results_of(out) == results_of(expected)
    cases = [path for path in out.iterdir() if path.is_dir()]
    assert len(cases) == good
    assert all({file.name for file in case.iterdir()} == {RESULT, SEGMENTATION} for case in cases)
    assert not (out / PARTIAL).exists() and not (out / SHARDS).exists()
    done = Counter(event["id"] for event in read_events(out) if event["event"] == "done")
    assert max(done.values()) == 1
    rows = json.loads((out / "summary.json").read_text())["cases"]
    failed = {row["id"]: f"{row['reason']} {row['detail']}" for row in rows if row["state"] != "done"}
    assert len(rows) == good + len(BAD) and set(failed) == set(BAD)
    assert [id for id, words in BAD.items() if words not in failed[id]] == []
