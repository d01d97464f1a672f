"""A declared space: what it draws, the candidate of a point, and what is refused before anything is trained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from segpipe.errors import UsageError
from segpipe.studies.space import Dimension, Space, read_space
from segpipe.training.config_checks import check_components, check_network
from segpipe.training.fragments import compose_config, configs_folder, known_fragments, read_fragment


class Draw:
    """Draws the first of everything, or the last."""

    def __init__(self, last: bool) -> None:
        self.last, self.names = last, list[str]()

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.names.append(name)
        return choices[-1 if self.last else 0]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.names.append(name)
        return high if self.last else low

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self.suggest_float(name, low, high))


@pytest.fixture
def declare(tiny_manifest: Path, tmp_path: Path) -> Any:
    def declared(text: str, overrides: tuple[str, ...] = (), **defaults: str) -> Space:
        (tmp_path / "space.yaml").write_text(text)
        base = {"task": tiny_manifest.parent / "task.yaml", "runtime": "cpu", "overrides": overrides}
        return read_space(str(tmp_path / "space.yaml"), defaults, base)

    return declared


def test_a_fragment_has_ids_of_its_own(declare: Any) -> None:
    space = declare("loss: {dice: {}, tversky: {'loss#beta': {low: 0.5, high: 0.9}}}\nbatch_size: [2, 4]\n")
    first, last = Draw(False), Draw(True)
    assert space.draw(first) == {"network": "unet", "augment": "light", "loss": "dice", "batch_size": 2}
    point = space.draw(last)
    assert (first.names, last.names) == (["loss", "batch_size"], ["loss", "tversky/loss#beta", "batch_size"])
    candidate = space.candidate(point, "trial_3")
    assert (candidate.name, candidate.loss, candidate.overrides) == ("trial_3", "tversky", ("loss#beta=0.9",))
    assert space.default == {"network": "unet", "augment": "light", "loss": "dice", "batch_size": 4}
    assert space.candidate(space.default).overrides == ()


def test_the_default_is_what_was_asked_for(declare: Any) -> None:
    text = "loss: [dice, tversky]\nlearning_rate: {low: 0.0001, high: 0.1}\nbatch_size: {low: 1, high: 8}\n"
    space = declare(text, ("learning_rate=0.03",), loss="tversky", network="basic_unet")
    assert space.default["learning_rate"] == 0.03 and space.default["loss"] == "tversky"
    assert space.default["network"] == "basic_unet" and isinstance(space.draw(Draw(True))["batch_size"], int)


def test_the_usual_space_reaches_the_config(tiny_manifest: Path) -> None:
    base = {"task": tiny_manifest.parent / "task.yaml", "runtime": "cpu"}
    space = read_space("usual", {}, base)
    for last in (False, True):
        candidate = space.candidate(space.draw(Draw(last)))
        fragments = {"task": str(base["task"]), "runtime": "cpu", "network": "unet"}
        fragments |= {"loss": candidate.loss, "augment": candidate.augment}
        config = compose_config(fragments, candidate.overrides, {"fold": (0, "--fold")}).config
        assert config["learning_rate"] == (0.01 if last else 0.0003)
        assert config["network_def"]["channels"] == ([24, 48, 96, 192] if last else [8, 16, 32, 64])
        affine = next(step for step in config["random_transforms"] if step["_target_"] == "RandAffined")
        assert affine["rotate_range"] == ([0.52] * 3 if last else [0.0] * 3)
        contrast = next(step for step in config["random_transforms"] if step["_target_"] == "RandAdjustContrastd")
        assert contrast["gamma"] == ([0.49, 2.25] if last else [1.0, 1.0])
        assert config["loss"]["alpha"] == (0.8 if last else 0.2)


@pytest.mark.parametrize("network", known_fragments("network"))
def test_the_width_of_every_network_can_be_built_or_is_refused_in_words(network: str, tiny_manifest: Path) -> None:
    base = {"task": tiny_manifest.parent / "task.yaml", "runtime": "cpu"}
    path = configs_folder() / "network" / f"{network}.yaml"
    known = set(read_fragment("network", network)[0]["network_def"]) & {
        "channels",
        "features",
        "filters",
        "init_filters",
    }
    kinds = {"network": {network: ()}, "loss": {"dice": ()}, "augment": {"none": ()}}
    space = Space(kinds, (Dimension("width", (0.5, 1.0)),), {}, base)
    point = {"network": network, "loss": "dice", "augment": "none", "width": 0.5}
    if not known:
        with pytest.raises(UsageError, match="is its width"):
            space.candidate(point)
        return
    (override,) = space.candidate(point).overrides
    assert re.fullmatch(r"network_def#\w+=\[?[\d, ]+\]?", override)
    fragments = {"task": str(base["task"]), "runtime": "cpu", "network": str(path), "loss": "dice", "augment": "none"}
    config = compose_config(fragments, ["patch_size=[32,32,32]", override], {"fold": (0, "--fold")}).config
    check_network(config)


@pytest.mark.parametrize("augment", known_fragments("augment"))
@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_the_strength_of_every_augmentation_can_be_built(augment: str, factor: float, tiny_manifest: Path) -> None:
    base = {"task": tiny_manifest.parent / "task.yaml", "runtime": "cpu"}
    kinds = {"network": {"unet": ()}, "loss": {"dice": ()}, "augment": {augment: ()}}
    space = Space(kinds, (Dimension("augmentation", (), 0.0, 2.0),), {}, base)
    candidate = space.candidate({"network": "unet", "loss": "dice", "augment": augment, "augmentation": factor})
    assert bool(candidate.overrides) == (augment != "none")
    fragments = {"task": str(base["task"]), "runtime": "cpu", "network": "unet", "loss": "dice", "augment": augment}
    config = compose_config(fragments, candidate.overrides, {"fold": (0, "--fold")}).config
    check_components(config)
    parser = ConfigParser({**config, "seed": 0})
    change = parser.get_parsed_content("train::augmentation")
    batch = {"image": torch.rand(2, 1, 16, 16, 16), "label": torch.zeros(2, 1, 16, 16, 16), "case_id": ["a", "b"]}
    assert torch.isfinite(change(batch, device=torch.device("cpu"))["image"]).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "a mapping of ids"),
        ("loss: dice", "a list of fragments"),
        ("loss: [nonsense]", "no loss fragment 'nonsense'"),
        ("learning_rat: [0.1]", "id 'learning_rat' is not known"),
        ("learning_rate: {low: 1e-4, high: 0.1}", "no range"),
        ("learning_rate: {low: 0.2, high: 0.1}", "no range"),
        ("learning_rate: {low: 0, high: 0.1, log: true}", "no range"),
        ("learning_rate: {from: 0, to: 0.1}", "cannot be read"),
        ("learning_rate: {low: 0.1, high: 0.2}", "does not hold the default"),
        ("width: [0.5, 2.0]", "does not hold the default"),
        ("width: {low: 0.0, high: 2.0}", "is a factor"),
        ("seed: [1, 2]", "seed is not searched"),
        ("loss: {dice_ce: {'loss#alfa': [0.5]}}", "is not known"),
    ],
)
def test_what_is_refused(text: str, words: str, declare: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        declare(text)


def test_small_numbers_reach_the_config_as_numbers(declare: Any) -> None:
    space = declare("learning_rate: {low: 0.00000123, high: 0.01}")
    (override,) = space.candidate(space.draw(Draw(False))).overrides
    assert yaml.safe_load(override.partition("=")[2]) == 0.00000123


@pytest.mark.parametrize("word", ["off", "null", "1_000", "2026-01-01", "~", "a, b", "a: b", "@x", "ö #1", ""])
def test_words_reach_the_config_as_words(word: str, declare: Any) -> None:
    space = replace(declare("batch_size: [4]"), dimensions=(Dimension("network_def#norm", ("instance", word)),))
    (override,) = space.candidate({**space.only, "network_def#norm": word}).overrides
    assert yaml.safe_load(override.partition("=")[2]) == word


def test_plain_words_stay_plain(declare: Any) -> None:
    space = replace(declare("batch_size: [4]"), dimensions=(Dimension("network_def#norm", ("batch",)),))
    assert space.candidate({**space.only, "network_def#norm": "batch"}).overrides == ("network_def#norm=batch",)


def test_there_is_no_such_space(tmp_path: Path) -> None:
    for name in ("unusual", str(tmp_path / "none.yaml")):
        with pytest.raises(UsageError, match=r"no (such )?space"):
            read_space(name, {}, {})
