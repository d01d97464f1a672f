"""The rules of planning, the fragment that they write, and the command."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.cli.app import run
from segpipe.data.fingerprint import Fingerprint, Intensity
from segpipe.data.manifest import Case, Manifest, load_manifest, save_manifest
from segpipe.data.phantom import write_nifti
from segpipe.errors import DataError, UsageError
from segpipe.inference.transforms import Preprocessing
from segpipe.training import planning
from segpipe.training.fragments import OWNED, configs_folder, known_fragments, read_fragment
from segpipe.training.memory_rules import memory_rules, needs_of, parse_memory, too_large
from segpipe.training.planning import apply_rules
from segpipe.training.planning_rules import (
    LARGEST_PATCH,
    MEASURED,
    depth,
    epoch_time,
    intensity,
    patch_size,
    profile_of,
    resampled_shape,
    target_spacing,
)
from tiny_fingerprint import made_fingerprint

GB = 10**9
UNET = profile_of("unet", 8)


def manifest_for(fingerprint: Fingerprint, name: str = "Made Up, 1") -> Manifest:
    cases = [Case(id=case.id, image=f"{case.id}.nii", label=f"{case.id}_l.nii") for case in fingerprint.cases]
    modality = {str(index): name for index, name in enumerate(fingerprint.modality)}
    return Manifest(name=name, modality=modality, labels={"0": "background", "1": "no"}, training=cases)


def test_spacing_is_the_median_per_axis() -> None:
    grids = [((50, 50, 50), (1.0, 2.0, 0.5)), ((50, 50, 50), (1.2, 2.0, 0.5)), ((50, 50, 50), (9.0, 2.1, 0.6))]
    assert target_spacing(made_fingerprint(*grids)).value == [1.2, 2.0, 0.5]


def test_spacing_of_thick_slices_is_the_10th_percentile() -> None:
    thick = [((512, 512, 40), (0.8, 0.8, size)) for size in np.linspace(2.5, 7.5, 11)]
    assert target_spacing(made_fingerprint(*thick)).value == pytest.approx([0.8, 0.8, 3.0])
    many_slices = [((512, 512, 400), (0.8, 0.8, size)) for size in np.linspace(2.5, 7.5, 11)]
    assert target_spacing(made_fingerprint(*many_slices)).value == pytest.approx([0.8, 0.8, 5.0])


def test_spacing_of_thick_slices_stays_above_the_plane() -> None:
    grids = [((512, 512, 40), (1.0, 1.0, 0.5))] * 2 + [((512, 512, 40), (1.0, 1.0, 5.0))] * 9
    assert target_spacing(made_fingerprint(*grids)).value == [1.0, 1.0, 1.0]


def test_axes_are_turned_before_they_are_compared() -> None:
    sagittal = made_fingerprint(((30, 300, 200), (4.0, 0.9, 0.8)), orientation="LPS")
    turned = made_fingerprint(((200, 30, 300), (0.8, 4.0, 0.9)), orientation="SRA")
    assert target_spacing(sagittal).value == target_spacing(turned).value == [4.0, 0.9, 0.8]
    assert resampled_shape(turned, [4.0, 0.9, 0.8]) == (30, 300, 200)


def test_ct_is_clipped_and_scored_as_nnunet_does() -> None:
    inside = Intensity(mean=80, std=40, percentiles=(-20, 0, 80, 150, 220))
    rule = intensity(made_fingerprint(((50, 50, 50), (1, 1, 1)), modality="CT", foreground=inside))
    values = np.linspace(-1000, 1000, 41)
    expected = (np.clip(values, -20, 220) - 80) / 40
    given_by = rule.value
    slope = (given_by["b_max"] - given_by["b_min"]) / (given_by["a_max"] - given_by["a_min"])
    scaled = np.clip((values - given_by["a_min"]) * slope + given_by["b_min"], given_by["b_min"], given_by["b_max"])
    assert given_by["_target_"] == "ScaleIntensityRanged"
    assert scaled == pytest.approx(expected)


@pytest.mark.parametrize("inside", [None, Intensity(mean=7, std=0, percentiles=(7, 7, 7, 7, 7))])
def test_ct_without_a_foreground_to_scale_by(inside: Intensity | None) -> None:
    with pytest.raises(DataError, match="no intensities to scale by"):
        intensity(made_fingerprint(((50, 50, 50), (1, 1, 1)), modality="CT", foreground=inside))


def test_ct_beside_pet_is_scaled_as_ct_and_pet_by_case() -> None:
    inside = Intensity(mean=80, std=40, percentiles=(-20, 0, 80, 150, 220))
    alone = intensity(made_fingerprint(((50, 50, 50), (1, 1, 1)), modality="CT", foreground=inside)).value
    split, of_ct, of_others, joined, dropped = intensity(two_channels("CT", "PET", inside)).value
    assert of_ct == {**alone, "keys": ["image_0"]}
    assert (of_others["_target_"], of_others["keys"]) == ("NormalizeIntensityd", ["image_1"])
    assert (split["keys"], joined["keys"], dropped["keys"]) == (["image"], *[["image_0", "image_1"]] * 2)
    Preprocessing.parse([split, of_ct, of_others, joined, dropped])
    swapped = intensity(two_channels("T2", "CT", inside)).value
    assert [step["keys"] for step in swapped[1:3]] == [["image_1"], ["image_0"]]
    assert intensity(two_channels("T1", "PET", inside)).value["_target_"] == "NormalizeIntensityd"
    with pytest.raises(DataError, match="no intensities to scale by"):
        intensity(two_channels("CT", "PET", None))


def two_channels(first: str, second: str, foreground: Intensity | None) -> Fingerprint:
    """Return a fingerprint of two channels that are alike."""
    single = made_fingerprint(((50, 50, 50), (1, 1, 1)), foreground=foreground)
    cases = [case.model_copy(update={"channels": case.channels * 2}) for case in single.cases]
    summary = single.summary.model_copy(update={"foreground": [foreground, foreground]})
    return single.model_copy(update={"modality": [first, second], "cases": cases, "summary": summary})


@pytest.mark.parametrize(("nonzero", "masked"), [(1.0, False), (0.8, False), (0.6, True)])
def test_mr_is_scored_by_case(nonzero: float, masked: bool) -> None:
    rule = intensity(made_fingerprint(((50, 50, 50), (1, 1, 1)), nonzero=nonzero))
    assert rule.value["_target_"] == "NormalizeIntensityd"
    assert (rule.value["nonzero"], rule.value["channel_wise"]) == (masked, True)


def test_a_small_image_is_taken_whole() -> None:
    assert patch_size((35, 50, 36), UNET, 8 * GB).value == [40, 56, 40]
    assert patch_size((35, 50, 9), UNET, 8 * GB).value == [40, 56, 16]


def test_a_large_image_keeps_its_proportions() -> None:
    patch = patch_size((512, 512, 128), UNET, 8 * GB).value
    assert math.prod(patch) <= LARGEST_PATCH
    assert patch[0] == pytest.approx(patch[1], abs=8)
    assert patch[0] / patch[2] == pytest.approx(4, rel=0.15)


def test_too_little_memory_says_how_much_is_needed() -> None:
    with pytest.raises(UsageError, match="does not hold a training step") as caught:
        patch_size((100, 100, 100), UNET, 1_000_000)
    assert caught.value.expected == "at least 0.0041 GB"


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[st.integers(1, 700)] * 3), st.sampled_from(sorted(MEASURED)), st.integers(50_000_000, 50 * GB))
def test_patches_fit_the_network_and_the_memory(shape: tuple[int, int, int], name: str, memory: int) -> None:
    cost = profile_of(name, 8)
    patch = patch_size(shape, cost, memory).value
    assert all(size % cost.divisor == 0 and size >= 2 * cost.divisor for size in patch)
    assert 2 * math.prod(patch) * cost.bytes_per_voxel <= memory
    assert math.prod(patch) <= LARGEST_PATCH


def test_depth_of_the_literature() -> None:
    hippocampus = depth([40, 56, 40], [1.0, 1.0, 1.0]).value
    assert hippocampus == {"channels": [16, 32, 64, 128], "strides": [[2, 2, 2]] * 3}
    prostate = depth([256, 320, 20], [0.6, 0.6, 3.6]).value  # nnU-Net: first in the plane only
    assert prostate["strides"][:3] == [[2, 2, 1], [2, 2, 1], [2, 2, 2]]
    assert prostate["channels"][:3] == [16, 32, 64]


def test_cases_that_memory_does_not_hold_are_kept_on_disk_where_that_does() -> None:
    grids = [((512, 512, 200), (0.8, 0.8, 2.5)), ((2, 2, 2), (1, 1, 1)), ((256, 256, 400), (0.8, 0.8, 2.5))]
    needs = needs_of(grids, [0.8, 0.8, 1.25], channels=1, scores=3, step=10**9, threads=2)
    voxels = [512 * 512 * 400, 4 * 4 * 2, 256 * 256 * 800]  # by hand; 1 mm are more than 0.8 mm
    voxels[1] = 3 * 3 * 2
    largest = voxels[0]
    assert needs.cases == 8 * sum(voxels) + 13 * largest
    assert needs.validation == (8 + 24 + 12) * largest and needs.disk == int(2.25 * sum(voxels))
    assert needs.in_memory == 700_000_000 + needs.cases + max(2 * 28 * largest, 10**9 + needs.validation)
    assert needs.from_store == 700_000_000 + max(28 * largest, 10**9 + needs.validation)

    def decided(free: float, disk: float | None) -> tuple[float, str | None]:
        by_name = {rule.name: rule.value for rule in memory_rules(needs, int(free), disk)}
        return by_name["cache_rate"], by_name["store"]

    enough = needs.in_memory / 0.8 + 1
    assert decided(enough, 0) == (1.0, None)
    half = (needs.in_memory - needs.cases / 2) / 0.8 + 1
    assert decided(half, needs.disk) == (0.5, "default") == decided(half, None)
    assert decided(half, needs.disk - 1) == (0.5, None)
    assert decided(GB, needs.disk) == (0.0, "default")
    assert too_large(needs, needs.from_store) is None and "the largest case alone" in str(too_large(needs, GB))


def test_a_case_that_is_cut_is_kept_and_validated_as_it_is_then_and_prepared_whole() -> None:
    grids = [((100, 90, 80), (1.0, 1.0, 2.0)), ((60, 60, 60), (1.0, 1.0, 2.0))]
    given = {"spacing_mm": [1.0, 1.0, 1.0], "channels": 1, "scores": 3, "step": 0, "threads": 1}
    whole = needs_of(grids, **given)
    cut = needs_of(grids, **given, boxes_mm=[(40.0, 50.5, 60.0), (60.0, 60.0, 120.0)])
    kept = [44 * 55 * 64, 60 * 60 * 120]  # by hand: two voxels around, and never more than there is
    assert cut.cases == 8 * sum(kept) + 13 * max(kept)
    assert cut.validation == (8 + 24 + 12) * max(kept) and cut.disk == int(2.25 * sum(kept))
    assert cut.preparing == whole.preparing == 28 * 100 * 90 * 160 and cut.cases < whole.cases


def test_several_processes_have_a_batch_and_memory_of_their_own(tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    words = ["plan", str(tiny_manifest), "-o", str(tmp_path / "task.yaml"), "--overwrite"]
    assert run([*words, "--processes", "4", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["found"] == "3 cases, 4 processes"
    assert run([*words, *error["hint"].split(), "--json"]) == 0  # as it says
    planned = json.loads(capsys.readouterr().out)
    settings, rules = planned["settings"], {rule["name"]: rule for rule in planned["rules"]}
    assert settings["processes"] == 3 and settings["batch_size"] % 3 == 0
    each = rules["memory_gb"]["value"]["memory"]
    assert f"{each:.2g} GB each, " in rules["processes"]["why"]
    total = float(rules["processes"]["why"].partition(" GB each, ")[2].partition(" GB")[0])
    assert total == pytest.approx(3 * each, rel=0.05)
    assert run([*planned["next"].split()[1:], "--explain", "--json"]) == 0  # as printed
    config = json.loads(capsys.readouterr().out)["config"]
    assert (config["processes"], config["batch_size"]) == (3, settings["batch_size"])
    assert run([*words, "--processes", "2", "--budget", "1m"]) == 2
    assert "--budget measures one process" in capsys.readouterr().err


def test_memory_of_many_processes_is_said_as_that_of_one() -> None:
    large = made_fingerprint(*[((512, 512, 300), (0.8, 0.8, 1.0))] * 40)
    why = apply_rules(large, manifest_for(large), UNET, 2 * GB, 4 * GB, 2, processes=64).rules["processes"].why
    each, total = re.findall(r"([\d.,]+) GB", why)
    assert float(total) == pytest.approx(64 * float(each), rel=0.05)


def test_the_choice_between_memory_and_disk_stands_in_the_runtime_fragment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "free_on_disk", lambda place: 10**12)
    many = made_fingerprint(*[((512, 512, 300), (0.8, 0.8, 1.0))] * 40)
    fragments = {}
    for gigabytes in (12, 1000):
        plan = apply_rules(many, manifest_for(many), UNET, 2 * GB, gigabytes * GB, 2)
        fragments[gigabytes] = yaml.safe_load(plan.runtime_text)
        assert plan.rules["memory_gb"].value["cases"] == 26  # 40 cases of 79 million voxels, 8 bytes, and a copy
        assert "kept on disk" in plan.runtime_text if gigabytes == 12 else "memory holds the cases" in plan.runtime_text
    assert fragments[12]["store"] == "default" and fragments[12]["cache_rate"] < 1
    assert fragments[1000]["store"] is None and fragments[1000]["cache_rate"] == 1


def test_measured_networks_are_shipped_and_others_are_taken_for_costly() -> None:
    assert set(MEASURED) == set(known_fragments("network"))
    own = profile_of("my/unet.yaml", 32)
    assert own.divisor == 32 and not own.measured
    assert own.bytes_per_voxel >= max(needed for needed, _ in MEASURED.values())
    rule = patch_size((35, 50, 36), own, 8 * GB)
    assert rule.value == [64, 64, 64] and "assumed" in rule.why
    assert "assumed" in epoch_time(10, [64, 64, 64], 2, own, 2).source


@pytest.mark.parametrize("divisor", [0, -8, 8.0, "8", True, None])
def test_a_divisor_that_divides_nothing(divisor: object) -> None:
    with pytest.raises(UsageError, match="patch_divisor"):
        profile_of("unet", divisor)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.tuples(*[st.integers(8, 600)] * 3), st.tuples(*[st.floats(0.2, 10)] * 3)), min_size=1, max_size=5
    ),
    st.sampled_from(["MRI", "CT", "PET: weird # name"]),
)
def test_any_fragment_is_its_plan_in_yaml_and_in_the_closed_list(grids, modality: str) -> None:
    inside = Intensity(mean=80, std=40, percentiles=(-20, 0, 80, 150, 220))
    fingerprint = made_fingerprint(*grids, modality=modality, foreground=inside)
    plan = apply_rules(fingerprint, manifest_for(fingerprint), UNET, 8 * GB, GB, 2)
    assert yaml.safe_load(plan.text) == plan.task
    assert tuple(plan.task) == OWNED["task"]
    assert plan.task["task_name"] == "made_up_1"
    assert plan.task["labels"] == ["background", "no"]
    assert Preprocessing.parse(plan.task["deterministic_transforms"])
    assert set(plan.settings) <= set(OWNED["runtime"])
    assert 2 <= plan.settings["batch_size"] <= 4
    assert 0 <= plan.settings["cache_rate"] <= 1 and plan.settings["store"] in (None, "default")
    assert all(rule.why and rule.source for rule in plan.rules.values())


@pytest.mark.parametrize(("text", "expected"), [("8G", 8e9), ("600 M", 6e8), ("1.5gb", 1.5e9), ("2000", 2000)])
def test_amounts_of_memory(text: str, expected: float) -> None:
    assert parse_memory(text) == expected


@pytest.fixture
def manifest_path(tmp_path: Path) -> Path:
    cases = []
    for index in range(3):
        rng = np.random.default_rng(index)
        label = np.zeros((20, 24, 18), np.uint8)
        label[5:9, 5:12, 4:9] = 1
        write_nifti(tmp_path / f"i{index}.nii.gz", rng.normal(9, 2, label.shape).astype(np.float32), np.eye(4))
        write_nifti(tmp_path / f"l{index}.nii.gz", label, np.eye(4))
        cases.append(Case(id=f"c{index}", image=f"i{index}.nii.gz", label=f"l{index}.nii.gz", fold=index))
    labels = {"0": "background", "1": "organ"}
    save_manifest(Manifest(name="tiny", modality={"0": "MRI"}, labels=labels, training=cases), tmp_path / "m.json")
    return tmp_path / "m.json"


def test_command(manifest_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = manifest_path.parent / "out" / "task.yaml"
    assert run(["plan", str(manifest_path), "-o", str(output)]) == 0
    seen = capsys.readouterr()
    assert seen.err == ""
    assert "nnU-Net" in seen.out
    runtime = output.parent / "task.runtime.yaml"
    assert f"--task {output} --network unet --loss dice_ce --runtime {runtime} --fold 0" in seen.out.replace("\n", " ")
    assert read_fragment("runtime", str(runtime))[0]["batch_size"] == 2
    fragment = yaml.safe_load(output.read_text())
    assert fragment["patch_size"] == [24, 24, 24]
    assert json.loads((output.parent / "task.fingerprint.json").read_text())["summary"]["cases"] == 3
    assert run(["plan", str(manifest_path), "-o", str(output)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(["plan", str(manifest_path), "-o", str(output), "--overwrite", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema_version"], document["command"]) == (1, "plan")
    assert document["settings"]["overlap"] == 0.5
    assert {"rule", "name"} & set(document["rules"][0])
    assert document["next"].startswith("segpipe train ")


def test_a_manifest_without_folds_is_to_be_split_first(manifest_path: Path, capsys) -> None:
    manifest = load_manifest(manifest_path)
    cases = [case.model_copy(update={"fold": None}) for case in manifest.training]
    save_manifest(manifest.model_copy(update={"training": cases}), manifest_path)
    assert run(["plan", str(manifest_path), "-o", str(manifest_path.parent / "t.yaml"), "--json"]) == 0
    seen = capsys.readouterr()
    assert "not split yet" in seen.err
    assert json.loads(seen.out)["next"] == f"segpipe split {manifest_path}"


def test_a_network_of_ones_own_tells_its_divisor(manifest_path: Path, capsys) -> None:
    own = manifest_path.parent / "own.yaml"
    fragment = (configs_folder() / "network" / "unet.yaml").read_text()
    own.write_text(fragment.replace("patch_divisor: 8", "patch_divisor: 32"))
    task = manifest_path.parent / "own_task.yaml"
    assert run(["plan", str(manifest_path), "-o", str(task), "--network", str(own), "--json"]) == 0
    assert all(size % 32 == 0 for size in yaml.safe_load(task.read_text())["patch_size"])
    assert f"--network {own}" in json.loads(capsys.readouterr().out)["next"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--memory", "plenty"], 2, "not an amount of memory"),
        (["--memory", "9" * 400 + "G"], 2, "not an amount of memory"),
        (["--network", "vnet"], 2, "no network fragment 'vnet'"),
        (["--budget", "soon"], 2, "not a budget of time"),
        (["--budget", "2h30"], 2, "not a budget of time"),
        (["--device", "tpu"], 2, "no such device"),
        (["--folds", "3"], 2, "--folds shares a budget"),
        (["--data", "nowhere"], 2, "no such data folder"),
        (["-o", "m.json/task.yaml"], 2, "cannot write the output"),
    ],
)
def test_command_errors(manifest_path: Path, capsys, monkeypatch, arguments, code: int, words: str) -> None:
    monkeypatch.chdir(manifest_path.parent)
    assert run(["plan", "m.json", *arguments]) == code
    assert words in capsys.readouterr().err
    assert not (manifest_path.parent / "task.yaml").exists()


def test_command_names_the_bad_case(manifest_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (manifest_path.parent / "i1.nii.gz").write_bytes(b"not a volume")
    assert run(["plan", str(manifest_path), "-o", str(manifest_path.parent / "t.yaml"), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["case_id"] == "c1"


@pytest.mark.realdata
def test_the_shipped_fragment_is_what_the_real_data_plans(tmp_path: Path) -> None:
    root = os.environ["SEGPIPE_DATA"]
    shipped = configs_folder()
    manifest = shipped.parent / "data_manifests" / "msd_task04_hippocampus.json"
    assert load_manifest(manifest).name == "Hippocampus"
    task = tmp_path / "hippocampus.yaml"
    folder = Path(root) / "Task04_Hippocampus"
    assert run(["plan", str(manifest), "--data", str(folder), "-o", str(task)]) == 0
    assert task.read_text() == (shipped / "task" / "hippocampus.yaml").read_text()
