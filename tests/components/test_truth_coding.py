"""What the values of a label map say of the truth: losses and metrics against what is counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import Tensor

from segpipe.components import (
    AnnotatedToIndicesd,
    CaseDice,
    ComboLoss,
    DeepSupervision,
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralisedDiceLoss,
    JaccardLoss,
    LovaszSoftmax,
    MarkUnannotatedd,
    TverskyLoss,
)
from segpipe.components.truth_coding import TruthCoding, coding_of
from segpipe.errors import DataError, UsageError

LOSSES = [
    ComboLoss,
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralisedDiceLoss,
    JaccardLoss,
    LovaszSoftmax,
    TverskyLoss,
]
NESTED = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
SHAPE = (5, 4, 6)


def drawn(seed: int, channels: int, labels: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, channels, *SHAPE, generator=generator)
    return logits, torch.randint(0, labels, (batch, 1, *SHAPE), generator=generator).float()


def supervised(loss: Any, labels: int, **meaning: Any) -> DeepSupervision:
    return DeepSupervision(loss, labels, **meaning)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ignored", [3, 255])
def test_ignored_voxels_are_as_if_they_were_not_there(loss: Any, ignored: int) -> None:
    logits, truth = drawn(1, 3, 3, batch=1)
    truth[..., 4:] = ignored  # a block, so that the rest is a volume of its own
    whole = supervised(loss(), 3, ignore_label=ignored)(logits.requires_grad_(), truth)
    alone = loss()(logits[..., :4], truth[..., :4])
    assert float(whole.detach()) == pytest.approx(float(alone), abs=1e-6)
    (slope,) = torch.autograd.grad(whole, logits)
    assert slope[..., 4:].abs().max() == 0 < slope[..., :4].abs().max()


def test_deep_supervision_leaves_them_out_of_every_head() -> None:
    logits, truth = drawn(2, 3, 3, batch=1)
    truth[..., 4:] = 255
    heads = [logits, logits[..., ::2, ::2, ::2] * 2]
    coarse = torch.nn.functional.interpolate(truth, size=heads[1].shape[2:], mode="nearest-exact")
    kept = coarse[0, 0, 0, 0] != 255
    parts = [TverskyLoss()(heads[0][..., :4], truth[..., :4]), TverskyLoss()(heads[1][..., kept], coarse[..., kept])]
    found = supervised(TverskyLoss(), 3, ignore_label=255)(heads, truth)
    assert float(found) == pytest.approx(float(parts[0] + 0.5 * parts[1]) / 1.5, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_regions_are_yes_or_no_each_for_itself(seed: int, ignore: bool) -> None:
    logits, truth = drawn(seed, 3, 4)
    if ignore:
        truth[..., 2] = 9
    loss = supervised(
        DiceCELoss(activation="sigmoid", batch=True), 4, ignore_label=9 if ignore else None, regions=NESTED
    )
    score, labels = logits.sigmoid().double().numpy(), truth[:, 0].numpy()
    counted, terms = labels != 9, []
    entropy = 0.0
    for channel, values in enumerate(NESTED.values()):
        t, p = np.isin(labels, values)[counted], score[:, channel][counted]
        entropy -= np.where(t, np.log(p), np.log(1 - p)).sum()
        terms.append(1 - (p[t].sum() + 1e-5) / (0.5 * (p.sum() + t.sum()) + 1e-5))
    expected = entropy / (3 * counted.sum()) + np.mean(terms)
    assert float(loss(logits, truth)) == pytest.approx(expected, abs=1e-5)


def marginal(logits: Tensor, truth: Tensor, looked_for: set[int]) -> Tensor:
    """Logits of background and the labels that were looked for; the others belong to the background (Shi et al.)."""
    known = sorted(looked_for)
    rest = [value for value in range(logits.shape[1]) if value not in looked_for]
    return torch.cat([torch.logsumexp(logits[:, rest], 1, keepdim=True), logits[:, known]], 1)


@pytest.mark.parametrize("loss", [DiceCELoss, TverskyLoss, FocalTverskyLoss, FocalLoss, GeneralisedDiceLoss])
def test_of_labels_that_nobody_looked_for_the_loss_is_marginal(loss: Any) -> None:
    logits, truth = drawn(3, 4, 4, batch=1)
    truth[(truth == 1) | (truth == 2)] = 0  # 3 alone was looked for
    coding = TruthCoding(4, annotated_sets=[[3]])
    marked = truth.masked_fill(truth == 0, coding.code_of([3]))
    options = {} if loss is FocalLoss else {"include_background": True}
    logits.requires_grad_()
    ours = supervised(loss(**options), 4, annotated_sets=[[3]])(logits, marked)
    alone = loss(**options)(marginal(logits, truth, {3}), (truth > 0).float())
    share = 0.5 if loss in (TverskyLoss, FocalTverskyLoss) else 1.0  # two of four classes have no voxel: loss 0
    if loss is DiceCELoss:
        entropy = -(marginal(logits, truth, {3}).log_softmax(1).gather(1, (truth > 0).long())).mean()
        alone, share = entropy + (alone - entropy) * 0.5, 1.0
    assert float(ours.detach()) == pytest.approx(float(alone.detach()) * share, abs=2e-5)
    (slope,) = torch.autograd.grad(ours, logits)
    background = truth[:, 0] == 0
    assert torch.isfinite(slope).all()
    towards = logits.detach().softmax(1)[:, :3]  # the gradient on what may be there goes by its probability
    ratio = (slope[:, :3] / towards)[:, :, background[0]]
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), atol=1e-5)


def test_a_label_that_nobody_looked_for_is_never_a_false_positive() -> None:
    truth = torch.zeros(1, 1, *SHAPE)
    truth[..., :2] = 2
    marked = truth.masked_fill(truth == 0, TruthCoding(3, annotated_sets=[[2]]).code_of([2]))
    certain = torch.full((1, 3, *SHAPE), -20.0)
    certain[:, 2, ..., :2] = 20
    certain[:, 1, ..., 2:] = 20  # label 1, wherever 2 is not
    for loss in (DiceCELoss, TverskyLoss, FocalTverskyLoss):
        found = float(supervised(loss(), 3, annotated_sets=[[2]])(certain, marked))
        assert found < 1e-3 < float(loss()(certain, truth))


def test_regions_with_a_label_that_nobody_looked_for_are_unknown_there() -> None:
    coding = coding_of(4, 9, NESTED, [[3]])
    code = coding.code_of([3])
    labels = torch.tensor([0.0, 1, 2, 3, 9, code]).view(1, 1, 6, 1, 1)
    for stored in (labels, labels.byte()):
        assert coding.region_truth(stored)[0, :, :, 0, 0].tolist() == [
            [0, 1, 1, 1, -1, -1],
            [0, 0, 1, 1, -1, -1],
            [0, 0, 0, 1, -1, 0],
        ]


@pytest.mark.parametrize(
    ("loss", "meaning", "said"),
    [
        (DiceCELoss(), {"regions": NESTED}, "need a loss of sigmoids"),
        (DiceCELoss(ignore_index=7), {"ignore_label": 9}, "two values are to be ignored"),
        (torch.nn.CrossEntropyLoss(), {"ignore_label": 9}, "does not know of ignored voxels"),
        (torch.nn.CrossEntropyLoss(), {"annotated_sets": [[1]]}, "does not know of ignored voxels"),
    ],
)
def test_a_loss_that_cannot_compare_them_is_refused(loss: Any, meaning: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        supervised(loss, 4, **meaning)


def test_cases_are_marked_by_what_was_looked_for() -> None:
    mark = MarkUnannotatedd(4, 5, [[1], [2, 3]])
    label = MetaTensor(torch.tensor([0.0, 1, 5]).view(1, 3, 1, 1))
    assert mark({"case_id": "a", "label": label})["label"] is label
    for annotated, code in (([1], 4), ([3, 2], 6)):  # the lowest values that mean nothing else
        marked = mark({"case_id": "a", "label": label, "annotated": annotated})
        assert marked["label"].flatten().tolist() == [code, 1, 5] and "annotated" not in marked
    with pytest.raises(DataError, match="not among those") as caught:
        mark({"case_id": "a", "label": label, "annotated": [1, 2]})
    assert caught.value.case_id == "a"


def test_patches_have_their_middle_in_annotated_voxels() -> None:
    label = MetaTensor(torch.tensor([0.0, 9, 1, 9, 0, 2]).view(1, 6, 1, 1))
    found = AnnotatedToIndicesd(9)({"label": label})
    assert found["label_fg_indices"].tolist() == [2, 5] and found["label_bg_indices"].tolist() == [0, 4]
    with pytest.raises(DataError, match="no voxel is annotated"):
        AnnotatedToIndicesd(9)({"case_id": "a", "label": label.masked_fill(label != 9, 9)})


def measured(metric: CaseDice, *cases: tuple[Tensor, Tensor]) -> tuple[float | None, dict[str, float | None]]:
    metric.reset()
    metric.update(([prediction for prediction, _ in cases], [truth for _, truth in cases]))
    return metric.compute(), metric.by_label


def test_the_dice_of_a_validation_leaves_out_what_is_ignored() -> None:
    truth, prediction = torch.zeros(1, *SHAPE), torch.zeros(1, *SHAPE)
    truth[:, :2], prediction[:, :3] = 1, 1
    truth[:, 2:] = 255
    assert measured(CaseDice(["background", "x"], ignore_label=255), (prediction, truth))[0] == 1.0


def test_the_dice_of_a_validation_is_that_of_each_region() -> None:
    truth = torch.zeros(1, *SHAPE)
    truth[:, 0], truth[:, 1], truth[:, 2] = 1, 2, 3
    masks = torch.stack([truth[0] >= least for least in (1, 2, 3)]).float()
    masks[2] = 0
    masks[2, 0] = 1
    metric = CaseDice(["background", "a", "b", "c"], regions=NESTED)
    mean, by_region = measured(metric, (masks, truth))
    assert by_region == {"whole": 1.0, "core": 1.0, "enhancing": 0.0} and mean == pytest.approx(2 / 3)
    with pytest.raises(UsageError, match="not a mask for each region"):
        measured(metric, (truth, truth))


def test_the_dice_of_a_validation_passes_over_labels_that_nobody_looked_for() -> None:
    names = ["background", "a", "b"]
    truth = torch.zeros(1, *SHAPE)
    truth[:, 0] = 1
    prediction = truth.clone()
    prediction[:, 3] = 2
    mark = MarkUnannotatedd(3, annotated_sets=[[1]])
    marked = mark({"label": truth, "annotated": [1]})["label"]
    assert measured(CaseDice(names, annotated_sets=[[1]]), (prediction, marked)) == (1.0, {"a": 1.0, "b": None})
    assert measured(CaseDice(names), (prediction, truth)) == (0.5, {"a": 1.0, "b": 0.0})
