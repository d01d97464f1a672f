"""The only names of ours that a config may target; a stable public API.

Everything here is constructed from a MONAI config, so arguments are plain values or other components.
"""

from pipeline.components.cases import CaseTransforms, ValidateCased, load_cases
from pipeline.components.checkpoint import RunCheckpoint
from pipeline.components.fast import FastPrediction
from pipeline.components.handlers import EpochSeed, GradientClip, LossSchedule, StopOnNonFinite
from pipeline.components.losses import (
    ComboLoss,
    DeepSupervision,
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
)
from pipeline.components.metrics import CalibrationError, CaseDice, CaseMetric, PooledMetric, SoftDice
from pipeline.components.networks import UNetPlusPlus
from pipeline.components.runlog import RunLog
from pipeline.dicom.reader import DicomReader
from pipeline.inference.sliding import StreamingSlidingWindowInferer

__all__ = [
    "CalibrationError",
    "CaseDice",
    "CaseMetric",
    "CaseTransforms",
    "ComboLoss",
    "DeepSupervision",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "DicomReader",
    "EpochSeed",
    "FastPrediction",
    "FocalLoss",
    "FocalTverskyLoss",
    "GeneralisedDiceLoss",
    "GradientClip",
    "HausdorffLoss",
    "JaccardLoss",
    "LossSchedule",
    "LovaszHinge",
    "LovaszSoftmax",
    "PooledMetric",
    "RunCheckpoint",
    "RunLog",
    "SoftDice",
    "StopOnNonFinite",
    "StreamingSlidingWindowInferer",
    "TverskyLoss",
    "UNetPlusPlus",
    "ValidateCased",
    "load_cases",
]
