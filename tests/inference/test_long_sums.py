"""Normalisation over many voxels is the same by means of means, and lets OpenVINO compute networks that have it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segpipe.inference.long_sums import summed_in_parts
from segpipe.inference.openvino_runtime import TOLERANCE, openvino_runtime
from segpipe.inference.runtimes import torch_runtime
from segpipe.inference.weights import Model

NORMS = {
    "instance": torch.nn.InstanceNorm3d(4),
    "instance with weights": torch.nn.InstanceNorm3d(4, affine=True, eps=1e-3),
    "group": torch.nn.GroupNorm(2, 4),
    "group without weights": torch.nn.GroupNorm(1, 4, affine=False),
}


def weighted(norm: torch.nn.Module) -> torch.nn.Module:
    for parameter in norm.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 2)
    return torch.nn.Sequential(norm).eval()


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(2, 4, 5, 6, 7), (1, 4, 1, 2, 3)])
def test_a_norm_in_parts_is_the_norm(name: str, shape: tuple[int, ...]) -> None:
    network = weighted(NORMS[name]).double()
    x = torch.randn(shape, dtype=torch.float64) * 3 + 5
    in_parts = summed_in_parts(network)
    assert in_parts is not None and isinstance(network[0], type(NORMS[name]))
    torch.testing.assert_close(in_parts(x), network(x))


def test_a_norm_of_slices_is_the_norm() -> None:
    network, x = weighted(torch.nn.InstanceNorm2d(3)).double(), torch.randn(2, 3, 6, 5, dtype=torch.float64)
    in_parts = summed_in_parts(network)
    assert in_parts is not None
    torch.testing.assert_close(in_parts(x), network(x))


def test_what_has_statistics_of_its_own_stays() -> None:
    kept = torch.nn.Sequential(torch.nn.InstanceNorm3d(2, track_running_stats=True), torch.nn.BatchNorm3d(2))
    assert summed_in_parts(kept) is None


class OneNorm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = torch.nn.Conv3d(1, 2, 1), torch.nn.InstanceNorm3d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.convolution(x).square()) - 3


def test_openvino_computes_a_network_whose_norms_are_over_many_voxels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    network = OneNorm().eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    shape = (1, 96, 96, 96)
    runtime = openvino_runtime(torch_runtime(network), Model(network, str(tmp_path / "model.pt"), "{}"), shape, 1)
    windows = torch.randn(1, *shape)
    with torch.inference_mode():
        expected = network(windows)
    assert (runtime(windows) - expected).abs().max() <= TOLERANCE / 3 * expected.abs().max()
