"""Whether both stages of a bundle fit into memory with a case is told before any of its voxels is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from segpipe.bundle.open import open_bundle
from segpipe.common.nifti import Header
from segpipe.errors import RefusedError
from segpipe.inference import ModelOptions, memory_estimate
from segpipe.inference.memory_estimate import estimate_memory
from segpipe.inference.segmenter import Segmenter
from segpipe.inference.source import Source, read_headers
from tiny_bundle import TILTED, write_scan
from tiny_two_stages import write_two_stages

TOO_MUCH = 2**60


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    bundle = open_bundle(write_two_stages(tmp_path_factory.mktemp("both") / "both"))
    return Segmenter(bundle.recipe(ModelOptions(device="cpu", runtime="torch")))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    nib.save(nib.Nifti1Image(np.ones((12, 10, 9), np.uint8), TILTED), tmp_path / "mask.nii.gz")
    return [write_scan(tmp_path / "scan.nii.gz"), tmp_path / "mask.nii.gz"]


@pytest.mark.parametrize(("given", "too_large"), [(1, 1), (1, 2), (2, 2)])
def test_a_case_that_is_too_large_for_either_stage_is_refused_before_it_is_read(
    segmenter: Segmenter, files: list[Path], monkeypatch: pytest.MonkeyPatch, given: int, too_large: int
) -> None:
    def estimated(headers: Sequence[Header], *_: Any) -> int:
        return TOO_MUCH if sum(int(np.prod(header.shape[3:])) for header in headers) == too_large else 0

    def read(header: Header) -> np.ndarray:
        raise AssertionError(f"{header.path.name} was read")

    monkeypatch.setattr(memory_estimate, "estimate_memory", estimated)
    monkeypatch.setattr("segpipe.inference.source.read_voxels", read)
    with pytest.raises(RefusedError, match="more memory") as caught:
        segmenter.segment(files[:given])
    assert "free here" in str(caught.value.expected)


def test_what_fits_is_segmented_and_each_stage_is_judged_with_all_its_channels(
    segmenter: Segmenter, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[tuple[int, ...]] = []

    def estimated(headers: Sequence[Header], *arguments: Any) -> int:
        judged.append(tuple(int(np.prod(header.shape[3:])) for header in headers))
        return estimate_memory(headers, *arguments)

    monkeypatch.setattr(memory_estimate, "estimate_memory", estimated)
    assert segmenter.segment(files[:1]).labels.any()
    assert judged == [(1,), (1, 1), (1,), (2,)]  # by files, then the scan that was read, then scan and mask


def test_channels_in_memory_count_each() -> None:
    header = Header(Path("case"), (40, 30, 20), np.eye(4), (1.0, 1.0, 1.0), "int16")
    voxels = np.zeros((4, 40, 30, 20), np.int16)
    assert read_headers(Source(header, voxels), 4)[0].shape == (40, 30, 20, 4)
