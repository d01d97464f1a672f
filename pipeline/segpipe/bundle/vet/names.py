"""The classes and functions that a bundle may use, one by one, and what a name in a bundle leads to.

What is listed, under the module where MONAI or torch documents it, takes plain values, or other components, and neither
runs code that a text names, nor starts programs, nor opens connections, nor reads or writes elsewhere, with arguments
of the kinds that it may be given (`arguments`).

Names are resolved as MONAI and `eval` would, without importing anything new. MONAI looks a target up among the classes
and functions of its own modules first, then takes it as a dotted path or a builtin
(`monai.bundle.ConfigComponent.resolve_module_name`, `pydoc.locate`). A name is admitted for the object that it leads
to: `torch.os.system` leads to `posix.system`, whatever stands before it.
"""

from __future__ import annotations

import builtins
import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

ALLOWED: Mapping[str, str] = {
    "builtins": """
        abs all any bool dict enumerate float int len list max min range reversed round set slice sorted str sum tuple
        zip
    """,
    "monai.transforms": """
        Activations Activationsd AdjustContrastd AsDiscrete AsDiscreted BorderPadd CastToTyped CenterSpatialCrop
        CenterSpatialCropd ClassesToIndicesd Compose ConcatItemsd ConvertToMultiChannelBasedOnBratsClassesd CopyItemsd
        CropForeground CropForegroundd DeleteItemsd DivisiblePad DivisiblePadd EnsureChannelFirst EnsureChannelFirstd
        EnsureType EnsureTyped FgBgToIndicesd FillHoles FillHolesd Flip Flipd FromMetaTensord GaussianSmoothd Identity
        Identityd Invertd KeepLargestConnectedComponent KeepLargestConnectedComponentd LabelFilter LabelFilterd
        LoadImage LoadImaged MapLabelValued MaskIntensityd MeanEnsembled NormalizeIntensity NormalizeIntensityd OneOf
        Orientation Orientationd Rand2DElasticd Rand3DElasticd RandAdjustContrastd RandAffined RandAxisFlipd
        RandBiasFieldd RandCoarseDropoutd RandCropByLabelClassesd RandCropByPosNegLabeld RandFlipd RandGaussianNoised
        RandGaussianSharpend RandGaussianSmoothd RandGibbsNoised RandHistogramShiftd RandomOrder RandRicianNoised
        RandRotate90d RandRotated RandScaleIntensityd RandShiftIntensityd RandSimulateLowResolutiond RandSpatialCropd
        RandSpatialCropSamplesd RandStdShiftIntensityd RandWeightedCropd RandZoomd RemoveSmallObjects
        RemoveSmallObjectsd ResampleToMatchd Resize Resized ResizeWithPadOrCrop ResizeWithPadOrCropd Rotate90d Rotated
        SaveImage SaveImaged ScaleIntensity ScaleIntensityd ScaleIntensityRange ScaleIntensityRanged
        ScaleIntensityRangePercentilesd SelectItemsd ShiftIntensityd Spacing Spacingd SpatialCropd SpatialPad
        SpatialPadd SplitDimd SqueezeDim SqueezeDimd ThresholdIntensityd ToDeviced ToMetaTensord ToTensor ToTensord
        Transposed VoteEnsembled Zoom Zoomd
    """,
    "monai.data": """
        CacheDataset DataLoader Dataset decollate_batch list_data_collate load_decathlon_datalist
        pad_list_data_collate partition_dataset ThreadDataLoader
    """,
    "monai.engines": "EnsembleEvaluator SupervisedEvaluator SupervisedTrainer",
    "monai.handlers": """
        CheckpointLoader CheckpointSaver ConfusionMatrix EarlyStopHandler from_engine HausdorffDistance
        IgniteMetricHandler LrScheduleHandler MeanDice MeanIoUHandler MetricsSaver PostProcessing StatsHandler
        SurfaceDistance TensorBoardImageHandler TensorBoardStatsHandler ValidationHandler
    """,
    "monai.inferers": """
        SimpleInferer SliceInferer sliding_window_inference SlidingWindowInferer SlidingWindowInfererAdapt
    """,
    "monai.losses": """
        AsymmetricUnifiedFocalLoss DeepSupervisionLoss DiceCELoss DiceFocalLoss DiceLoss FocalLoss
        GeneralizedDiceFocalLoss GeneralizedDiceLoss GeneralizedWassersteinDiceLoss HausdorffDTLoss LogHausdorffDTLoss
        MaskedDiceLoss NACLLoss SoftclDiceLoss SoftDiceclDiceLoss TverskyLoss
    """,
    "monai.metrics": """
        ConfusionMatrixMetric DiceHelper DiceMetric GeneralizedDiceScore HausdorffDistanceMetric MeanIoU
        SurfaceDiceMetric SurfaceDistanceMetric
    """,
    "monai.networks": "one_hot",
    "monai.networks.nets": """
        AttentionUnet BasicUNet BasicUNetPlusPlus DynUNet FlexibleUNet HighResNet MedNeXt SegResNet SegResNetDS
        SegResNetDS2 SegResNetVAE SwinUNETR UNet UNETR VNet
    """,
    "monai.optimizers": "generate_param_groups Novograd WarmupCosineSchedule",
    "monai.utils": "convert_to_dst_type ensure_tuple set_determinism",
    "ignite.metrics": "Accuracy Average Loss RunningAverage",
    "numpy": """
        array asarray clip float32 float64 int16 int32 int64 max mean min ones prod sum uint16 uint8 unique zeros
    """,
    "torch": """
        argmax as_tensor cat clamp device max mean min no_grad ones prod set_num_threads sigmoid softmax stack sum
        tensor where zeros
    """,
    "torch.cuda": "device_count is_available",
    "torch.nn": """
        BCEWithLogitsLoss Conv2d Conv3d CrossEntropyLoss Identity InstanceNorm3d LeakyReLU Module.eval Module.to
        Module.train PReLU ReLU Sequential Sigmoid Softmax
    """,
    "torch.optim": "Adam AdamW NAdam RAdam SGD",
    "torch.optim.lr_scheduler": """
        CosineAnnealingLR CosineAnnealingWarmRestarts ExponentialLR LinearLR MultiStepLR PolynomialLR
        ReduceLROnPlateau SequentialLR StepLR
    """,
    "torch.utils.data": "DataLoader RandomSampler Subset",
    "torch.utils.data.datapipes.iter": "FileLister",
    "segpipe.components": """
        AnnotatedToIndicesd averaged_network batch_of_process BatchAffine BatchAugmentation BatchBlur
        BatchBrightness BatchContrast BatchGamma BatchLowResolution BatchMirror BatchNoise CalibrationError CaseDice
        CaseMetric CaseTransforms ComboLoss data_parallel DeepSupervision DiceCELoss DiceFocalLoss DiceLoss
        DicomReader DrawnCases EpochSampler EpochSeed FastPrediction FocalLoss FocalTverskyLoss GeneralisedDiceLoss
        GradientClip HausdorffLoss in_precision JaccardLoss load_cases LossSchedule LovaszHinge LovaszSoftmax
        MarkUnannotatedd PooledMetric prepared_cases pretrained_network RunCheckpoint RunLog scales_loss
        shared_cases SliceDynUNet SliceUNet SoftDice StopOnNonFinite StreamingSlidingWindowInferer TverskyLoss
        UNetPlusPlus ValidateCased warmed_up WeightAveraging
    """,
}

_METHODS = """
    append copy count cpu cuda detach endswith eval extend float get half index int item items join keys
    long lower lstrip max mean min parameters removeprefix removesuffix replace rsplit rstrip run size
    split squeeze startswith state_dict strip sum to tolist train unsqueeze upper values
"""
METHODS = frozenset(_METHODS.split())
ATTRIBUTES = frozenset(("device", "dtype", "ndim", "shape"))


GLOBALS = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}  # of every MONAI expression
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)
_ABSENT = object()


@dataclass(frozen=True)
class Resolved:
    """What a name leads to.

    Attributes:
        name: where it is defined, or the name as written where nothing of that name is loaded.
        admitted: it is listed, or allowed by the user.
        reason: why it is not admitted.
        listed: it is on the list, so that its arguments are judged.
        is_value: it is a number or a type of numbers, and nothing that can be called.
    """

    name: str
    admitted: bool
    reason: str = ""
    listed: bool = False
    is_value: bool = False


@dataclass(eq=False)
class Names:
    """The listed names, and those that the user allows.

    Attributes:
        allow: names admitted beside the list; each stands for itself alone.
        admitted: names of ``allow`` that were met.
        aliases: what the imports of a bundle add to the names of its expressions: name there to dotted name.
    """

    allow: Collection[str] = ()
    admitted: set[str] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)

    def allows(self, *names: str) -> bool:
        """Return whether the user allows something by any of its names."""
        met = set(names).intersection(self.allow)
        self.admitted |= met
        return bool(met)

    def add_import(self, alias: str, name: str) -> None:
        """Let a name of the expressions stand for what was imported; for nothing where two imports differ."""
        if self.aliases.setdefault(alias, name) != name:
            self.aliases[alias] = "two different imports"

    def target(self, text: str) -> Resolved:
        """Return what a `_target_` leads to."""
        if not _NAME.fullmatch(text) or "__" in text:
            return Resolved(text, self.allows(text), "not a plain dotted name")
        modules = _modules_of()(text)
        if modules is None:
            return self._judge(text)
        modules = [modules] if isinstance(modules, str) else modules
        leads_to = [self._judge(f"{module}.{text}", text) for module in modules]
        return next((resolved for resolved in leads_to if not resolved.admitted), leads_to[0])

    def dotted(self, text: str) -> Resolved:
        """Return what a dotted name in an expression leads to, from a known module, an import or a builtin."""
        first, _, rest = text.partition(".")
        root = {**GLOBALS, **self.aliases}.get(first)
        if root is None and not hasattr(builtins, first):
            return Resolved(text, self.allows(text), "unknown name")
        return self._judge(".".join(part for part in (root or f"builtins.{first}", rest) if part))

    def _judge(self, path: str, written: str = "") -> Resolved:
        known = _listed()
        thing = _walk(path)
        if thing is _ABSENT:
            thing = _walk(f"builtins.{path}")
        path = path.removeprefix("builtins.")
        listed = known.get(id(thing))
        if listed is not None:
            return Resolved(listed, True, listed=True)
        if _is_value(thing):
            return Resolved(path, True, is_value=True)
        name = path if thing is _ABSENT else _definition(thing, path)
        if self.allows(name, path, f"builtins.{path}", written):
            return Resolved(name, True)
        what = f"the module {name} itself" if inspect.ismodule(thing) else name
        return Resolved(name, False, f"{what} is not on the list of admitted names")


@cache
def _listed() -> dict[int, str]:
    """Return the identity of each listed object with its documented name."""
    found: dict[int, str] = {}
    for module, names in ALLOWED.items():
        import_module(module)
        for name in names.split():
            thing = _walk(f"{module}.{name}")
            if thing is not _ABSENT:
                found.setdefault(id(thing), f"{module}.{name}".removeprefix("builtins."))
    return found


@cache
def signature_of(listed: str) -> inspect.Signature | None:
    """Return the signature of a listed name, None where Python cannot tell it, as of functions written in C."""
    _listed()
    try:
        return inspect.signature(_walk(listed if "." in listed else f"builtins.{listed}"))
    except (TypeError, ValueError):
        return None


@cache
def _modules_of() -> Callable[[str], list[str] | str | None]:
    """Return MONAI's own search for a short name among its classes and functions, once it is loaded."""
    _listed()
    from monai.bundle import ComponentLocator

    found: Callable[[str], list[str] | str | None] = ComponentLocator().get_component_module_name
    return found


def _walk(path: str) -> Any:
    """Return the object of a dotted path among loaded modules; no import, and no module's `__getattr__` is run."""
    parts = path.split(".")
    thing: Any = sys.modules.get(parts[0], _ABSENT)
    for end, part in enumerate(parts[1:], 2):
        if thing is _ABSENT:
            break
        module = sys.modules.get(".".join(parts[:end])) if inspect.ismodule(thing) else None
        thing = module or inspect.getattr_static(thing, part, _ABSENT)
        if isinstance(thing, (staticmethod, classmethod)):
            thing = thing.__func__
    return thing


def _definition(thing: Any, path: str) -> str:
    if inspect.ismodule(thing):
        return str(thing.__name__)
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    return f"{module}.{name}".removeprefix("builtins.") if isinstance(module, str) and isinstance(name, str) else path


def _is_value(thing: Any) -> bool:
    """Return whether it is a number or a type of numbers, such as `torch.float32` and `np.pi`."""
    return type(thing) in (int, float, bool) or f"{type(thing).__module__}.{type(thing).__name__}" == "torch.dtype"
