"""The engine against the reference implementation that the page on it shows: equal labels but for ties."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from test_restore import CPU, MIDDLES, TIE, Blurred, steps, tilted, write_images
from test_segmenter import FULL, UNET, recipe, smooth_scan

from segpipe.inference.engine import segment_source
from segpipe.inference.segmenter import Segmenter
from segpipe.inference.sliding_window import Windowing
from segpipe.inference.source import read_source
from segpipe.inference.transforms import Preprocessing, build_step
from tiny_bundle import write_bundle

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/concepts/whole_volume_engine.md"
SHIPPED = ROOT / "bundles/hippocampus_mri"


@pytest.fixture(scope="module")
def segment_by_monai() -> Any:
    """The function that stands on the page."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(block, names)
    assert len(block.splitlines()) <= 40
    return names["segment_by_monai"]


def assert_equal_but_for_ties(found: np.ndarray, reference: Any, activation: str) -> None:
    labels, probabilities = (part.numpy() for part in reference)
    if activation == "softmax":
        highest = np.sort(probabilities, 0)[-2:]
        tie = highest[-1] - highest[0] < TIE
    else:
        labels = sum(mask.astype(np.uint8) << region for region, mask in enumerate(labels))
        tie = np.abs(probabilities - 0.5).min(0) < TIE
    assert found.shape == labels.shape
    assert tie[found != labels].all()


def tiny(folder: Path) -> Path:
    from monai.networks.nets import UNet

    torch.manual_seed(3)
    state = UNet(**{name: value for name, value in UNET.items() if name != "_target_"}).state_dict()
    return write_bundle(folder, network=UNET, state=state, deterministic=FULL, labels=("background", "a", "b"))


def one_member(folder: Path) -> Path:
    """The shipped ensemble's first network as a bundle of its own."""
    shutil.copytree(SHIPPED, folder)
    (folder / "models/member_0.pt").rename(folder / "models/model.pt")
    return folder


@pytest.mark.parametrize("shipped", [True, False])
def test_a_bundle_gives_the_labels_of_the_reference(segment_by_monai: Any, shipped: bool, tmp_path: Path) -> None:
    bundle = one_member(tmp_path / "bundle") if shipped else tiny(tmp_path / "bundle")
    scan = SHIPPED / "golden/images/image.nii.gz" if shipped else smooth_scan(tmp_path / "scan.nii.gz", 0)
    config = json.loads((bundle / "configs/inference.json").read_text())
    network = ConfigParser(config).get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True))
    inferer = config["inferer"]
    window = {name: inferer[name] for name in ("roi_size", "overlap", "mode")}
    transforms = [build_step(step) for step in Preprocessing.parse(config["deterministic_transforms"]).steps]
    engine = Segmenter(recipe(bundle, True, windowing={**window, "batch": inferer["sw_batch_size"]}))
    assert engine.engine == "streaming"
    found = engine.segment([str(scan)]).labels
    assert len(np.unique(found)) > 1
    assert_equal_but_for_ties(found, segment_by_monai(str(scan), transforms, network, **window), "softmax")


@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(
    shape=st.tuples(*[st.integers(2, 21)] * 3),
    roi=st.tuples(*[st.integers(5, 13)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    mode=st.sampled_from(["gaussian", "constant"]),
    activation=st.sampled_from(["softmax", "sigmoid"]),
    middle=st.sampled_from(sorted(MIDDLES)),
    channels=st.sampled_from([1, 2]),
    angles=st.tuples(*[st.sampled_from([0.0, 90.0, 7.0, -33.0])] * 3),
    spacing=st.tuples(*[st.floats(0.6, 3.5)] * 3),
    strips=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_random_volumes_give_the_labels_of_the_reference(
    segment_by_monai: Any,
    tmp_path: Path,
    shape: Any,
    roi: Any,
    overlap: float,
    mode: Any,
    activation: Any,
    middle: str,
    channels: int,
    angles: Any,
    spacing: Any,
    strips: int,
    seed: int,
) -> None:
    paths = write_images(tmp_path, tilted(angles, spacing), shape, channels, seed)
    config = Preprocessing.parse(steps(MIDDLES[middle]))
    network = Blurred(channels, 3, seed % 2 == 0, seed)
    windowing = Windowing(roi, overlap, 3, mode, activation, strips)
    with torch.inference_mode():
        found = segment_source(read_source(paths, channels), config, windowing, network, CPU, {})
    image = paths if channels > 1 else paths[0]
    transforms = [build_step(step) for step in config.steps]
    reference = segment_by_monai(image, transforms, network, roi, overlap, mode, activation)
    assert_equal_but_for_ties(found, reference, activation)
