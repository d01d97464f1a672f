"""Whether a plan proposes two stages, and the grid that it plans for the first."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from segpipe.cli.app import run
from segpipe.data import import_first_stage
from segpipe.errors import RefusedError, UsageError
from segpipe.training import plan
from segpipe.training.first_stage_rules import first_stage_spacing, seen_share
from segpipe.training.planning_rules import LARGEST_PATCH, patch_size, profile_of, resampled_shape, target_spacing
from tiny_data import write_data
from tiny_fingerprint import Triple, made_fingerprint
from tiny_stages import write_first_stage

UNET = profile_of("unet", 8)


def test_the_share_of_the_box_is_that_of_its_sides() -> None:
    made = made_fingerprint(((512, 512, 200), (0.8, 0.8, 1.5)), box=(256.0, 128.0, 192.0))
    assert seen_share(made, [0.8, 0.8, 1.5], [160, 160, 64]) == pytest.approx(0.5 * 1 * 0.5)
    assert seen_share(made_fingerprint(((8, 8, 8), (1, 1, 1))), [1, 1, 1], [8, 8, 8]) == 1


@pytest.mark.parametrize("box", [(200.0, 150.0, 180.0), (390.0, 300.0, 280.0), (40.0, 40.0, 30.0)])
def test_a_first_stage_sees_the_whole_box_on_the_finest_such_grid(box: Triple) -> None:
    made = made_fingerprint(((512, 512, 200), (0.8, 0.8, 1.5)), box=box)
    own = target_spacing(made)

    def patch_at(edges: list[float]) -> list[int]:
        return list(patch_size(resampled_shape(made, edges), UNET, 10**10).value)

    found = first_stage_spacing(made, own, patch_at).value
    assert math.prod(patch_at(found)) <= LARGEST_PATCH
    assert seen_share(made, found, patch_at(found)) == 1
    if found == own.value:
        assert box == (40.0, 40.0, 30.0)
    else:
        finer = [max(edge, value / 1.1) for edge, value in zip(own.value, found, strict=True)]
        assert seen_share(made, finer, patch_at(finer)) < 1
        assert max(found) / min(found) < 1.9  # never farther from a cube than the data set's own


def test_a_plan_proposes_a_first_stage_where_a_patch_sees_little_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_data(tmp_path / "data", cases=2)
    proposes = "`segpipe plan --first-stage`"
    assert not any(proposes in note for note in plan(path).notes)
    monkeypatch.setattr("segpipe.training.first_stage_rules.SEEN_SHARE", 2.0)  # so that nothing is enough
    assert any(proposes in note for note in plan(path).notes)
    second = import_first_stage(path, write_first_stage(path, tmp_path / "run")).path
    assert not any(proposes in note for note in plan(second).notes)
    words = ["plan", str(path), "--first-stage", "-o", str(tmp_path / "coarse.yaml"), "--json"]
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out)["next"].endswith("--folds all --out runs/first_stage")
    assert yaml.safe_load((tmp_path / "coarse.yaml").read_text())["in_channels"] == 1


def test_a_first_stage_has_no_budget(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without a budget"):
        plan(write_data(tmp_path / "data", cases=2), first_stage=True, budget="1h")


def test_a_patch_that_never_sees_the_whole_box_is_refused() -> None:
    made = made_fingerprint(((512, 512, 200), (0.8, 0.8, 1.5)), box=(390.0, 300.0, 280.0))
    with pytest.raises(UsageError, match="no grid shows one patch all") as caught:
        first_stage_spacing(made, target_spacing(made), lambda edges: [8, 8, 1])
    assert "[8, 8, 1]" in (caught.value.found or "")


def test_a_network_of_slices_is_no_first_stage(tmp_path: Path) -> None:
    path = write_data(tmp_path / "data", cases=2)
    with pytest.raises(UsageError, match="network of slices") as caught:
        plan(path, network="unet_2d", first_stage=True)
    assert caught.value.hint == "plan it with --network unet"
    assert plan(path, network="unet", first_stage=True).task["patch_size"]


@pytest.mark.parametrize("what", ["regions", "a second stage"])
def test_a_manifest_whose_label_maps_could_not_be_imported_is_refused_before_the_training(
    tmp_path: Path, what: str
) -> None:
    path = write_data(tmp_path / "data", cases=2)
    document = json.loads(path.read_text())
    if what == "regions":
        document |= {"schema_version": 2, "regions": {"all": [1, 2], "lesion": [3]}}
        path.write_text(json.dumps(document))
    else:
        path = import_first_stage(path, write_first_stage(path, tmp_path / "run")).path
    with pytest.raises(RefusedError, match="one label map, and no stage before it") as caught:
        plan(path, first_stage=True)
    assert caught.value.path == str(path)
