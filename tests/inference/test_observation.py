"""What is seen of a case while it is segmented equals what MONAI's sliding window gives on the network's grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from test_restore import AFFINES, CPU, MIDDLES, Blurred, steps, write_images

from segpipe.inference import observation, restore
from segpipe.inference.engine import segment_source
from segpipe.inference.observation import Observation
from segpipe.inference.prepare import prepare
from segpipe.inference.sliding_window import Windowing
from segpipe.inference.source import read_source
from segpipe.inference.transforms import Preprocessing

ROI = (16, 12, 14)


def seen_of(paths: list[str], middle: str, network: Any, **windowing: Any) -> tuple[Observation, np.ndarray]:
    """What the engine shows, and the network's input without its padding."""
    typed, seen = Preprocessing.parse(steps(MIDDLES[middle])), Observation()
    way = Windowing(roi_size=ROI, overlap=0.4, batch=2, mode="gaussian", **windowing)
    with torch.inference_mode():
        segment_source(read_source(paths, 1), typed, way, network, CPU, {}, observation=seen)
        image, transform = prepare(read_source(paths, 1), typed)
    assert torch.equal(seen.image, image[(slice(None), *transform.inside)])
    return seen, image


def scores_of(image: Any, network: Any) -> torch.Tensor:
    with torch.inference_mode():
        return SlidingWindowInferer(ROI, 2, 0.4, "gaussian")(image[None], network)[0]


@pytest.mark.parametrize("middle", ["turned only", "cut and padded", "cut, not spaced"])
@pytest.mark.parametrize("strips", [1, 2])
def test_labels_and_sums_are_those_of_the_whole_volume(tmp_path: Path, middle: str, strips: int) -> None:
    paths = write_images(tmp_path, AFFINES["turned"], (31, 26, 29), 1, 3)
    network = Blurred(1, 3, smooth=True)
    seen, image = seen_of(paths, middle, network, strips=strips)
    probabilities = torch.softmax(scores_of(image, network), 0)
    best = probabilities.argmax(0)
    typed = Preprocessing.parse(steps(MIDDLES[middle]))
    inside = prepare(read_source(paths, 1), typed)[1].inside
    ties = np.mean(seen.labels != best[inside].numpy())
    assert ties < 1e-3
    given = best[None] == torch.arange(3)[:, None, None, None]
    np.testing.assert_allclose(seen.soft[0], probabilities.sum((1, 2, 3)).numpy(), rtol=1e-4)
    np.testing.assert_allclose(seen.sure[0], (probabilities * given).sum((1, 2, 3)).numpy(), rtol=2e-3)
    np.testing.assert_allclose(seen.hard[0], given.sum((1, 2, 3)).numpy(), rtol=2e-3)
    np.testing.assert_array_equal(seen.shared, seen.hard)


@pytest.mark.parametrize("few", [0, 8])
def test_members_are_summed_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(observation, "FEW", few)  # either way of counting
    paths = write_images(tmp_path, AFFINES["plain"], (24, 22, 20), 1, 4)
    each = [Blurred(1, 3, smooth=True, seed=seed) for seed in (1, 2)]

    def together(windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([network(windows) for network in each], 1)

    seen, image = seen_of(paths, "turned only", together, members=2)
    both = torch.stack([torch.softmax(scores_of(image, network), 0) for network in each])
    best = both.mean(0).argmax(0)
    assert np.mean(seen.labels != best.numpy()) < 1e-3
    for member, probabilities in enumerate(both):
        own = probabilities.argmax(0)
        shared = [int(((own == label) & (best == label)).sum()) for label in range(3)]
        np.testing.assert_allclose(seen.shared[member], shared, rtol=5e-3, atol=3)
        np.testing.assert_allclose(seen.soft[member], probabilities.sum((1, 2, 3)).numpy(), rtol=1e-4)


def test_regions_are_bits(tmp_path: Path) -> None:
    paths = write_images(tmp_path, AFFINES["plain"], (24, 22, 20), 1, 5)
    network = Blurred(1, 2, smooth=True)
    seen, image = seen_of(paths, "turned only", network, activation="sigmoid")
    on = torch.sigmoid(scores_of(image, network)) >= 0.5
    assert seen.regions == 2
    for region in (1, 2):
        assert np.mean(seen.mask(region) != on[region - 1].numpy()) < 1e-3
        assert seen.channel(region) == region - 1


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("members", [1, 2])
def test_what_is_seen_does_not_depend_on_how_much_is_activated_at_a_time(
    tmp_path: Path, members: int, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of each part are in float32, and labels are found part by part, but for the border of a block."""
    paths = write_images(tmp_path, AFFINES["turned"], (31, 26, 29), 1, 6)
    network = Blurred(1, 3 * members, smooth=True)
    whole, _ = seen_of(paths, "finer", network, activation=activation, members=members)
    monkeypatch.setattr(restore, "ACTIVATED", 1)
    parts, _ = seen_of(paths, "finer", network, activation=activation, members=members)
    np.testing.assert_array_equal(parts.labels, whole.labels)
    for name in ("hard", "shared"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    for name in ("soft", "sure"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-6)
    if members == 1:
        np.testing.assert_array_equal(parts.shared, parts.hard)
    if activation == "softmax" and members == 1:
        np.testing.assert_array_equal(np.bincount(whole.labels.ravel(), minlength=3), whole.hard[0])


def test_nothing_is_seen_where_nobody_looks() -> None:
    assert Observation().image.numel() == 0


@pytest.mark.parametrize("affine", ["plain", "turned", "mirrored"])
@pytest.mark.parametrize("middle", ["turned only", "finer", "cut and padded"])
def test_doubt_lies_in_the_slices_of_the_source_that_it_came_from(tmp_path: Path, affine: str, middle: str) -> None:
    """A bright slab of the image is all that the network doubts."""
    import nibabel as nib

    voxels = np.random.default_rng(6).integers(-60, 60, (26, 24, 22)).astype(np.int16)
    voxels[:, 15:18] += 3000
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(voxels, AFFINES[affine]), path)

    def doubting(windows: torch.Tensor) -> torch.Tensor:
        bright = (windows > 0.8).float()
        return torch.cat([6 * (1 - bright), torch.zeros_like(bright)], 1)

    seen, _ = seen_of([str(path)], middle, doubting)
    (first, share), *_ = seen.where_to_look(1)
    assert 14 <= first <= 18  # of a slab from 15 to 17; a coarser grid may lie half a plane beside it
    assert 0.2 < share < 1
    assert sum(share for _, share in seen.where_to_look(1, most=26, apart=1)) == pytest.approx(1, abs=0.01)
    assert [len(seen.doubt[axis]) for axis in range(3)] == [26, 24, 22]
