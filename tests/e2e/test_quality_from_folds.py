"""From a cross-validation to a bundle that says which cases to trust, by the commands of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segpipe.bundle import open_bundle
from segpipe.bundle.vet import write_sums
from segpipe.cli.app import run
from segpipe.common.files import sha256_of
from segpipe.quality import QUALITY, RUN_QUALITY
from tiny_data import train_arguments, write_data

pytestmark = pytest.mark.slow
PATIENTS = 10


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measured cross-validation with its quality model."""
    root = tmp_path_factory.mktemp("quality")
    words = train_arguments(write_data(root, PATIENTS), root / "folds")
    assert run([*words, "--epochs", "8", "--folds", "all"]) == 0
    assert run(["quality", "fit", str(root / "folds"), "--spoil", "1", "--threads", "1"]) == 0
    return root / "folds"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_fit_that_was_killed_goes_on_and_gives_the_same(folds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, whole = folds / "quality" / "rows.jsonl", (folds / RUN_QUALITY).read_bytes()
    lines = rows.read_text().splitlines()
    assert len(lines) == 2 * PATIENTS
    rows.write_text("\n".join(lines[:13]) + "\n" + lines[13][:40])  # killed while it wrote
    capsys.readouterr()
    assert run(["quality", "fit", str(folds), "--spoil", "1", "--threads", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (folds / RUN_QUALITY).read_bytes() == whole
    assert printed["patients"] == PATIENTS
    assert printed["tested"] == {}  # 10 are enough to say what is usual, and too few for bounds
    again = [json.loads(line)["row"] for line in rows.read_text().splitlines() if line.endswith("}}")]
    assert sorted(row["case"] + row["kind"] for row in again) == sorted(
        json.loads(line)["row"]["case"] + json.loads(line)["row"]["kind"] for line in lines
    )


def test_the_bundle_takes_it_along_and_judges_by_it(folds: Path) -> None:
    bundle = folds.parent / "bundle"
    assert run(["export", str(folds), str(bundle)]) == 0
    assert read(bundle / QUALITY)["made_by"]["models"] == [
        member["sha256"] for member in read(bundle / "configs/metadata.json")["members"]
    ]
    card = (bundle / "docs/README.md").read_text()
    assert "## Which cases to trust" in card
    assert f"{PATIENTS} cases are too few" in card
    assert run(["bundle", "verify", str(bundle), "--no-replay"]) == 0
    opened = open_bundle(bundle)
    usual = opened.segment(folds.parent / "images/case_3.nii.gz", device="cpu").quality
    noise = np.random.default_rng(0).normal(size=(20, 18, 16)).astype(np.float32)
    odd = opened.segment(noise, affine_ras=np.diag([3.0, 3.0, 3.5, 1.0]), device="cpu").quality
    assert usual is not None
    assert odd is not None
    assert usual.distance is not None
    assert odd.distance is not None
    assert usual.distance < 2 < odd.distance
    assert odd.findings


def test_the_golden_case_holds_the_quality_model(folds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = folds.parent / "verified"
    assert run(["export", str(folds), str(bundle)]) == 0
    capsys.readouterr()

    def verified(code: int) -> str:
        got, said = run(["bundle", "verify", str(bundle), "--json"]), capsys.readouterr().out
        assert got == code, said
        return str(json.loads(said))

    assert "its quality model says the same of it" in verified(0)
    model, golden = read(bundle / QUALITY), read(bundle / "golden/golden.json")
    model["rules"] = {**model["rules"], "hold_distance": 99.0}
    (bundle / QUALITY).write_text(json.dumps(model))
    assert "changed: SHA256SUMS says" in verified(5)
    write_sums(bundle)  # with a list of hashes of its own
    assert "the quality model is not the one that was recorded with the golden case" in verified(5)
    golden["quality"] |= {"sha256": sha256_of(bundle / QUALITY), "distance": 1.01 * golden["quality"]["distance"]}
    (bundle / "golden/golden.json").write_text(json.dumps(golden))
    write_sums(bundle)
    assert "does not say of the golden case what it said" in verified(5)
    (bundle / QUALITY).unlink()
    write_sums(bundle)
    assert "was recorded with a quality model" in verified(5)


def test_a_quality_model_of_other_weights_is_refused(folds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = read(folds / RUN_QUALITY)
    document["made_by"]["models"][0] = "0" * 64
    kept = (folds / RUN_QUALITY).read_text()
    (folds / RUN_QUALITY).write_text(json.dumps(document))
    try:
        assert run(["export", str(folds), str(folds.parent / "other")]) == 5
    finally:
        (folds / RUN_QUALITY).write_text(kept)
    assert "segpipe quality fit" in capsys.readouterr().err
