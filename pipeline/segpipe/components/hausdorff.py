"""The Hausdorff loss of distance transforms, beside Dice and cross entropy, which knows of voxels nobody annotated."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import HausdorffDTLoss
from monai.transforms.utils import distance_transform_edt
from torch import Tensor

from segpipe.components.losses import DiceCELoss
from segpipe.components.processes import is_part, mean_of_all, total
from segpipe.errors import UsageError


class HausdorffLoss(DiceCELoss):
    """`DiceCELoss` (alpha 0.5) + w * Hausdorff loss (Karimi & Salcudean 2019, equation 8, by distance transforms).

    The second part is mean((p - t) ** 2 * (d_p ** power + d_t ** power)), d in voxels from the outlines of p > 0.5
    and of t. On the wide errors of a network that has learnt nothing it is huge and leads nowhere, so its weight is 0
    up to ``start`` and grows evenly to ``weight`` over ``ramp``; `LossSchedule` tells the time from the trainer's
    state, so a resumed run goes on as it would have. Without that handler the weight is full.

    Beside voxels that nobody annotated an outline may be nearer than the known ones: there no distance is larger than
    that to the next of these voxels, so that no voxel weighs more than it would if all were known.

    Args:
        weight: of the Hausdorff part, once grown.
        start: last epoch (or step) without it.
        ramp: epochs (or steps) that it grows over; 0 for at once.
        unit: ``epoch`` or ``step``, of start and ramp.
        power: of the distances.
        options: as of `LossOptions`, without ``class_weights``.
    """

    without = ("class_weights",)

    def __init__(
        self,
        weight: float = 0.1,
        start: int = 0,
        ramp: int = 0,
        unit: str = "epoch",
        power: float = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(0.5, **options)
        if weight < 0 or start < 0 or ramp < 0 or power <= 0 or unit not in ("epoch", "step"):
            raise UsageError(
                "schedule of the Hausdorff loss",
                found=f"weight {weight}, start {start}, ramp {ramp}, unit {unit}, power {power}",
                expected="numbers from 0, unit epoch or step, power above 0",
            )
        self.weight, self.start, self.ramp, self.unit = weight, start, ramp, unit
        self.share_grown = 1.0
        self.distance = _DistanceLoss(alpha=power, include_background=True)

    def set_time(self, epoch: int, step: int) -> None:
        """Set the weight for an epoch and a step, both counted from 1 over the whole run."""
        since = (epoch if self.unit == "epoch" else step) - self.start
        self.share_grown = min(max(since / self.ramp, 0.0), 1.0) if self.ramp else float(since > 0)

    def compare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the sum of both parts, a scalar from 0."""
        overlap = super().compare(logits, target, mask)
        weight = self.weight * self.share_grown
        if weight == 0:
            return overlap
        probabilities, target = self.probabilities(logits, mask), self.counted(target)
        if mask is None:
            distance = self.distance(probabilities, target)
            return overlap + weight * (mean_of_all(distance.expand(len(logits))) if is_part() else distance)
        return overlap + weight * self._where_known(probabilities, target, self.counted(mask.expand_as(logits)))

    def _where_known(self, probabilities: Tensor, target: Tensor, known: Tensor) -> Tensor:
        """Return the mean over the voxels that are known; all arguments (B, counted channels, X, Y, Z)."""
        summed = probabilities.new_zeros(())
        for index in range(target.shape[1]):
            channel = slice(index, index + 1)
            self.distance.bound = _to_the_unknown(known[:, channel])
            summed = summed + self.distance(probabilities[:, channel], target[:, channel]) * known[:, channel].numel()
        self.distance.bound = None
        above, below = total(torch.stack([summed, known.sum()]))
        return above / below.clamp_min(1)


class _DistanceLoss(HausdorffDTLoss):
    """MONAI's, with distances of at most ``bound`` (B, 1, X, Y, Z) where one is given."""

    bound: Tensor | None = None

    def distance_field(self, img: Tensor) -> Tensor:
        field: Tensor = super().distance_field(img)
        return field if self.bound is None else torch.minimum(field, self.bound)


def _to_the_unknown(known: Tensor) -> Tensor:
    """Return how far each voxel (B, 1, X, Y, Z) is from the next one that is not known; infinite where all are."""
    distances = torch.full_like(known, torch.inf)
    for sample, seen in enumerate(known > 0):
        if not seen.all():
            distances[sample] = distance_transform_edt(seen)
    return distances
