"""The only names of ours that a config may target; a stable public API.

Everything here is constructed from a MONAI config, so arguments are plain values or other components.
"""

from segpipe.components.averaging import WeightAveraging, averaged_network, warmed_up
from segpipe.components.batch_transforms import (
    BatchAffine,
    BatchAugmentation,
    BatchBlur,
    BatchBrightness,
    BatchContrast,
    BatchGamma,
    BatchLowResolution,
    BatchMirror,
    BatchNoise,
)
from segpipe.components.checkpoint import RunCheckpoint
from segpipe.components.fast_prediction import FastPrediction
from segpipe.components.handlers import EpochSeed, GradientClip, LossSchedule, StopOnNonFinite
from segpipe.components.label_metrics import CalibrationError, CaseDice, CaseMetric, PooledMetric, SoftDice
from segpipe.components.losses import (
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
    TverskyLoss,
)
from segpipe.components.lovasz import LovaszHinge, LovaszSoftmax
from segpipe.components.networks import SliceDynUNet, SliceUNet, UNetPlusPlus
from segpipe.components.precision import in_precision, scales_loss
from segpipe.components.pretrained import pretrained_network
from segpipe.components.run_log import RunLog
from segpipe.components.stored_cases import prepared_cases
from segpipe.components.training_data import CaseTransforms, ValidateCased, load_cases
from segpipe.components.truth_coding import AnnotatedToIndicesd, MarkUnannotatedd
from segpipe.dicom import DicomReader
from segpipe.inference import StreamingSlidingWindowInferer

__all__ = [
    "AnnotatedToIndicesd",
    "BatchAffine",
    "BatchAugmentation",
    "BatchBlur",
    "BatchBrightness",
    "BatchContrast",
    "BatchGamma",
    "BatchLowResolution",
    "BatchMirror",
    "BatchNoise",
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
    "MarkUnannotatedd",
    "PooledMetric",
    "RunCheckpoint",
    "RunLog",
    "SliceDynUNet",
    "SliceUNet",
    "SoftDice",
    "StopOnNonFinite",
    "StreamingSlidingWindowInferer",
    "TverskyLoss",
    "UNetPlusPlus",
    "ValidateCased",
    "WeightAveraging",
    "averaged_network",
    "in_precision",
    "load_cases",
    "prepared_cases",
    "pretrained_network",
    "scales_loss",
    "warmed_up",
]
