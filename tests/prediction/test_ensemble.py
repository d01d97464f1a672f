"""Several bundles as one model and mirrored windows give what MONAI's own transforms make of the single scores."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from monai.data import decollate_batch
from monai.data.utils import list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd, MeanEnsembled

from segpipe.bundle import Bundle, LoadedBundle, open_bundle, segmentation
from segpipe.cli.app import run
from segpipe.common.result_folder import PROBABILITIES, RESULT, SEGMENTATION, SUMMARY_JSON
from segpipe.errors import OK, REFUSED, USAGE, UsageError
from segpipe.inference.recipe import ModelOptions, parse_mirror
from segpipe.inference.transforms import Preprocessing, build_step
from segpipe.quality import Assessment
from tiny_bundle import DETERMINISTIC, write_bundle, write_scan

pytestmark = pytest.mark.usefixtures("one_worker")
SCHEMA = Path(__file__).parents[2] / "docs/schemas/summary.schema.json"
NETWORK = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 3, "padding": 1}
STEPS = [
    *DETERMINISTIC[:2],
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": [2.2, 2.2, 2.5]},
    {"_target_": "NormalizeIntensityd", "keys": "image"},
    DETERMINISTIC[2],
]


def network(seed: int) -> torch.nn.Conv3d:
    torch.manual_seed(seed)
    return torch.nn.Conv3d(1, 3, 3, padding=1)


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("folds")
    return [
        write_bundle(
            root / f"fold{seed}",
            network=NETWORK,
            state=network(seed).state_dict(),
            deterministic=STEPS,
            labels=("background", "a", "b"),
        )
        for seed in range(2)
    ]


class Turned(torch.nn.Module):
    def __init__(self, net: torch.nn.Module, dims: list[int]) -> None:
        super().__init__()
        self.net, self.dims = net, dims

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.net(windows.flip(self.dims)).flip(self.dims)


def by_monai(scan: Path, seeds: list[int], axes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities: mean of scores, softmax, Invertd, argmax."""
    before = Compose([build_step(step) for step in Preprocessing.parse(STEPS).steps])
    batch = list_data_collate([before({"image": str(scan)})])
    inferer, keys = SlidingWindowInferer((16, 16, 16), 2, 0.5, "gaussian"), []
    flips = [some for count in range(len(axes) + 1) for some in itertools.combinations(axes, count)]
    for seed, flip in itertools.product(seeds, flips):
        dims = [axis + 2 for axis in flip]
        keys.append(f"scores{len(keys)}")

        with torch.no_grad():
            batch[keys[-1]] = inferer(batch["image"], Turned(network(seed), dims))
    item = MeanEnsembled(keys, output_key="pred")(decollate_batch(batch)[0])
    invert = Invertd("pred", transform=before, orig_keys="image", nearest_interp=False)
    item = invert(Activationsd("pred", softmax=True)(item))
    probabilities = item["pred"].as_tensor().numpy().copy()
    return AsDiscreted("pred", argmax=True)(item)["pred"].as_tensor()[0].numpy(), probabilities


def predict(folds: list[Path], out: Path, *options: str, code: int = OK) -> dict[str, Any]:
    arguments = ["predict", str(folds[0]), str(out.parent / "in"), str(out), *options]
    assert run(arguments) == code
    return json.loads((out / "a" / RESULT).read_text()) if code == OK else {}


MIRRORED = [([0], "z,x"), ([0, 1], "all")]


@pytest.mark.parametrize(
    ("seeds", "mirror"), [([0, 1], ""), *(pytest.param(*one, marks=pytest.mark.slow) for one in MIRRORED)]
)
def test_scores_are_averaged(folds: list[Path], tmp_path: Path, seeds: list[int], mirror: str) -> None:
    scan = write_scan(tmp_path / "in" / "a.nii.gz", shape=(19, 18, 12))
    options = ["--ensemble", str(folds[1])] * (len(seeds) - 1) + ["--mirror", mirror, "--mirror-untrained"] * bool(
        mirror
    )
    result = predict(folds, tmp_path / "out", *options, "--probabilities", "all")
    axes = {"": [], "z,x": [0, 2], "all": [0, 1, 2]}[mirror]
    labels, probabilities = by_monai(scan, seeds, axes)
    folder = tmp_path / "out" / "a"
    found = np.asarray(nib.load(folder / PROBABILITIES).dataobj)
    np.testing.assert_allclose(np.moveaxis(found, 3, 0), probabilities, atol=1e-5)
    differ = np.asarray(nib.load(folder / SEGMENTATION).dataobj) != labels
    best = np.sort(probabilities, 0)
    assert ((best[-1] - best[-2])[differ] < 1e-5).all() and differ.mean() < 1e-3
    assert len(result["ensemble"]) == len(seeds) - 1
    summary = json.loads((tmp_path / "out" / SUMMARY_JSON).read_text())
    assert (summary["ensemble"], summary["mirror"]) == (result["ensemble"], result["mirror"])
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(summary)
    assert result["mirror"] == ["xyz"[axis] for axis in axes]
    alone, _ = by_monai(scan, [0, 0], [])  # `MeanEnsembled` takes one key for a stack
    assert (alone != labels).any()  # the comparison says something


def test_what_is_computed_otherwise_than_calibrated_gets_no_bounds(
    folds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Assessment(patients=96, distance=0.5, dice={"a": 0.9}, dice_low={"a": 0.8}, volume_ml={"a": (1.0, 2.0)})
    monkeypatch.setattr(segmentation, "has_quality_model", lambda _: True)
    monkeypatch.setattr(segmentation, "read_quality_model", lambda _: SimpleNamespace(assess=lambda *_: known))
    bundle, other = (open_bundle(fold) for fold in folds[:2])
    scan = [str(write_scan(tmp_path / "a.nii.gz", shape=(19, 18, 12)))]

    def assessed(ensemble: Sequence[Bundle] = (), **options: Any) -> Any:
        recipe = bundle.recipe(ModelOptions(runtime="torch", **options), ensemble)
        return LoadedBundle(recipe, bundle.policy, bundle.is_foreign).segment(scan).quality

    assert assessed() == known
    for found, words in (
        (assessed([other]), "scores of 2 bundles were averaged"),
        (assessed(mirror=("x",), mirror_untrained=True), "mirrored along x"),
        (assessed(precision="bfloat16"), "computed in bfloat16, which is unproven here"),
    ):
        assert (found.dice, found.dice_low, found.volume_ml) == (known.dice, {}, {})
        assert found.no_interval.startswith("computed otherwise than calibrated: ") and words in found.no_interval


@pytest.mark.slow
def test_a_folder_holds_results_of_one_model(
    folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz")
    predict(folds, tmp_path / "out")
    capsys.readouterr()
    predict(folds, tmp_path / "out", "--ensemble", str(folds[1]), code=REFUSED)
    assert "another ensemble" in capsys.readouterr().err
    mirrored = ["--mirror", "x", "--mirror-untrained"]
    predict(folds, tmp_path / "out", *mirrored, code=REFUSED)
    assert "otherwise mirrored" in capsys.readouterr().err
    assert predict(folds, tmp_path / "out", *mirrored, "--overwrite")["mirror"] == ["x"]
    predict(folds, tmp_path / "out", code=REFUSED)


def test_bundles_that_do_not_agree_are_refused(
    folds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz")
    state = network(5).state_dict()
    plain = write_bundle(tmp_path / "plain", network=NETWORK, state=state, labels=("background", "a", "b"))
    named = write_bundle(
        tmp_path / "named", network=NETWORK, state=state, deterministic=STEPS, labels=("background", "b", "a")
    )
    for other, word in ((plain, "preprocessing"), (named, "labels"), (folds[0], "stands twice")):
        capsys.readouterr()
        predict(folds, tmp_path / "out", "--ensemble", str(other), code=REFUSED)
        assert word in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_axes_are_named() -> None:
    assert parse_mirror(None) == ()
    assert parse_mirror("all") == parse_mirror("x,all") == ("all",)
    assert parse_mirror("z, X") == ("x", "z")
    for odd in ("w", "", "x,w"):
        with pytest.raises(UsageError, match="axis"):
            parse_mirror(odd)
    assert run(["predict", "nowhere", "nothing", "out", "--mirror", "left"]) == USAGE
