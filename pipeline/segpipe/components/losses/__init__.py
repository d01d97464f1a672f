"""Losses of logits, in float32, with one activation, one-hot, mask and reduction for all of them."""

from segpipe.components.losses.base import SegmentationLoss
from segpipe.components.losses.compound import (
    ComboLoss,
    DeepSupervision,
    DiceCELoss,
    DiceFocalLoss,
    FocalLoss,
    HausdorffLoss,
)
from segpipe.components.losses.lovasz import LovaszHinge, LovaszSoftmax
from segpipe.components.losses.regions import DiceLoss, FocalTverskyLoss, GeneralisedDiceLoss, JaccardLoss, TverskyLoss

__all__ = [
    "ComboLoss",
    "DeepSupervision",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "GeneralisedDiceLoss",
    "HausdorffLoss",
    "JaccardLoss",
    "LovaszHinge",
    "LovaszSoftmax",
    "SegmentationLoss",
    "TverskyLoss",
]
