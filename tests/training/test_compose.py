"""Composing: mistakes are refused with the nearest known word, and every value knows where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from segpipe.cli.app import run
from segpipe.errors import UsageError
from segpipe.training.config_checks import Settings, check_components
from segpipe.training.fragments import OWNED, compose_config, configs_folder, known_fragments
from tiny_data import TASK

NAMES = {"network": "unet", "loss": "dice_ce", "augment": "light", "runtime": "cpu"}


@pytest.fixture
def fragments(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "task.yaml").write_text(TASK)
    return {**NAMES, "task": str(tmp_path / "task.yaml")}


def refusal(*arguments, **named) -> UsageError:
    with pytest.raises(UsageError) as caught:
        compose_config(*arguments, **named)
    return caught.value


def test_every_shipped_fragment_composes_and_its_arguments_are_known(fragments) -> None:
    for kind in ("network", "loss", "augment", "runtime"):
        for name in known_fragments(kind):
            check_components(compose_config({**fragments, kind: name}).config)
    for name in known_fragments("task"):
        check_components(compose_config({**fragments, "task": name}).config)


def test_kinds_own_disjoint_ids_and_the_skeleton_fills_none_of_them() -> None:
    ids = [name for owned in OWNED.values() for name in owned]
    assert len(ids) == len(set(ids))
    skeleton = yaml.safe_load((configs_folder() / "train.yaml").read_text())
    assert not set(ids) & set(skeleton)
    assert set(Settings.model_fields) <= set(ids) | set(skeleton)


def test_stock_merge_of_the_files_gives_the_same_config(fragments) -> None:
    from monai.bundle import ConfigParser

    files = [str(configs_folder() / "train.yaml"), fragments["task"]]
    files += [str(configs_folder() / kind / f"{name}.yaml") for kind, name in NAMES.items()]
    assert ConfigParser.load_config_files(files) == compose_config(fragments).config


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("max_epoch=3", "max_epochs"),
        ("learningrate=0.1", "learning_rate"),
        ("network_def#chanels=[4,8]", "channels"),
        ("train::trainr=1", "trainer"),
        ("loss::gama=1", None),
        ("random_transforms#99=1", None),
    ],
)
def test_an_unknown_id_is_refused_with_the_nearest(fragments, override: str, word: str | None) -> None:
    error = refusal(fragments, [override])
    assert "not known" in error.message
    assert word is None or word in (error.hint or "")


@pytest.mark.parametrize(
    "override",
    [
        "max_epochs=ten",
        "max_epochs=0",
        "max_epochs=1.5",
        "learning_rate=-1",
        "cache_rate=2",
        "patch_size=[16,16]",
        "precision=half",
        "keep_weights=first",
        "steps_per_epoch=-1",
        "channels_last=maybe",
        "overlap=1.0",
        "batch_size=[2]",
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(fragments, override: str) -> None:
    error = refusal(fragments, [override])
    assert override.split("=")[0] in error.message
    assert error.found


def test_numbers_as_people_write_them(fragments) -> None:
    made = compose_config(fragments, ["learning_rate=1e-3", "max_gradient_norm=5"])
    assert made.config["learning_rate"] == 0.001
    assert made.config["max_gradient_norm"] == 5.0


def test_a_mistyped_argument_or_target_is_refused(fragments) -> None:
    made = compose_config(fragments)
    made.config["loss"]["alfa"] = 0.3
    with pytest.raises(UsageError, match="alfa") as caught:
        check_components(made.config)
    assert "alpha" in (caught.value.hint or "")
    made.config["loss"] = {"_target_": "segpipe.components.DiceLos"}
    with pytest.raises(UsageError, match="no component"):
        check_components(made.config)


def test_an_argument_that_the_target_has_may_be_added(fragments) -> None:
    made = compose_config(fragments, ["network_def#dropout=0.1"])
    assert made.config["network_def"]["dropout"] == 0.1
    assert made.origins["network_def#dropout"] == "--set"


def test_a_reference_that_leads_nowhere_is_refused(fragments) -> None:
    error = refusal(fragments, ["sw_batch_size='@batch_siz'"])
    assert "batch_siz" in error.message
    assert "batch_size" in (error.hint or "")


def test_fragments_may_only_hold_their_own_ids(fragments, tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text("network_name: x\npatch_divisor: 8\nnetwork_def: {}\nbatch_size: 3\n")
    assert "runtime" in (refusal({**fragments, "network": str(tmp_path / "net.yaml")}).hint or "")
    (tmp_path / "net.yaml").write_text("network_name: x\npatch_divisr: 8\n")
    assert "patch_divisor" in (refusal({**fragments, "network": str(tmp_path / "net.yaml")}).hint or "")
    (tmp_path / "net.yaml").write_text("network_name: x\n")
    lacking = refusal({**fragments, "network": str(tmp_path / "net.yaml")}).message
    assert lacking == "the network fragment lacks network_def, patch_divisor"
    (tmp_path / "net.yaml").write_text("- 1\n")
    assert "mapping" in refusal({**fragments, "network": str(tmp_path / "net.yaml")}).message
    assert "unet" in (refusal({**fragments, "network": "unett"}).hint or "")
    assert "no such" in refusal({**fragments, "network": str(tmp_path / "none.yaml")}).message


def test_sense_of_the_whole(fragments) -> None:
    assert "out_channels" in refusal(fragments, ["out_channels=3"]).message
    assert "in_channels" in refusal(fragments, ["in_channels=2"]).message
    made = compose_config(fragments, ["patch_size=[20,24,17]"])
    assert made.config["patch_size"] == [24, 24, 24]
    assert "padded" in made.notes[0]


def test_mirroring_is_refused_where_labels_have_sides(fragments, tmp_path: Path) -> None:
    sided = TASK.replace("liver", "kidney_left").replace("[background, ", "[background, ")
    (tmp_path / "sided.yaml").write_text(sided)
    chosen = {**fragments, "task": str(tmp_path / "sided.yaml")}
    compose_config(chosen)
    assert "mirroring" in refusal({**chosen, "augment": "mirror"}).message


def test_explain_names_the_origin_of_every_id(fragments) -> None:
    made = compose_config(fragments, ["batch_size=3"], {"max_epochs": (7, "--epochs")})
    assert set(made.origins) == set(made.config)
    assert made.origins["batch_size"] == "--set"
    assert made.origins["max_epochs"] == "--epochs"
    assert made.origins["network_def"] == "network/unet.yaml"
    assert made.origins["patch_size"] == "task.yaml"


def test_the_command_explains_and_saves_the_config(tiny_manifest: Path, tmp_path: Path, capsys) -> None:
    arguments = ["train", str(tiny_manifest), "--task", str(tiny_manifest.parent / "task.yaml"), "--explain"]
    assert run([*arguments, "--save-config", str(tmp_path / "config.json")]) == 0
    said = capsys.readouterr().out
    assert "network/unet.yaml" in said
    assert f"wrote {tmp_path / 'config.json'}" in said
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["loss_name"] == "dice_ce"
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["origins"]["loss"] == "loss/dice_ce.yaml"
    assert document["config"] == config
    assert run([*arguments, "--set", "max_epoch=1"]) == 2
    assert "did you mean 'max_epochs'" in capsys.readouterr().err
    assert run([*arguments[:-1], "--save-config", str(tmp_path / "c.json")]) == 2
    assert "--explain" in capsys.readouterr().err


def with_task(fragments, tmp_path: Path, **ids: Any) -> dict[str, str]:
    task = tmp_path / "changed.yaml"
    task.write_text(yaml.safe_dump({**yaml.safe_load(Path(fragments["task"]).read_text()), **ids}, sort_keys=False))
    return {**fragments, "task": str(task)}


def test_patches_are_drawn_about_voxels_that_are_annotated(fragments, tmp_path: Path) -> None:
    composed = compose_config(with_task(fragments, tmp_path, ignore_label=255))
    names = [step["_target_"] for step in composed.config["random_transforms"]]
    crop = names.index("RandCropByPosNegLabeld")
    assert names[crop - 1 : crop + 2 : 2] == ["segpipe.components.AnnotatedToIndicesd", "DeleteItemsd"]
    assert composed.config["random_transforms"][crop]["fg_indices_key"] == "label_fg_indices"
    assert "not 255" in composed.origins["random_transforms"]
    check_components(composed.config)
    plain = compose_config(fragments).config["random_transforms"]
    assert [step for step in composed.config["random_transforms"] if step in plain] == [
        step for step in plain if step["_target_"] != "RandCropByPosNegLabeld"
    ]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ({"ignore_label": 3}, "the value of a label"),
        ({"regions": {"all": [1, 2, 3]}}, "softmax excludes"),
        ({"regions": {"all": [1, 2, 4]}, "activation": "sigmoid", "out_channels": 1}, "no label"),
        ({"regions": {"all": [1, 2, 3]}, "activation": "sigmoid"}, "out_channels does not fit"),
        ({"annotated_sets": [[0]]}, "no label"),
        ({"regions": {str(n): [1] for n in range(9)}, "activation": "sigmoid", "out_channels": 9}, "too many regions"),
    ],
)
def test_what_labels_cannot_mean_is_refused(fragments, tmp_path: Path, ids: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compose_config(with_task(fragments, tmp_path, **ids))
