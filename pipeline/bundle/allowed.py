"""The classes and functions that a bundle may use, one by one, under the module where MONAI or torch documents them.

What is listed takes plain values, or other components, and neither runs code that a text names, nor starts programs,
nor opens connections. Arguments that would (`ARGUMENTS`) may only have the values listed with them. To read and
write data where the config says is what a bundle is for.
"""

from __future__ import annotations

from collections.abc import Mapping

ALLOWED: Mapping[str, str] = {
    "builtins": """
        abs all any bool dict enumerate float int len list max min range reversed round set slice sorted
        str sum tuple zip
    """,
    "monai.transforms": """
        Activations Activationsd AdjustContrastd AsDiscrete AsDiscreted BorderPadd CastToTyped
        CenterSpatialCrop CenterSpatialCropd Compose ConcatItemsd
        ConvertToMultiChannelBasedOnBratsClassesd CopyItemsd CropForeground CropForegroundd DeleteItemsd
        DivisiblePad DivisiblePadd EnsureChannelFirst EnsureChannelFirstd EnsureType EnsureTyped
        FgBgToIndicesd FillHoles FillHolesd Flip Flipd FromMetaTensord GaussianSmoothd Identity
        Identityd Invertd KeepLargestConnectedComponent KeepLargestConnectedComponentd LabelFilter
        LabelFilterd LoadImage LoadImaged MapLabelValued MaskIntensityd MeanEnsembled NormalizeIntensity
        NormalizeIntensityd OneOf Orientation Orientationd Rand2DElasticd Rand3DElasticd
        RandAdjustContrastd RandAffined RandAxisFlipd RandBiasFieldd RandCoarseDropoutd
        RandCropByLabelClassesd RandCropByPosNegLabeld RandFlipd RandGaussianNoised RandGaussianSharpend
        RandGaussianSmoothd RandGibbsNoised RandHistogramShiftd RandomOrder RandRicianNoised
        RandRotate90d RandRotated RandScaleIntensityd RandShiftIntensityd RandSimulateLowResolutiond
        RandSpatialCropd RandSpatialCropSamplesd RandStdShiftIntensityd RandWeightedCropd RandZoomd
        RemoveSmallObjects RemoveSmallObjectsd ResampleToMatchd Resize Resized ResizeWithPadOrCrop
        ResizeWithPadOrCropd Rotate90d Rotated SaveImage SaveImaged ScaleIntensity ScaleIntensityd
        ScaleIntensityRange ScaleIntensityRanged ScaleIntensityRangePercentilesd SelectItemsd
        ShiftIntensityd Spacing Spacingd SpatialCropd SpatialPad SpatialPadd SplitDimd SqueezeDim
        SqueezeDimd ThresholdIntensityd ToDeviced ToMetaTensord ToTensor ToTensord Transposed
        VoteEnsembled Zoom Zoomd
    """,
    "monai.data": """
        CacheDataset DataLoader Dataset decollate_batch list_data_collate load_decathlon_datalist
        pad_list_data_collate partition_dataset ThreadDataLoader
    """,
    "monai.engines": """
        EnsembleEvaluator SupervisedEvaluator SupervisedTrainer
    """,
    "monai.handlers": """
        CheckpointLoader CheckpointSaver ConfusionMatrix EarlyStopHandler from_engine HausdorffDistance
        IgniteMetricHandler LrScheduleHandler MeanDice MeanIoUHandler MetricsSaver PostProcessing
        StatsHandler SurfaceDistance TensorBoardImageHandler TensorBoardStatsHandler ValidationHandler
    """,
    "monai.inferers": """
        SimpleInferer SliceInferer sliding_window_inference SlidingWindowInferer
        SlidingWindowInfererAdapt
    """,
    "monai.losses": """
        AsymmetricUnifiedFocalLoss DeepSupervisionLoss DiceCELoss DiceFocalLoss DiceLoss FocalLoss
        GeneralizedDiceFocalLoss GeneralizedDiceLoss GeneralizedWassersteinDiceLoss HausdorffDTLoss
        LogHausdorffDTLoss MaskedDiceLoss NACLLoss SoftclDiceLoss SoftDiceclDiceLoss TverskyLoss
    """,
    "monai.metrics": """
        ConfusionMatrixMetric DiceHelper DiceMetric GeneralizedDiceScore HausdorffDistanceMetric MeanIoU
        SurfaceDiceMetric SurfaceDistanceMetric
    """,
    "monai.networks": """
        one_hot
    """,
    "monai.networks.nets": """
        AttentionUnet BasicUNet BasicUNetPlusPlus DynUNet FlexibleUNet HighResNet MedNeXt SegResNet
        SegResNetDS SegResNetDS2 SegResNetVAE SwinUNETR UNet UNETR VNet
    """,
    "monai.optimizers": """
        generate_param_groups Novograd WarmupCosineSchedule
    """,
    "monai.utils": """
        convert_to_dst_type ensure_tuple set_determinism
    """,
    "ignite.metrics": """
        Accuracy Average Loss RunningAverage
    """,
    "numpy": """
        array asarray clip float32 float64 int16 int32 int64 max mean min ones prod sum uint16 uint8
        unique zeros
    """,
    "torch": """
        argmax as_tensor cat clamp device max mean min no_grad ones prod set_num_threads sigmoid softmax
        stack sum tensor where zeros
    """,
    "torch.cuda": """
        device_count is_available
    """,
    "torch.nn": """
        BCEWithLogitsLoss Conv2d Conv3d CrossEntropyLoss Identity InstanceNorm3d LeakyReLU Module.eval
        Module.to Module.train PReLU ReLU Sequential Sigmoid Softmax
    """,
    "torch.optim": """
        Adam AdamW NAdam RAdam SGD
    """,
    "torch.optim.lr_scheduler": """
        CosineAnnealingLR CosineAnnealingWarmRestarts ExponentialLR LinearLR MultiStepLR PolynomialLR
        ReduceLROnPlateau SequentialLR StepLR
    """,
    "torch.utils.data": """
        DataLoader Subset
    """,
    "torch.utils.data.datapipes.iter": """
        FileLister
    """,
    "pipeline.components": """
        CalibrationError CaseDice CaseMetric CaseTransforms ComboLoss DeepSupervision DiceCELoss
        DiceFocalLoss DiceLoss DicomReader EpochSeed FastPrediction FocalLoss FocalTverskyLoss
        GeneralisedDiceLoss GradientClip HausdorffLoss JaccardLoss load_cases LossSchedule LovaszHinge
        LovaszSoftmax PooledMetric RunCheckpoint RunLog SoftDice StopOnNonFinite
        StreamingSlidingWindowInferer TverskyLoss UNetPlusPlus ValidateCased
    """,
}

ARGUMENTS: Mapping[str, tuple[object, ...]] = {
    # MONAI imports and calls whatever these two name
    "reader": (None, "NibabelReader", "ITKReader", "PydicomReader", "NrrdReader", "PILReader"),
    "writer": (None, "NibabelWriter", "ITKWriter", "PILWriter"),
    "allow_pickle": (False,),
    "weights_only": (True,),
    "pretrained": (None, False),  # weights from the network
    "_debug_": (None,),
}
BY_KEYWORD = (
    "LoadImaged",
    "LoadImage",
    "SaveImaged",
    "SaveImage",
)  # of monai.transforms: they take such arguments

_METHODS = """
    append copy count cpu cuda detach endswith eval extend float get half index int item items join keys
    long lower lstrip max mean min parameters removeprefix removesuffix replace rsplit rstrip run size
    split squeeze startswith state_dict strip sum to tolist train unsqueeze upper values
"""
METHODS = frozenset(_METHODS.split())
ATTRIBUTES = frozenset(("device", "dtype", "ndim", "shape"))
