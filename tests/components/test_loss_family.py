"""All losses together: independent float64 formulas, algebra, gradients, half precision, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_formulas import KINDS, example, formulas, numpy_parts
from monai.losses import GeneralizedDiceLoss as MonaiGeneralised
from scipy import ndimage

from segpipe import components
from segpipe.components.handlers import LossSchedule
from segpipe.components.hausdorff import HausdorffLoss
from segpipe.components.losses import (
    ComboLoss,
    DeepSupervision,
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralisedDiceLoss,
    JaccardLoss,
    TverskyLoss,
)
from segpipe.components.lovasz import LovaszHinge, LovaszSoftmax
from segpipe.errors import DataError, UsageError
from segpipe.training.fragments import configs_folder

FAMILY = [
    ComboLoss,
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralisedDiceLoss,
    HausdorffLoss,
    JaccardLoss,
    LovaszHinge,
    LovaszSoftmax,
    TverskyLoss,
]
POOLED = [kind for kind in FAMILY if kind is not FocalLoss]
MASKED = [kind for kind in FAMILY if kind is not HausdorffLoss]


# numeric gradients evaluate a loss twice for each number, and this one finds distances anew
FEW = {HausdorffLoss: (2, 2, 1)}


def two(kind) -> int:
    return 2 if kind is LovaszHinge else 3


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 5),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.integers(1, 3),
    st.sampled_from(KINDS),
)
def test_every_loss_equals_its_independent_formula(seed, classes, shape, batch, kind) -> None:
    logits, truth = example(seed, classes, shape, batch, kind)
    for loss, expected in formulas(logits, truth).items():
        more = {} if loss is FocalLoss else {"batch": False}
        assert float(loss(**more)(logits, truth)) == pytest.approx(expected, rel=1e-9, abs=1e-9), loss.__name__


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", FAMILY)
def test_range_and_finite_gradient(loss, kind: str) -> None:
    logits, truth = example(4, two(loss), kind=kind)
    logits = logits.float().requires_grad_(True)
    value = loss()(logits, truth)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    assert float(value.detach()) >= 0
    if loss in (DiceLoss, JaccardLoss, GeneralisedDiceLoss, TverskyLoss, FocalTverskyLoss, LovaszSoftmax):
        assert float(value.detach()) <= 1
    if kind == "perfect":
        assert float(value.detach()) < 1e-4


@pytest.mark.parametrize("loss", FAMILY)
def test_gradcheck(loss) -> None:
    logits, truth = example(8, two(loss), shape=FEW.get(loss, (2, 3, 2)))
    module = loss(activation="softmax")
    assert torch.autograd.gradcheck(lambda x: module(x, truth), logits.requires_grad_(True))


@pytest.mark.parametrize("loss", FAMILY)
def test_sigmoid_takes_labels_that_overlap(loss) -> None:
    logits, _ = example(8, 3, shape=FEW.get(loss, (2, 3, 2)))
    truth = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) > 0.5).double()
    module = loss(activation="sigmoid")
    assert torch.autograd.gradcheck(lambda x: module(x, truth), logits.requires_grad_(True))


@pytest.mark.parametrize("loss", FAMILY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_large_volume(loss, dtype) -> None:
    logits, truth = example(0, two(loss), shape=(48, 48, 48), batch=1)
    half = logits.to(dtype).requires_grad_(True)
    value = loss()(half, truth)
    value.backward()
    assert float(value.detach()) == pytest.approx(float(loss()(logits, truth)), rel=3e-2)
    assert torch.isfinite(half.grad).all()
    assert (half.grad != 0).float().mean() > 0.01


@pytest.mark.parametrize("loss", FAMILY)
def test_voxel_order_batch_of_one_and_heads(loss) -> None:
    logits, truth = example(5, two(loss), batch=1)
    value = float(loss()(logits, truth))
    if loss is HausdorffLoss:  # the place of a voxel matters, its mirror image does not
        assert float(loss()(logits.flip(2, 4), truth.flip(2, 4))) == pytest.approx(value, rel=1e-6)
    else:
        order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
        mixed = [t.flatten(2)[..., order].reshape(t.shape) for t in (logits, truth)]
        assert float(loss()(*mixed)) == pytest.approx(value, abs=1e-12)
    if loss in POOLED:
        both = [float(loss(batch=pooled)(logits, truth)) for pooled in (False, True)]
        assert both[0] == pytest.approx(both[1], abs=1e-12)
    deep = DeepSupervision(loss())
    coarse = logits[:, :, ::2]
    assert torch.isfinite(deep([logits, coarse], truth))
    stacked = deep(torch.stack([logits, logits], 1), truth)
    assert float(stacked) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("loss", MASKED)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_ignored_voxels_do_not_count_whatever_is_there(loss, activation: str) -> None:
    logits, truth = example(6, two(loss))
    if activation == "sigmoid":
        truth = (truth == 1).expand(logits.shape).long()
    module = loss(activation=activation, ignore_index=255)
    masked = truth.clone()
    masked[:, :, 2:] = 255
    expected = loss(activation=activation)(logits[:, :, :2], truth[:, :, :2])
    assert float(module(logits, masked)) == pytest.approx(float(expected), abs=1e-12)
    logits[:, :, 2:] = 50.0
    logits = logits.requires_grad_(True)
    value = module(logits, masked)
    value.backward()
    assert float(value.detach()) == pytest.approx(float(expected), abs=1e-12)
    assert not logits.grad[:, :, 2:].any()
    assert torch.isfinite(module(logits, torch.full_like(masked, 255)))  # nothing counts at all


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_what_hausdorff_ignores_counts_nowhere_and_gets_no_gradient(activation: str) -> None:
    logits, truth = example(6, 3)
    if activation == "sigmoid":
        truth = (truth == 1).expand(logits.shape).long()
    loss = HausdorffLoss(activation=activation, ignore_index=255)
    all_known = float(loss(logits, truth))
    assert all_known == pytest.approx(float(HausdorffLoss(activation=activation)(logits, truth)))
    masked = truth.clone()
    masked[:, :, 2:] = 255
    before = float(loss(logits, masked))
    logits[:, :, 2:] = 50.0 * torch.randn(logits[:, :, 2:].shape, generator=torch.Generator().manual_seed(0))
    logits = logits.requires_grad_(True)
    value = loss(logits, masked)
    value.backward()
    assert float(value.detach()) == pytest.approx(before, abs=1e-12)
    assert not logits.grad[:, :, 2:].any() and logits.grad[:, :, :2].any()
    assert torch.isfinite(loss(logits, torch.full_like(masked, 255)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 0.6))
def test_no_known_voxel_weighs_more_than_if_all_were_known(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    shape = (6, 5, 4)
    truth, unknown = rng.random(shape) < 0.4, rng.random(shape) < share
    score = rng.normal(size=shape) * 2
    error = np.square(1 / (1 + np.exp(-score)) - truth)

    def part(module: HausdorffLoss, labels: np.ndarray) -> float:
        arguments = (torch.from_numpy(each)[None, None] for each in (score, labels.astype(np.int64)))
        logits, values = arguments
        full, without = module(logits, values), DiceCELoss(0.5, activation="sigmoid", ignore_index=255)(logits, values)
        return float(full - without) / module.weight

    found = part(HausdorffLoss(activation="sigmoid", ignore_index=255), np.where(unknown, 255, truth))
    most = 0.0
    for mask in (truth, score > 0):  # distances to outlines with all voxels known, in numpy alone
        if mask.any() and not mask.all():
            distance = ndimage.distance_transform_edt(mask) + ndimage.distance_transform_edt(~mask)
            most += float((error * distance**2)[~unknown].sum())
    uniform = mask.all() or truth.all()  # then MONAI has no distance at all
    assert uniform or found <= most / max(1, int((~unknown).sum())) + 1e-9
    assert found >= 0


def test_algebra() -> None:
    logits, truth = example(2)
    assert float(DiceLoss(smooth=2e-5)(logits, truth)) == pytest.approx(
        float(TverskyLoss(0.5, 0.5, smooth=1e-5)(logits, truth)), abs=1e-12
    )
    assert float(JaccardLoss()(logits, truth)) == float(TverskyLoss(1.0, 1.0)(logits, truth))
    weights = [0.2, 1.0, 3.0]
    entropy = torch.nn.functional.cross_entropy
    assert float(FocalLoss(gamma=0)(logits, truth)) == pytest.approx(float(entropy(logits, truth[:, 0])))
    assert float(FocalLoss(gamma=0, class_weights=weights)(logits, truth)) == pytest.approx(
        float(entropy(logits, truth[:, 0], weight=torch.tensor(weights).double())), abs=1e-7
    )
    plain = FocalLoss(gamma=2, alpha=0.5)(logits, truth)
    assert float(plain) == pytest.approx(float(FocalLoss(gamma=2)(logits, truth)) / 2)
    # the paper's Combo subtracts Dice instead of adding 1 - Dice
    assert float(ComboLoss(alpha=0.0)(logits, truth)) == pytest.approx(
        float(TverskyLoss(0.5, 0.5, batch=True)(logits, truth)), abs=1e-12
    )


def test_generalised_dice_is_monais_where_all_classes_are_present() -> None:
    logits, truth = example(3)
    monai = MonaiGeneralised(softmax=True, to_onehot_y=True, smooth_nr=1e-12, smooth_dr=1e-12)
    ours = GeneralisedDiceLoss(smooth=1e-9)
    assert float(ours(logits, truth)) == pytest.approx(float(monai(logits, truth)), abs=1e-6)


@pytest.mark.parametrize("name", ["dice", "jaccard", "generalised_dice", "dice_ce", "combo"])
def test_an_empty_truth_still_pushes_false_positives_down(name: str) -> None:
    logits, truth = example(1, shape=(24, 24, 24), kind="empty")
    logits = logits.float().requires_grad_(True)
    fragment(name)(logits, truth).backward()
    assert logits.grad[:, 1:].sum() > 1e-7  # MONAI's Dice leaves 1e-13 a voxel here


def fragment(name: str, activation: str = "softmax"):
    text = yaml.safe_load((configs_folder() / "loss" / f"{name}.yaml").read_text())
    assert text["loss_name"] == name
    options = {key: value for key, value in text["loss"].items() if not key.startswith("_")}
    options = {k: 2 if isinstance(v, str) and v.startswith("$") else v for k, v in options.items()}
    kind = getattr(components, text["loss"]["_target_"].rpartition(".")[2])
    return kind(**{**options, "activation": activation})


def test_names_for_one_thing_give_one_number() -> None:
    logits, truth = example(9)
    for one, other in (("jaccard", "soft_iou"), ("dice_ce", "bce_dice")):
        assert float(fragment(one)(logits, truth)) == float(fragment(other)(logits, truth))


def test_hausdorff_part_by_brute_force_and_its_schedule() -> None:
    logits, truth = example(7, shape=(6, 5, 4))
    p, _, t = numpy_parts(logits, truth)
    parts = []
    for c in (1, 2):
        for b in range(2):
            field = 0.0
            for mask in (p[c, b] > 0.5, t[c, b] > 0.5):
                mask = mask.reshape(6, 5, 4)
                inner, outer = (ndimage.distance_transform_edt(m) for m in (mask, ~mask))
                field = field + (inner + outer).ravel() ** 2
            parts.append(((p[c, b] - t[c, b]) ** 2 * field).mean())
    plain = float(DiceCELoss()(logits, truth))
    loss = HausdorffLoss(weight=0.5, start=2, ramp=4)
    full = float(loss(logits, truth))
    assert full == pytest.approx(plain + 0.5 * np.mean(parts), rel=1e-6)
    deep = DeepSupervision(loss)
    schedule = LossSchedule(deep)
    for epoch, share in ((1, 0), (2, 0), (3, 0.25), (6, 1), (9, 1)):
        schedule(type("Engine", (), {"state": type("State", (), {"epoch": epoch, "iteration": 10 * epoch})}))
        assert float(deep(logits, truth)) == pytest.approx(plain + share * (full - plain), rel=1e-9)
    steps = HausdorffLoss(weight=0.5, start=10, unit="step")
    steps.set_time(1, 10)
    assert steps.share_grown == 0
    steps.set_time(1, 11)
    assert steps.share_grown == 1


def test_what_has_no_meaning_is_refused() -> None:
    logits, truth = example(0)
    for loss, option in (
        (FocalLoss, "smooth"),
        (FocalLoss, "batch"),
        (HausdorffLoss, "class_weights"),
        (LovaszSoftmax, "include_background"),
        (GeneralisedDiceLoss, "class_weights"),
        (JaccardLoss, "alpha"),
    ):
        with pytest.raises(TypeError):
            loss(**{option: 1})
    for make in (
        lambda: DiceLoss(smooth=0),
        lambda: DiceLoss(smooth=1, smooth_above=2),
        lambda: FocalLoss(gamma=-1),
        lambda: FocalLoss(alpha=1.5),
        lambda: ComboLoss(beta=2),
        lambda: GeneralisedDiceLoss(weight="cube"),
        lambda: HausdorffLoss(unit="day"),
        lambda: LovaszSoftmax(classes="some"),
        lambda: LovaszSoftmax(classes=[]),
        lambda: DiceLoss(class_weights=[1, -1, 0]),
        lambda: DiceLoss(class_weights=[1, 0, 0]),
        lambda: LovaszHinge(activation="softmax", class_weights=[1, 1]),
    ):
        with pytest.raises(UsageError):
            make()
    for module in (DiceLoss(class_weights=[1, 1]), LovaszSoftmax(classes=[3]), LovaszHinge(activation="softmax")):
        with pytest.raises(UsageError):
            module(logits, truth)
    with pytest.raises(DataError, match="no class"):
        DiceLoss(ignore_index=255)(logits, torch.full_like(truth, 254))


@pytest.mark.parametrize("loss", FAMILY)
def test_an_output_that_is_activated_already_is_refused(loss) -> None:
    logits, truth = example(0, two(loss))
    with pytest.raises(UsageError, match="activated already"):
        loss(activation="softmax")(logits.softmax(1).half(), truth)
    leaf = logits.clone().requires_grad_(True)
    with pytest.raises(UsageError, match="activated already"):
        loss(activation="sigmoid")(leaf.sigmoid().float()[:, :, 1:], (logits > 0).long()[:, :, 1:])
