"""segpipe info: every fragment with its cost, the same on every machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from segpipe.cli.app import run
from segpipe.cli.info import Batch, network_facts
from segpipe.training.fragments import known_fragments, read_fragment


def printed(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> Any:
    assert run([*map(str, words), "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_all_shipped_networks_are_listed_with_what_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    document = printed(capsys, "info", "networks", "--patch", 40, 56, 40)
    rows = {row["name"]: row for row in document["networks"]}
    assert list(rows) == known_fragments("network")
    assert (document["in_channels"], document["out_channels"], document["batch_size"]) == (1, 2, 2)
    for row in rows.values():
        assert row["refused"] is None and row["seconds"] is None and row["about"]
        sizes = row["patch_size"][:2] if row["name"].endswith("_2d") else row["patch_size"]
        assert all(size % row["patch_divisor"] == 0 for size in sizes)
        assert row["weights_mb"] == pytest.approx(4e-6 * row["parameters"], rel=0.5, abs=0.1)
        assert row["step_mb"] > row["weights_mb"] + row["activations_mb"]
        assert row["relative_cost"] == pytest.approx(row["multiply_adds_g"] / rows["unet"]["multiply_adds_g"], abs=0.01)
    assert rows["unet"]["relative_cost"] == 1
    assert rows["unet_resnet34"]["patch_size"] == [64, 64, 64]
    assert 60e6 < rows["unet_resnet34"]["parameters"] < 70e6  # 63.5 million are the published encoder's
    assert [rows[name]["heads"] for name in ("unet", "unetpp", "dynunet")] == [1, 4, 3]
    assert [rows[name]["normalisation"] for name in ("unet", "segresnet")] == [["instance"], ["group"]]


def test_channels_and_patch_come_from_the_task_unless_given(
    tiny_manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("info", "networks", "--network", "unet_fine", "--task", tiny_manifest.parent / "task.yaml")
    asked = printed(capsys, *words)
    assert (asked["out_channels"], asked["patch_size"]) == (4, [16, 16, 16])
    assert [row["name"] for row in asked["networks"]] == ["unet_fine"]
    more = printed(capsys, *words, "--in-channels", 3, "--patch", 32, 16, 16, "--batch", 1)
    assert (more["in_channels"], more["out_channels"], more["patch_size"]) == (3, 4, [32, 16, 16])
    assert more["networks"][0]["parameters"] > asked["networks"][0]["parameters"]
    assert more["networks"][0]["multiply_adds_g"] < 1.1 * asked["networks"][0]["multiply_adds_g"]


def test_a_network_that_does_not_take_the_patch_is_listed_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["info", "networks", "--network", "unetpp", "--patch", "16", "16", "16"]
    row = printed(capsys, *words)["networks"][0]
    assert "spatial element" in row["refused"] and row["step_mb"] is None and row["parameters"] > 0
    assert run(words) == 0
    assert "unetpp does not take this patch" in capsys.readouterr().out


def test_a_network_of_ones_own_and_one_that_cannot_run_on_shapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {**read_fragment("network", "unet")[0], "network_name": "own"}
    own["network_def"] = {**own["network_def"], "channels": [4, 8, 16, 32]}
    path = tmp_path / "own.yaml"
    path.write_text("# Mine,\n# in two lines.\n" + yaml.safe_dump(own))
    row = printed(capsys, "info", "networks", "--network", path)["networks"][0]
    assert row["about"] == "Mine, in two lines." and row["relative_cost"] < 0.2
    faulty = tmp_path / "faulty.yaml"
    faulty.write_text(yaml.safe_dump({**own, "patch_divisor": "8"}))
    assert "patch_divisor" in printed(capsys, "info", "networks", "--network", faulty, code=2)["error"]["message"]
    monkeypatch.setattr("segpipe.training.output_shapes", lambda network, shape: None)
    row = printed(capsys, "info", "networks", "--network", path)["networks"][0]
    assert row["parameters"] > 0 and row["step_mb"] is None and row["refused"] is None


def test_timed_steps_are_those_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    facts = list(network_facts(["unet", "dynunet"], Batch(out_channels=1, patch_size=(16, 16, 16)), timed=True))
    assert all(row.seconds is not None and row.seconds > 0 for row in facts)
    assert facts[0].relative_seconds == 1
    words = ["info", "networks", "--network", "unet", "--patch", "16", "16", "16", "--time"]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "s a step" in text and "threads" in text
    assert printed(capsys, *words)["threads"] >= 1


def test_every_loss_is_listed_with_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    rows = printed(capsys, "info", "losses")["losses"]
    assert [row["name"] for row in rows] == known_fragments("loss")
    assert all(len(row["about"]) > 15 for row in rows)
    assert {"name": "tversky", "loss": "TverskyLoss"}.items() <= next(
        row for row in rows if row["name"] == "tversky"
    ).items()
    assert run(["info", "losses"]) == 0
    assert "focal_tversky" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["networks", "--network", "unett"], "did you mean 'unet"),
        (["networks", "--patch", "0", "8", "8"], "positive whole numbers"),
        (["networks", "--task", "no_such_task"], "no task fragment"),
        (["gadgets"], "gadgets"),
    ],
)
def test_what_is_not_there_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", *words]) == 2
    assert said in capsys.readouterr().err
