"""The only names of ours that a config may target; a stable public API.

Everything here is constructed from a MONAI config, so arguments are plain values or other components; but for
`require_gpus` and `require_shares`, which look at a config before it runs.
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
from segpipe.components.epoch_sampling import DrawnCases, EpochSampler, batch_of_process, require_shares, shared_cases
from segpipe.components.fast_prediction import FastPrediction
from segpipe.components.handlers import EpochSeed, GradientClip, LossSchedule, StopOnNonFinite
from segpipe.components.hausdorff import HausdorffLoss
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
    JaccardLoss,
    TverskyLoss,
)
from segpipe.components.lovasz import LovaszHinge, LovaszSoftmax
from segpipe.components.networks import SliceDynUNet, SliceUNet, UNetPlusPlus
from segpipe.components.precision import in_precision, scales_loss
from segpipe.components.pretrained import pretrained_network
from segpipe.components.processes import data_parallel, join_processes, leave_processes, require_gpus
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
    "DrawnCases",
    "EpochSampler",
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
    "batch_of_process",
    "data_parallel",
    "in_precision",
    "join_processes",
    "leave_processes",
    "load_cases",
    "prepared_cases",
    "pretrained_network",
    "require_gpus",
    "require_shares",
    "scales_loss",
    "shared_cases",
    "warmed_up",
]
