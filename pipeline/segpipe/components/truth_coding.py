"""What a voxel of a label map says of the truth: a label, several regions, nothing, or not all.

Label maps stay label maps through every transform; what their values mean is applied where they are compared, so crops
by label, mirroring and resampling need not know. Three things are told apart from plain labels:

    ignored         nobody decided: the voxel counts nowhere
    regions         a label belongs to each region that joins it; regions are yes or no for themselves (sigmoid)
    partial cases   not every label was looked for: what bears none of those that were is background or one of the
                    others, which is the marginal loss of Shi et al. 2021 (doi:10.1016/j.media.2021.101979)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from segpipe.errors import DataError, UsageError

UNKNOWN = -1  # of a region's channel: neither yes nor no
NEVER = -1e4  # logit of a label that is joined with the background: its probability is exactly 0
MOST_INDICES = 100_000  # of a class in a case, to draw the middle of a patch from


@dataclass(frozen=True)
class TruthCoding:
    """What the values of the label maps mean for the channels of a network.

    Attributes:
        n_labels: number of label values, background included.
        ignore_label: value of the voxels that count nowhere.
        regions: label values that each region joins, in the order of the channels; empty where labels exclude each
            other.
        annotated_sets: label values that were looked for, one list for each kind of case in which not all were.
    """

    n_labels: int
    ignore_label: int | None = None
    regions: Sequence[Sequence[int]] = ()
    annotated_sets: Sequence[Sequence[int]] = ()
    codes: tuple[int, ...] = field(init=False)
    """Value that a voxel without label has in a case of each of ``annotated_sets``, once it is marked."""

    def __post_init__(self) -> None:
        free = [value for value in range(self.n_labels, 256) if value != self.ignore_label]
        if len(self.annotated_sets) > len(free):
            raise UsageError("too many ways to annotate in part", found=len(self.annotated_sets), expected=len(free))
        object.__setattr__(self, "codes", tuple(free[: len(self.annotated_sets)]))

    @property
    def is_plain(self) -> bool:
        """Whether every voxel says which label it is, and labels exclude each other."""
        return self.ignore_label is None and not self.regions and not self.annotated_sets

    @property
    def ignored(self) -> int | None:
        """Value of the truth, as `prepare` gives it, that does not count; None where all do."""
        if self.regions:
            return None if self.ignore_label is None and not self.annotated_sets else UNKNOWN
        return self.ignore_label

    def unannotated(self, code: int) -> list[int]:
        """Return the labels that a voxel of this code may be, beside background."""
        known = self.annotated_sets[self.codes.index(code)]
        return [value for value in range(1, self.n_labels) if value not in known]

    def code_of(self, annotated: Sequence[int]) -> int:
        """Return the value that stands for "none of these labels, of which others were not looked for".

        Raises:
            DataError: no such set of labels is known.
        """
        for code, known in zip(self.codes, self.annotated_sets, strict=True):
            if set(known) == set(annotated):
                return code
        raise DataError(
            "the labels that were looked for in a case are not among those that the training knows",
            found=sorted(annotated),
            expected=[sorted(known) for known in self.annotated_sets] or "cases in which every label was looked for",
            hint="plan again: `segpipe plan` notes them as annotated_sets in the task fragment",
        )

    def prepare(self, logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and truth so that a loss by class, or by channel, may compare them.

        Args:
            logits: (B, C, X, Y, Z).
            truth: (B, 1, X, Y, Z), marked label map.

        Returns:
            Of regions the same logits, and the truth (B, C, X, Y, Z) of 0, 1 and `UNKNOWN`. Else logits in which labels
            that were not looked for are joined with the background, and the label map without codes.
        """
        if self.regions:
            return logits, self.region_truth(truth)
        for code in self.codes:
            here = truth == code
            of_case = here.flatten(1).any(1)
            if bool(of_case.any()):
                logits, truth = self._joined(logits, of_case, self.unannotated(code)), truth.masked_fill(here, 0)
        return logits, truth

    def region_truth(self, truth: Tensor) -> Tensor:
        """Return a yes (1), no (0) or `UNKNOWN` for each region: (B, regions, X, Y, Z) of a label map (B, 1, ...)."""
        table = torch.tensor(self._table(), dtype=torch.int16, device=truth.device)
        return table[truth[:, 0].long()].movedim(-1, 1)

    def _table(self) -> list[list[int]]:
        """Return what each value up to 255 says of each region."""
        table = [[int(value in region) for region in self.regions] for value in range(256)]
        if self.ignore_label is not None:
            table[self.ignore_label] = [UNKNOWN] * len(self.regions)
        for code in self.codes:
            others = set(self.unannotated(code))
            table[code] = [UNKNOWN if others & set(region) else 0 for region in self.regions]
        return table

    @staticmethod
    def _joined(logits: Tensor, of_case: Tensor, others: Sequence[int]) -> Tensor:
        """Give the background the probability of other labels too, in the cases (B) that it is about."""
        where = of_case.view(-1, *[1] * (logits.ndim - 2))
        channels = list(logits.unbind(1))
        channels[0] = torch.where(where, logits[:, [0, *others]].logsumexp(1), channels[0])
        for other in others:
            channels[other] = channels[other].masked_fill(where, NEVER)
        return torch.stack(channels, 1)


def coding_of(
    n_labels: int,
    ignore_label: int | None = None,
    regions: Mapping[str, Sequence[int]] | None = None,
    annotated_sets: Sequence[Sequence[int]] | None = None,
) -> TruthCoding:
    """Return the coding of a config's ``labels``, ``ignore_label``, ``regions`` and ``annotated_sets``."""
    return TruthCoding(n_labels, ignore_label, tuple((regions or {}).values()), tuple(annotated_sets or ()))


class MarkUnannotatedd(Transform):
    """Mark the voxels without label in a case in which not every label was looked for; other cases stay as they are.

    Stands after all that crops, which goes by labels. Takes ``annotated`` out of the case, where `load_cases` put it.

    Args:
        n_labels: number of label values including background.
        ignore_label, annotated_sets: as of `TruthCoding`.
    """

    def __init__(
        self, n_labels: int, ignore_label: int | None = None, annotated_sets: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.coding = coding_of(n_labels, ignore_label, None, annotated_sets)

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        """Return the case, marked.

        Raises:
            DataError: other labels were looked for than the training knows of.
        """
        annotated = data.get("annotated")
        if annotated is None:
            return data
        try:
            code = self.coding.code_of(annotated)
        except DataError as error:
            error.case_id = data.get("case_id")
            raise
        kept = {key: value for key, value in data.items() if key != "annotated"}
        label = data["label"]
        return {**kept, "label": label.masked_fill(label == 0, code)}


class AnnotatedToIndicesd(Transform):
    """Say where patches may have their middle: voxels of a label, and background, but none that is ignored.

    Adds ``label_fg_indices`` and ``label_bg_indices``, which `RandCropByPosNegLabeld` takes, at most 100,000 of each,
    drawn evenly.

    Args:
        ignore_label: value of the voxels that are passed over.
    """

    def __init__(self, ignore_label: int) -> None:
        self.ignore_label = ignore_label

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        """Return the case with both.

        Raises:
            DataError: no voxel of the case is annotated.
        """
        label = data["label"]
        flat = (label.as_tensor() if isinstance(label, MetaTensor) else torch.as_tensor(label)).flatten()
        foreground, background = (flat > 0) & (flat != self.ignore_label), flat == 0
        found = [_evenly(mask.nonzero()[:, 0].cpu().numpy()) for mask in (foreground, background)]
        if not any(map(len, found)):
            raise DataError("no voxel is annotated", case_id=data.get("case_id"), hint="take the case out")
        return {**data, "label_fg_indices": found[0], "label_bg_indices": found[1]}


def _evenly(indices: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    if len(indices) <= MOST_INDICES:
        return indices
    return indices[np.round(np.linspace(0, len(indices) - 1, MOST_INDICES)).astype(np.int64)]
