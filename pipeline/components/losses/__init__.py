"""Losses of logits, in float32, with one activation, one-hot, mask and reduction for all of them."""

from pipeline.components.losses.base import SegmentationLoss
from pipeline.components.losses.entropy import ComboLoss, DiceCELoss, DiceFocalLoss, FocalLoss
from pipeline.components.losses.hausdorff import HausdorffLoss
from pipeline.components.losses.lovasz import LovaszHinge, LovaszSoftmax
from pipeline.components.losses.overlap import DiceLoss, GeneralisedDiceLoss
from pipeline.components.losses.supervision import DeepSupervision
from pipeline.components.losses.tversky import FocalTverskyLoss, JaccardLoss, TverskyLoss

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
