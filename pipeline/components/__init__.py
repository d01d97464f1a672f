"""The only names of ours that a config may target; a stable public API.

Everything here is constructed from a MONAI config, so arguments are plain values or other components.
"""

from pipeline.components.cases import CaseTransforms, ValidateCased, load_cases
from pipeline.components.checkpoint import RunCheckpoint
from pipeline.components.handlers import EpochSeed, GradientClip, StopOnNonFinite
from pipeline.components.losses import DeepSupervision, DiceCELoss, FocalTverskyLoss, TverskyLoss
from pipeline.components.metrics import CaseDice
from pipeline.components.networks import UNetPlusPlus
from pipeline.components.runlog import RunLog

__all__ = [
    "CaseDice",
    "CaseTransforms",
    "DeepSupervision",
    "DiceCELoss",
    "EpochSeed",
    "FocalTverskyLoss",
    "GradientClip",
    "RunCheckpoint",
    "RunLog",
    "StopOnNonFinite",
    "TverskyLoss",
    "UNetPlusPlus",
    "ValidateCased",
    "load_cases",
]
