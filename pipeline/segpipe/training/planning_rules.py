"""The rules of planning, each a small function of the fingerprint: a value, why, and who says so.

They follow nnU-Net: Isensee et al., Nat Methods 18:203-211, 2021, doi:10.1038/s41592-020-01008-z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segpipe.common.channel_names import is_mask
from segpipe.data import CaseFingerprint, Fingerprint
from segpipe.errors import DataError, UsageError
from segpipe.training.config_checks import divisor_words, divisors_of

NNUNET = "nnU-Net, Isensee 2021"
ANISOTROPY = 3.0  # spacing and size ratio beyond which nnU-Net treats one axis apart
NONZERO_SHARE = 0.75  # below, a quarter or more of the image is empty frame (nnU-Net's crop rule)
LARGEST_PATCH = 128**3  # voxels; about what nnU-Net's full-resolution networks see
CROPPED_SHARE = 0.75  # of a case that is left; with more of it a cut is not worth its step
CROP_MARGIN = 2  # voxels around, which linear interpolation may reach
MIN_BATCH, MAX_BATCH = 2, 4
MIN_SLICES, MAX_SLICES = 4, 16  # of a network of slices, whose patches hold less; nnU-Net's have 12 of 512 x 512
BATCH_SHARE = 0.05  # of all voxels of the dataset in one batch, at most (nnU-Net)
SMALLEST_FEATURE_MAP = 4  # voxels along an axis at the bottom of the network (nnU-Net)
FIRST_CHANNELS, MOST_CHANNELS = 16, 320


Divisor = int | tuple[int, int, int]  # of all axes, or one an axis


@dataclass(frozen=True)
class NetworkProfile:
    """What training a network needs, by voxel of the patch.

    Attributes:
        divisor: what the axes of the patch must be multiples of; the fragment's ``patch_divisor``.
        bytes_per_voxel: peak memory of a step per voxel of the batch.
        voxels_per_second: trained voxels per second and core.
        measured: whether these two are measured, or assumed to be as for a costly network.
        sliced_axis: 0 to 2 for a network of slices, along which a patch has one voxel; None for others.
    """

    divisor: Divisor
    bytes_per_voxel: int
    voxels_per_second: float
    measured: bool
    sliced_axis: int | None = None

    @property
    def batches(self) -> tuple[int, int]:
        """Return the fewest and the most patches of a step."""
        return (MIN_BATCH, MAX_BATCH) if self.sliced_axis is None else (MIN_SLICES, MAX_SLICES)

    @property
    def smallest(self) -> list[int]:
        """Return the smallest patch: instance normalisation needs more than one voxel at the bottom."""
        smallest = [2 * divisor for divisor in divisors_of(self.divisor)]
        return self.within_slice(smallest)

    def within_slice(self, patch: Sequence[int]) -> list[int]:
        """Return a patch with one voxel along the axis that is sliced, if one is."""
        return [1 if axis == self.sliced_axis else size for axis, size in enumerate(patch)]


# By the word of a shipped fragment: bytes a voxel, voxels a second; one training step, DiceCE, float32, CPU.
MEASURED = {
    "unet": (500, 5e5),
    "unet_fine": (1100, 1.7e5),
    "basic_unet": (1200, 1.4e5),
    "resunet": (600, 5e5),
    "unetpp": (1900, 5e4),
    "attention_unet": (1400, 1.2e5),
    "unet_resnet18": (1500, 1.2e5),
    "unet_resnet34": (2300, 1e5),
    "dynunet": (1300, 1e5),
    "dynunet_res": (1400, 1e5),
    "segresnet": (1500, 9e4),
    "swin_unetr": (3700, 3e4),
    "unet_2d": (1100, 3e5),
    "dynunet_2d": (3400, 5.7e4),
}
ASSUMED = (4000, 3e4)


def profile_of(network: str, divisor: object) -> NetworkProfile:
    """Return what a network needs, by its word or path and its fragment's ``patch_divisor``.

    Raises:
        UsageError: the divisor is neither a positive whole number nor three of them.
    """
    axes: list[Any] = list(divisor) if isinstance(divisor, list | tuple) else [divisor] * 3
    if len(axes) != 3 or any(type(each) is not int or each < 1 for each in axes):
        expected = "1, 2, 4, ... or one such number an axis"
        raise UsageError("patch_divisor of the network cannot be used", found=divisor, expected=expected)
    given = divisor if isinstance(divisor, int) else divisors_of(axes)
    return NetworkProfile(given, *MEASURED.get(network, ASSUMED), measured=network in MEASURED)


@dataclass(frozen=True)
class Rule:
    """What one rule decided, why, and who says so."""

    name: str
    value: Any
    why: str
    source: str


def orientation(fingerprint: Fingerprint) -> Rule:
    """Turn every image to RAS before anything else."""
    found = ", ".join(f"{count} {code}" for code, count in fingerprint.summary.orientations.items())
    return Rule(
        "orientation",
        "RAS",
        f"axes run to the right, front and head whatever the file says (here: {found}); only turned, never resampled",
        "NIfTI-1 standard; nibabel",
    )


def target_spacing(fingerprint: Fingerprint, by_slices: bool = False) -> Rule:
    """Take the median spacing per axis; the 10th percentile on a single coarse axis of thin stacks.

    Args:
        fingerprint: of the training cases.
        by_slices: for a network of slices, which finer ones across would show nothing new: the median on that axis too.
    """
    spacings = np.array([case.spacing_ras_mm for case in fingerprint.cases])
    shape = np.median([case.shape_ras for case in fingerprint.cases], axis=0)
    target = np.median(spacings, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    finest = float(target[others].max())
    why = "the median over the training cases, per axis: resamples the fewest of them"
    if not by_slices and target[worst] > ANISOTROPY * finest and shape[worst] * ANISOTROPY < shape[others].min():
        target[worst] = max(float(np.percentile(spacings[:, worst], 10)), finest)
        why = "the median in plane; across the thick slices the 10th percentile, for the finer scans' detail"
    return Rule("spacing_mm", [round(float(value), 4) for value in target], why, NNUNET)


def crop(fingerprint: Fingerprint) -> Rule:
    """Cut images to what is above 0 where that leaves out a quarter or more of the voxels, and no label in any case."""
    boxes = [case.positive_box_ras_mm for case in fingerprint.cases]
    known = [box for box in boxes if box is not None]
    if len(known) < len(boxes):
        return Rule("crop", False, "not cut: labels lie outside of what is above 0, or nobody looked", NNUNET)
    whole = [math.prod(extent_mm(case)) for case in fingerprint.cases]
    share = float(np.median([math.prod(box) / of for box, of in zip(known, whole, strict=True)]))
    pays = share < CROPPED_SHARE
    why = f"the box around all that is above 0 holds {share:.0%} of a case, and every label"
    return Rule("crop", pays, f"{why}: {'the rest is cut off' if pays else 'too much of it to be worth a cut'}", NNUNET)


def extent_mm(case: CaseFingerprint) -> list[float]:
    """Return the edges of a case's volume along the axes of RAS."""
    return [size * edge for size, edge in zip(case.shape_ras, case.spacing_ras_mm, strict=True)]


def resampled_shape(fingerprint: Fingerprint, spacing_mm: list[float]) -> tuple[int, int, int]:
    """Return the median shape (RAS order) of the cases once they are on the target spacing, and cut as `crop` says."""
    cut = crop(fingerprint).value
    extents = np.array([case.positive_box_ras_mm if cut else extent_mm(case) for case in fingerprint.cases])
    shapes = extents / np.array(spacing_mm)
    x, y, z = (max(1, math.ceil(round(float(value), 3))) for value in np.median(shapes, axis=0))
    return x, y, z


def intensity(fingerprint: Fingerprint) -> Rule:
    """Clip and z-score CT by the dataset's foreground, and z-score anything else by case and channel.

    The value is one transform of the image; or, where CT or a mask stands beside other channels, the list of
    transforms that takes the channels apart, scales each as what it is, and puts them together again.

    Raises:
        DataError: a CT channel without foreground, or with a constant one.
    """
    channels = fingerprint.modality
    masks = [index for index, name in enumerate(channels) if is_mask(name)]
    of_ct = [index for index, name in enumerate(channels) if is_ct(name)]
    if len(channels) == 1:
        return Rule("intensity", *(_hounsfield(fingerprint, 0) if of_ct else _by_case(fingerprint, [0])), NNUNET)
    if not of_ct and not masks:
        return Rule("intensity", *_by_case(fingerprint, range(len(channels))), NNUNET)
    single = [f"image_{index}" for index in range(len(channels))]
    others = [index for index in range(len(channels)) if index not in (*of_ct, *masks)]
    steps, reasons = [], []
    for index in of_ct:
        step, why = _hounsfield(fingerprint, index)
        steps.append({**step, "keys": [single[index]]})
        reasons.append(f"channel {index}, {why}")
    if others:
        step, why = _by_case(fingerprint, others)
        steps.append({**step, "keys": [single[index] for index in others]})
        reasons.append(why)
    if masks:
        reasons.append(f"{' + '.join(channels[index] for index in masks)}: 0 and 1, left as they are")
    lenient = {"allow_missing_keys": True}
    split_and_joined = [
        {"_target_": "SplitDimd", "keys": ["image"], **lenient},
        *steps,
        {"_target_": "ConcatItemsd", "keys": single, "name": "image", **lenient},
        {"_target_": "DeleteItemsd", "keys": single},
    ]
    return Rule("intensity", split_and_joined, f"each channel as what it is: {'; '.join(reasons)}", NNUNET)


def is_ct(channel: str) -> bool:
    """Return whether a channel's name says that its values are HU."""
    return channel.upper() == "CT" or channel.upper().startswith(("CT_", "CT-", "CT "))


def _hounsfield(fingerprint: Fingerprint, channel: int) -> tuple[dict[str, Any], str]:
    inside = fingerprint.summary.foreground[channel]
    if inside is None or inside.std == 0 or inside.percentiles[0] >= inside.percentiles[-1]:
        raise DataError(
            "the foreground has no intensities to scale by",
            found="no foreground" if inside is None else "constant foreground",
            hint="look at the dataset with `segpipe check`",
        )
    low, high = _significant(inside.percentiles[0]), _significant(inside.percentiles[-1])
    value = {
        "_target_": "ScaleIntensityRanged",
        "keys": ["image"],
        "a_min": low,
        "a_max": high,
        "b_min": _significant((low - inside.mean) / inside.std),
        "b_max": _significant((high - inside.mean) / inside.std),
        "clip": True,
        "allow_missing_keys": True,
    }
    return value, (
        "CT: HU mean the same in every scan, so all are clipped to the 0.5 and 99.5 percentiles of the "
        f"labelled voxels and shifted by their mean {inside.mean:.4g}, divided by their "
        f"deviation {inside.std:.4g}"
    )


def _by_case(fingerprint: Fingerprint, channels: Sequence[int]) -> tuple[dict[str, Any], str]:
    shares = [[case.channels[index].nonzero_fraction for index in channels] for case in fingerprint.cases]
    filled = float(np.median(shares))
    nonzero = filled < NONZERO_SHARE
    value = {
        "_target_": "NormalizeIntensityd",
        "keys": ["image"],
        "nonzero": nonzero,
        "channel_wise": True,
        "allow_missing_keys": True,
    }
    return value, (
        f"{' + '.join(fingerprint.modality[index] for index in channels)}: no common scale to go by, so each channel "
        f"of each case gets mean 0 and deviation 1, over {'its non-zero' if nonzero else 'all'} voxels "
        f"({filled:.0%} are not 0)"
    )


def patch_size(shape: tuple[int, int, int], profile: NetworkProfile, memory_bytes: int) -> Rule:
    """Take the median image whole if it fits, else shorten the longest axis until two patches fit.

    Raises:
        UsageError: the memory does not hold two of the smallest patch.
    """
    divisors, smallest, fewest = divisors_of(profile.divisor), profile.smallest, profile.batches[0]
    whole = profile.within_slice(
        [
            max(least, divisor * math.ceil(size / divisor))
            for least, divisor, size in zip(smallest, divisors, shape, strict=True)
        ]
    )
    patch = list(whole)
    budget = min(LARGEST_PATCH, memory_bytes // (fewest * profile.bytes_per_voxel))
    while math.prod(patch) > budget:
        shrinkable = [axis for axis in range(3) if patch[axis] > smallest[axis]]
        if not shrinkable:
            raise UsageError(
                "the memory does not hold a training step",
                found=f"{memory_bytes / 1e9:.3g} GB",
                expected=f"at least {fewest * profile.bytes_per_voxel * math.prod(smallest) / 1e9:.3g} GB",
                hint="give more with --memory",
            )
        longest = max(shrinkable, key=lambda axis: (patch[axis] / shape[axis], patch[axis]))
        patch[longest] -= divisors[longest]
    size = "x".join(map(str, shape))
    what = "the median image" if profile.sliced_axis is None else "one slice of the median image"
    why = f"{what} ({size} at the target spacing) {'whole' if patch == whole else 'in parts'}"
    if patch != whole:
        limit = "at most 128^3 voxels at once" if budget == LARGEST_PATCH else f"{fewest} must fit the memory"
        why += f", with its proportions: {limit}"
    if not profile.measured:
        why += f" ({profile.bytes_per_voxel:,} bytes a voxel assumed, not measured for this network)"
    why += f"; multiples of {divisor_words(profile.divisor)}, which the network needs"
    return Rule("patch_size", patch, why, NNUNET)


def batch_size(
    fingerprint: Fingerprint, shape: tuple[int, int, int], patch: list[int], profile: NetworkProfile, memory_bytes: int
) -> Rule:
    """Take as many patches as the memory holds, within 2 and 4 (slices: 4 and 16), and 5 % of the dataset's voxels."""
    fewest, most = profile.batches
    fits = memory_bytes // (math.prod(patch) * profile.bytes_per_voxel)
    share = int(BATCH_SHARE * math.prod(shape) * fingerprint.summary.cases / math.prod(patch))
    return Rule(
        "batch_size",
        max(fewest, min(most, fits, share)),
        f"the memory holds {fits:,} patches, 5 % of the dataset are {share:,}; at least {fewest}, "
        f"and at most {most} because small batches make more steps of an epoch and generalise well",
        f"{NNUNET}; Masters & Luschi 2018, arXiv:1804.07612",
    )


def depth(patch: list[int], spacing_mm: list[float]) -> Rule:
    """Halve an axis while at least 4 voxels stay, and its voxels are not twice as long as elsewhere."""
    size, spacing, strides = list(map(float, patch)), list(spacing_mm), []
    while halved := halved_axes(size, spacing):
        step = [2 if axis in halved else 1 for axis in range(3)]
        strides.append(step)
        size = [value // by for value, by in zip(size, step, strict=True)]
        spacing = [value * by for value, by in zip(spacing, step, strict=True)]
    channels = [min(MOST_CHANNELS, FIRST_CHANNELS * 2**level) for level in range(len(strides) + 1)]
    return Rule(
        "depth",
        {"channels": channels, "strides": strides},
        f"halved until an axis has fewer than {2 * SMALLEST_FEATURE_MAP} voxels, coarse axes later; a "
        "suggestion for a network fragment of your own",
        NNUNET,
    )


def halved_axes(size: Sequence[float], spacing_mm: Sequence[float]) -> list[int]:
    """Return the axes along which a grid is halved next: those that keep 4 voxels, and whose voxels are not coarse."""
    long = [axis for axis in range(3) if size[axis] >= 2 * SMALLEST_FEATURE_MAP]
    finest = min((spacing_mm[axis] for axis in long), default=0.0)
    return [axis for axis in long if spacing_mm[axis] < 2 * finest]


def overlap() -> Rule:
    """Let windows overlap by half."""
    return Rule("overlap", 0.5, "sliding windows overlap by half, since borders are predicted worse", NNUNET)


def epoch_time(cases: int, patch: list[int], batch: int, profile: NetworkProfile, cores: int) -> Rule:
    """Estimate the training seconds of an epoch from the network's measured speed; a rough figure."""
    seconds = cases * math.prod(patch) / (profile.voxels_per_second * cores)
    return Rule(
        "epoch_seconds",
        float(f"{seconds:.2g}"),
        f"roughly, on CPU without validation: {math.ceil(cases / batch)} steps at "
        f"{profile.voxels_per_second:,.0f} voxels a second and core, {cores} cores; the first epoch shows the truth",
        "measured once on a two-core machine" if profile.measured else "assumed: this network was not measured",
    )


def _significant(value: float) -> float:
    return float(f"{value:.6g}")
