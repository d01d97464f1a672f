"""The generated dataset: the manifest in the repository, patients kept together, files that repeat."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from segpipe.cli.demo.demo_data import FOLDS, demo_manifest, generate, write_data
from segpipe.common.nifti import GEOMETRY_TOLERANCE_MM, grid_difference, read_header
from segpipe.data.manifest import load_manifest
from segpipe.data.splits import find_leaks
from segpipe.errors import UsageError

SHIPPED = Path(__file__).parents[3] / "data_manifests" / "demo.json"


def test_the_shipped_manifest_is_the_generated_one() -> None:
    assert json.loads(SHIPPED.read_text()) == demo_manifest().dump()
    assert load_manifest(SHIPPED) == demo_manifest()


@pytest.mark.parametrize("cases", [8, 10, 24, 41])
def test_patients_stay_together_and_every_fold_is_used(cases: int) -> None:
    manifest = demo_manifest(cases, seed=1)
    assert len(manifest.cases()) == cases and len(manifest.test) == cases // 4
    assert find_leaks(manifest) == []
    assert manifest.folds() == list(range(FOLDS))
    scans: dict[str, int] = defaultdict(int)
    for case in manifest.training:
        scans[case.group] += 1
    assert set(scans.values()) == {1, 2}


def test_too_few_cases_are_refused() -> None:
    with pytest.raises(UsageError, match="too few cases"):
        demo_manifest(7)


def test_written_files_are_those_of_the_manifest_and_repeat(tmp_path: Path) -> None:
    manifest = demo_manifest(8, seed=3)
    seen: list[str] = []
    for name in ("one", "two"):
        path = write_data(tmp_path / name, manifest, 3, coarseness=4.0, on_case=seen.append)
        assert load_manifest(path) == manifest
    assert seen == 2 * [case.id for case in manifest.cases()]
    for case in manifest.cases():
        for file in case.paths:
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        image, label = (read_header(tmp_path / "one" / file) for file in case.paths)
        assert grid_difference(image, label, GEOMETRY_TOLERANCE_MM) is None


def test_scans_of_one_patient_show_one_anatomy_on_two_grids() -> None:
    by_patient = defaultdict(list)
    for case in demo_manifest().training:
        by_patient[case.group].append(case)
    first, second = next(cases for cases in by_patient.values() if len(cases) == 2)
    one, other = generate(first, 0, 2.0), generate(second, 0, 2.0)
    assert one.image.shape != other.image.shape or (one.image != other.image).any()
    assert (one.affine != other.affine).any()
