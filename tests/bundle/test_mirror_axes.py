"""A prediction mirrors only what the training mirrored, and never labels that have a side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import segpipe
from segpipe.bundle.mirroring import judge_mirror, mirrored_in_training
from segpipe.cli.app import run
from segpipe.errors import OK, REFUSED, USAGE, RefusedError
from segpipe.inference import ModelOptions
from tiny_bundle import BRIGHT, DETERMINISTIC, write_bundle, write_scan

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "bundles/hippocampus_mri"


def bundle(
    root: Path, axes: Any = None, labels: Sequence[str] = ("background", "bright"), codes: str = "RAS", size: int = 2
) -> segpipe.Bundle:
    """A bundle whose metadata records these axes; none where ``axes`` is None."""
    turn = {"_target_": "Orientationd", "keys": "image", "axcodes": codes}
    steps = [*DETERMINISTIC[:2], turn, DETERMINISTIC[2]]
    write_bundle(root, deterministic=steps, labels=tuple(labels), network={**BRIGHT, "out_channels": size})
    place = root / "configs/metadata.json"
    metadata = json.loads(place.read_text())
    place.write_text(json.dumps(metadata if axes is None else {**metadata, "training": {"mirror_axes": axes}}))
    return segpipe.open_bundle(root)


def mirrored(one: segpipe.Bundle, axes: str, *others: segpipe.Bundle, untrained: bool = False) -> tuple[str, ...]:
    options = ModelOptions.parse(mirror=axes, mirror_untrained=untrained)
    return judge_mirror(options, (one, *others)).mirror


def refusal(one: segpipe.Bundle, axes: str, *others: segpipe.Bundle, untrained: bool = False) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        mirrored(one, axes, *others, untrained=untrained)
    return caught.value


def test_axes_that_training_mirrored_are_taken_and_others_refused(tmp_path: Path) -> None:
    one = bundle(tmp_path / "one", ["z", "x"])
    assert mirrored(one, "z") == ("z",)
    assert mirrored(one, "all") == mirrored(one, "z,x") == ("x", "z")
    error = refusal(one, "x,y")
    assert error.expected == "its training mirrored along x, z"
    assert str(error.hint).startswith("--mirror x,z; or")
    assert mirrored(one, "x,y", untrained=True) == ("x", "y")
    assert mirrored(one, "all", untrained=True) == ("x", "y", "z")


def test_a_training_without_mirrors_and_one_that_says_nothing_are_refused(tmp_path: Path) -> None:
    for name, axes, words in (
        ("none", [], "its training mirrored along no axis"),
        ("silent", None, "training.mirror_axes in configs/metadata.json"),
        ("odd", "x", "training.mirror_axes in configs/metadata.json"),
        ("odder", ["x", "w"], "training.mirror_axes in configs/metadata.json"),
    ):
        one = bundle(tmp_path / name, axes)
        for asked in ("x", "all"):
            error = refusal(one, asked)
            assert words in str(error.expected)
            assert "predict without --mirror" in str(error.hint) and "--mirror-untrained" in str(error.hint)
        assert mirrored(one, "y", untrained=True) == ("y",)
        assert one.recipe(ModelOptions()).options.mirror == ()


def test_of_an_ensemble_each_must_have_mirrored_the_axis(tmp_path: Path) -> None:
    one, other, silent = (bundle(tmp_path / f"b{n}", axes) for n, axes in enumerate((["x", "y"], ["y", "z"], None)))
    assert mirrored(one, "all", other) == ("y",)
    assert refusal(one, "x", other).expected == "its training mirrored along y"
    assert refusal(one, "y", silent).path == str(silent.root)


def test_an_axis_that_swaps_labels_with_a_side_is_refused_whatever_is_recorded(tmp_path: Path) -> None:
    sided = ("background", "Kidney_L", "Kidney_R")
    one = bundle(tmp_path / "one", ["x", "y"], sided, size=3)
    for untrained in (False, True):
        error = refusal(one, "all", untrained=untrained)
        assert "swap left and right" in error.message
        assert error.found == f"--mirror {'x,y,z' if untrained else 'x,y'}, and labels Kidney_L, Kidney_R"
        rest = str(error.hint).removeprefix("give --mirror ")
        assert mirrored(one, rest, untrained=untrained) == tuple(rest.split(","))  # the hint can be followed
    turned = bundle(tmp_path / "turned", ["x", "z"], sided, codes="SAR", size=3)
    assert mirrored(turned, "x") == ("x",)
    assert refusal(turned, "z").expected == "no mirroring along z"


def test_the_command_refuses_mirrors_and_says_in_results_what_was_risked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle(tmp_path / "bundle", ["y"])
    write_scan(tmp_path / "in" / "a.nii.gz")
    words = ["predict", str(tmp_path / "bundle"), str(tmp_path / "in"), str(tmp_path / "out")]
    assert run([*words, "--mirror", "x"]) == REFUSED
    assert "--mirror-untrained" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run([*words, "--mirror", "w"]) == USAGE
    opened = segpipe.open_bundle(tmp_path / "bundle")
    with pytest.raises(RefusedError, match="not trained on windows"):
        opened.segment(tmp_path / "in" / "a.nii.gz", runtime="torch", mirror="x")
    one = opened.segment(tmp_path / "in" / "a.nii.gz", runtime="torch", mirror=["x", "y"], mirror_untrained=True)
    assert one.notes == ("mirrored along x, which no record says of the training: labels may be lost",)
    assert opened.segment(tmp_path / "in" / "a.nii.gz", runtime="torch", mirror="all").notes == ()


@pytest.mark.slow
def test_a_batch_says_what_was_risked(tmp_path: Path) -> None:
    bundle(tmp_path / "bundle", ["y"])
    write_scan(tmp_path / "in" / "a.nii.gz")
    words = ["predict", str(tmp_path / "bundle"), str(tmp_path / "in")]
    assert run([*words, str(tmp_path / "all"), "--mirror", "all"]) == OK
    assert run([*words, str(tmp_path / "risk"), "--mirror", "x", "--mirror-untrained"]) == OK
    trained, risked = (json.loads((tmp_path / name / "a/result.json").read_text()) for name in ("all", "risk"))
    assert (trained["mirror"], trained["notes"]) == (["y"], [])
    assert risked["mirror"] == ["x"] and "mirrored along x" in risked["notes"][0]


def test_the_shipped_bundle_says_what_its_training_did() -> None:
    from segpipe.training.mirroring import mirrored_in_training as by_probe

    shipped = segpipe.open_bundle(SHIPPED)
    assert mirrored_in_training(shipped.metadata) == ("x",)
    assert by_probe(json.loads((SHIPPED / "configs/train.json").read_text())) == ["x"]
    assert mirrored(shipped, "all") == ("x",)
    assert refusal(shipped, "x,y,z").expected == "its training mirrored along x"
