"""Why a published nested network never trained: its heads' mean has no sigmoid, its loss expects probabilities.

The same network, data and steps, once so and once with the activation. Ours cannot get there: a loss takes logits and
activates them itself, and refuses what is activated already.
"""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNetPlusPlus

STEPS = 60


def scans(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two noisy volumes of 32^3 with a bright ball, and the balls."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(2, 3, 1, 1, 1, generator=generator) * 12 + 10
    radius = torch.rand(2, 1, 1, 1, generator=generator) * 3 + 6
    grid = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"))
    ball = (((grid - centre) ** 2).sum(1) < radius**2).float()[:, None]
    return ball + 0.7 * torch.randn(ball.shape, generator=generator), ball


def trained(activate) -> tuple[list[float], float]:
    """The loss of each step, and Dice at a threshold of 0.5 on other volumes."""
    torch.manual_seed(0)
    network = BasicUNetPlusPlus(3, 1, 1, features=(4, 4, 8, 8, 8, 4), deep_supervision=True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for step in range(STEPS):
        image, truth = scans(step)
        output = activate(torch.stack(network(image)).mean(0))
        loss = 1 - (2 * (output * truth).sum() + 1) / (output.sum() + truth.sum() + 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    image, truth = scans(999)
    with torch.no_grad():
        found = activate(torch.stack(network(image)).mean(0)) > 0.5
    return losses, float(2 * (found * truth).sum() / (found.sum() + truth.sum()))


@pytest.mark.slow
@pytest.mark.timeout(900)  # two trainings
def test_without_the_activation_the_loss_is_negative_and_nothing_is_learned() -> None:
    losses, score = trained(lambda output: output)
    assert min(losses) < -1
    assert score < 0.5
    losses, score = trained(torch.sigmoid)
    assert min(losses) >= 0
    assert score > 0.8
