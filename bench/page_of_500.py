"""How large the pages of 500 cases are, and how long Chromium takes to open them: `report.html` and `cohort.html`.

    python bench/page_of_500.py [--cases 500]

Cases are generated: results without images, and for each an overlay of a noisy slice of 512 x 512, which takes more
bytes than a scan. Without Chromium sizes alone are measured.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.cohort import report
from segpipe.prediction import refresh_summary
from segpipe.reporting.case_overlay import OverlaySlice, overlay

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "viewer"))
LABELS = {"liver": 1, "kidney": 2, "spleen": 3, "lesion": 4}
BUNDLE = {"name": "organs", "version": "1.0.0", "sha256": "0" * 64}
DIFFERENT = 20  # overlays; each stands in the page as often as it is shown
MOST_MB, MOST_S = 40, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    cases = parser.parse_args().cases
    with tempfile.TemporaryDirectory() as name:
        out = write_results(Path(name) / "results", cases)
        begun = time.perf_counter()
        refresh_summary(out)
        print(f"report.html written in {time.perf_counter() - begun:.1f} s")
        begun = time.perf_counter()
        report([out], Path(name) / "cohort")
        print(f"cohort.html written in {time.perf_counter() - begun:.1f} s")
        for page in (out / "report.html", Path(name) / "cohort" / "cohort.html"):
            size, seconds = page.stat().st_size / 1e6, seconds_to_open(page, Path(name) / f"chromium_{page.stem}")
            opened = "" if seconds is None else f", open in {seconds:.2f} s (at most {MOST_S})"
            print(f"{page.name} of {cases} cases: {size:.1f} MB (at most {MOST_MB}){opened}")


def seconds_to_open(page: Path, folder: Path) -> float | None:
    """Return the seconds until a page is there with all that it shows; None without Chromium."""
    from chromium import PROGRAM, Browser

    if PROGRAM is None:
        return None
    with Browser(folder) as browser:
        begun = time.perf_counter()
        browser.open(page.as_uri())
        browser.wait_for("document.readyState === 'complete' && document.querySelector('td')")
        browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.perf_counter() - begun


def write_results(out: Path, cases: int) -> Path:
    """Write what `predict` leaves of cases, but for their images and label maps."""
    draw, pictures = random.Random(0), [overlay_of(seed) for seed in range(DIFFERENT)]
    out.mkdir(parents=True)
    events = []
    for number in range(cases):
        case = f"case_{number:04}"
        (out / case).mkdir()
        (out / case / "overlay.png").write_bytes(pictures[number % DIFFERENT])
        (out / case / "result.json").write_text(json.dumps(result_of(case, draw)))
        events.append(json.dumps({"time": 1.7e9 + 60 * number, "event": "done", "id": case, "seconds": 9.5}) + "\n")
    (out / "predictions.jsonl").write_text("".join(events))
    columns = ["id", "state", *(f"{label}_ml" for label in LABELS)]
    (out / "summary.csv").write_text(",".join(columns) + "\n")
    (out / "summary.json").write_text(json.dumps({"bundle": BUNDLE, "not_selected": [], "passed_over": {}}))
    return out


def result_of(case: str, draw: random.Random) -> dict[str, Any]:
    decision = draw.choices(["ok", "look", "hold"], [0.9, 0.07, 0.03])[0]
    volumes = {label: round(draw.lognormvariate(4, 0.3), 1) for label in LABELS}
    quality = {
        "patients": 96,
        "p_value": round(draw.random(), 3),
        "distance": round(draw.lognormvariate(-0.4, 0.4), 3),
        "groups": {"image": 0.7, "labels": 0.6},
        "findings": ["volume of liver 81 mL; 90 % of 96 cases: 0.9 to 2.1 mL"] if decision != "ok" else [],
        "dice": {label: 0.91 for label in LABELS},
        "dice_low": {label: 0.84 for label in LABELS},
        "volume_ml": {label: [0.9 * volume, 1.1 * volume] for label, volume in volumes.items()},
        "level": 0.9,
        "no_interval": None,
        "absent": [],
    }
    return {
        "id": case,
        "bundle": BUNDLE,
        "labels": LABELS,
        "runtime": "torch",
        "volumes_ml": volumes,
        "flags": {"empty": False, "touches_border": [], "far_spacing": "no", "orientation_unknown": False},
        "files": {"nifti": "segmentation.nii.gz"},
        "decision": decision,
        "reasons": [] if decision == "ok" else ["predicted Dice of lesion 0.41, below 0.5"],
        "quality": quality,
    }


def overlay_of(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    x, y = np.indices((512, 512)) / 512 - 0.5
    body = np.hypot(x, 1.2 * y) < 0.42
    image = np.clip(np.where(body, 120, 5) + rng.normal(0, 20, body.shape), 0, 255).astype(np.uint8)
    labels = np.zeros(body.shape, np.uint8)
    for value in LABELS.values():
        cx, cy = rng.uniform(-0.2, 0.2, 2)
        labels[np.hypot(x - cx, y - cy) < 0.08] = value
    return overlay(OverlaySlice(image[..., None], labels[..., None], (0.8, 0.8, 5.0), 2))


if __name__ == "__main__":
    main()
