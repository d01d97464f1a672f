"""A loss that pulls far errors in, after an overlap loss has found the organ."""

from __future__ import annotations

from monai.losses import HausdorffDTLoss
from torch import Tensor

from pipeline.components.losses.entropy import DiceCELoss
from pipeline.errors import UsageError


class HausdorffLoss(DiceCELoss):
    """`DiceCELoss` (alpha 0.5) + w * Hausdorff loss (Karimi & Salcudean 2019, equation 8, by distance transforms).

    The second part is mean((p - t) ** 2 * (d_p ** power + d_t ** power)), d in voxels from the outlines of p > 0.5
    and of t. On the wide errors of a network that has learnt nothing it is huge and leads nowhere, so its weight is 0
    up to ``start`` and grows evenly to ``weight`` over ``ramp``; `LossSchedule` tells the time from the trainer's
    state, so a resumed run goes on as it would have. Without that handler the weight is full.

    Args:
        weight: of the Hausdorff part, once grown.
        start: last epoch (or step) without it.
        ramp: epochs (or steps) that it grows over; 0 for at once.
        unit: ``epoch`` or ``step``, of start and ramp.
        power: of the distances.
        smooth, activation, include_background, batch: see `DiceCELoss`.
    """

    def __init__(
        self,
        weight: float = 0.1,
        start: int = 0,
        ramp: int = 0,
        unit: str = "epoch",
        power: float = 2.0,
        smooth: float = 1e-5,
        activation: str = "softmax",
        include_background: bool = False,
        batch: bool = True,
    ) -> None:
        super().__init__(0.5, smooth, activation, include_background, batch)
        if weight < 0 or start < 0 or ramp < 0 or power <= 0 or unit not in ("epoch", "step"):
            raise UsageError(
                "schedule of the Hausdorff loss",
                found=f"weight {weight}, start {start}, ramp {ramp}, unit {unit}, power {power}",
                expected="numbers from 0, unit epoch or step, power above 0",
            )
        self.weight, self.start, self.ramp, self.unit = weight, start, ramp, unit
        self.share_grown = 1.0
        self.distance = HausdorffDTLoss(alpha=power, include_background=True)

    def set_time(self, epoch: int, step: int) -> None:
        """Set the weight for an epoch and a step, both counted from 1 over the whole run."""
        since = (epoch if self.unit == "epoch" else step) - self.start
        self.share_grown = min(max(since / self.ramp, 0.0), 1.0) if self.ramp else float(since > 0)

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Sum of both parts, a scalar from 0."""
        overlap = super().compare(logits, target, mask)
        weight = self.weight * self.share_grown
        if weight == 0:
            return overlap
        return overlap + weight * self.distance(self.probabilities(logits, mask), self.counted(target))
