"""What a training needs of memory and disk, added up, and whether its cases are kept in memory or in a store on disk.

Bytes a voxel are peaks that were measured with MONAI 1.6.1 on generated CT (`bench/store.py` prints them, and
`tests/components/test_preparing_memory.py` holds that of preparing).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.common.memory import memory_here
from segpipe.common.nifti import read_header
from segpipe.data import Fingerprint, Manifest
from segpipe.errors import UsageError
from segpipe.training.planning_rules import CROP_MARGIN, NetworkProfile, Rule, crop, profile_of

PROCESS = 700_000_000  # Python with PyTorch, MONAI and an optimiser of a small network
PREPARING = 28  # bytes a voxel, while a case is loaded, turned, resampled by slabs and checked
CROPPING = 13  # beside the case: what a crop about labels in memory copies and lists
STEP_SHARE = 0.5  # of all memory that this process may take, for a training step where nobody says
SHARE = 0.8  # of the memory that is free, the rest is left to others
STORED_LABEL = 0.25  # bytes a voxel, more than labels take

Grid = tuple[Sequence[int], Sequence[float]]
"""Shape (voxels) and spacing (mm) of a case."""


@dataclass(frozen=True)
class Needs:
    """What a training needs, in bytes.

    Attributes:
        process: whatever is trained.
        cases: all prepared cases in memory.
        preparing: a case while it is prepared.
        threads: that prepare a case each, where all are kept in memory; a store prepares one at a time.
        step: a training step.
        validation: the largest case with its scores.
        disk: all prepared cases in a store, at most.
    """

    process: int
    cases: int
    preparing: int
    threads: int
    step: int
    validation: int
    disk: int

    @property
    def in_memory(self) -> int:
        """Of a training whose cases are in memory."""
        return self.process + self.cases + max(self.threads * self.preparing, self.step + self.validation)

    @property
    def from_store(self) -> int:
        """Of a training whose cases are in a store."""
        return self.process + max(self.preparing, self.step + self.validation)


def needs_of(
    grids: Iterable[Grid],
    spacing_mm: Sequence[float] | None,
    channels: int,
    scores: int,
    step: int,
    threads: int,
    boxes_mm: Iterable[Sequence[float]] | None = None,
) -> Needs:
    """Return what a training needs.

    A case is read and resampled whole; where it is then cut, what is left is kept, trained on and validated.

    Args:
        grids: of the cases, trained and validated.
        spacing_mm: they are resampled to; None leaves theirs.
        channels: of an image.
        scores: channels of the network's output.
        step: bytes of a training step.
        threads: that prepare cases which are kept in memory.
        boxes_mm: edges of what each case is cut to; None leaves them whole.
    """
    grids = list(grids)
    shapes = [_resampled(shape, spacing, spacing_mm) for shape, spacing in grids]
    read = max(*(math.prod(shape) for shape in shapes), *(math.prod(shape) for shape, _ in grids))
    if boxes_mm is not None:
        edges = [spacing_mm or spacing for _, spacing in grids]
        shapes = [_cut(*each) for each in zip(shapes, boxes_mm, edges, strict=True)]
    voxels = [math.prod(shape) for shape in shapes]
    largest, case = max(voxels), 4 * (channels + 1)
    return Needs(
        process=PROCESS,
        cases=case * sum(voxels) + CROPPING * largest,
        preparing=PREPARING * read * (channels + 1) // 2,
        threads=threads,
        step=step,
        validation=(case + 8 * scores + 12) * largest,
        disk=int((2 * channels + STORED_LABEL) * sum(voxels)),
    )


def _resampled(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float] | None) -> list[int]:
    scaled = zip(shape, spacing, target or spacing, strict=True)
    return [max(1, math.ceil(round(size * edge / to, 3))) for size, edge, to in scaled]


def _cut(shape: Sequence[int], box_mm: Sequence[float], spacing_mm: Sequence[float]) -> list[int]:
    """Return the shape of a box with the margin around it, within the case's own."""
    inner = _resampled([1, 1, 1], box_mm, spacing_mm)
    return [min(size, inside + 2 * CROP_MARGIN) for size, inside in zip(shape, inner, strict=True)]


def fits(needs: Needs, free: int) -> bool:
    """Return whether the cases fit into memory beside all else."""
    return needs.in_memory <= SHARE * free


def step_memory() -> int:
    """Return the bytes that a training step may use where nobody says: half of the machine's, or its container's.

    Rounded to 100 MB, so that it is the same again after an update of the system.
    """
    return max(1, round(STEP_SHARE * memory_here().total / 1e8)) * 10**8


def parse_memory(amount: str | int) -> int:
    """Return the bytes of an amount such as ``8G`` or ``600M``, in units of 1000.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(amount).strip(), re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise UsageError("not an amount of memory", found=amount, expected="a number and a unit, e.g. 8G or 600M")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))


def memory_rules(needs: Needs, free: int, disk: int | None) -> list[Rule]:
    """Decide whether cases are kept in memory or in a store, and say what all of it takes.

    Args:
        needs: of the training.
        free: bytes of memory that are free.
        disk: bytes that are free where the store would be, None where nobody can tell.
    """
    beside = needs.in_memory - needs.cases
    rate = min(1.0, max(0, math.floor(100 * (SHARE * free - beside) / needs.cases)) / 100)
    stored = rate < 1 and (disk is None or needs.disk <= disk)
    parts = {"cases": needs.cases, "preparing": needs.preparing, "step": needs.step, "validation": needs.validation}
    all_of_it = {"memory": needs.in_memory, "memory_from_store": needs.from_store, "store": needs.disk}
    takes, space = in_gb(needs.in_memory), "" if disk is None else f", of {in_gb(disk)} that are free"
    measured = "peaks measured with MONAI 1.6.1; MONAI CacheDataset"
    if not stored and rate < 1:
        why = f"a store of the other cases takes up to {in_gb(needs.disk)}{space}: give --store FOLDER on a larger disk"
    elif stored:
        why = f"memory does not hold the cases: they are kept on disk, where they take up to {in_gb(needs.disk)}{space}"
    else:
        why = "memory holds the cases"
    return [
        Rule(
            "memory_gb",
            {name: float(f"{value / 1e9:.2g}") for name, value in (parts | all_of_it).items()},
            f"with the cases in memory {takes}, from a store {in_gb(needs.from_store)}; {in_gb(free)} are free to this "
            f"process, and a fifth of it is left alone",
            measured,
        ),
        Rule(
            "cache_rate",
            rate,
            "the share of the cases, prepared as float32 image and label, that memory holds beside all else"
            + (", for --store none" if stored else ""),
            measured,
        ),
        Rule("store", "default" if stored else None, why, "docs: prepared cases, in memory or in a store"),
    ]


def too_large(needs: Needs, free: int) -> str | None:
    """Return a note where not even a store keeps a training within the memory that is free."""
    if needs.from_store <= free:
        return None
    words = (
        f"the training takes about {in_gb(needs.from_store)} of memory even from a store, and {in_gb(free)} are free"
    )
    large = needs.process + max(needs.preparing, needs.validation) > free
    return f"{words}: {'the largest case alone takes that' if large else 'give less for a step with --memory'}"


def in_gb(size: int) -> str:
    """Return bytes in words, such as ``1.8 GB``."""
    return f"{size / 1e9:.2g} GB" if size < 100e9 else f"{size / 1e9:,.0f} GB"


def needs_of_plan(
    fingerprint: Fingerprint,
    manifest: Manifest,
    spacing_mm: Sequence[float],
    patch: Sequence[int],
    batch: int,
    profile: NetworkProfile,
    device: str,
    threads: int,
) -> Needs:
    """Return what a training needs that is planned, of each of its processes; its cases are cut as the plan cuts them.

    Args:
        fingerprint: of the training cases.
        manifest: names of channels and labels.
        spacing_mm: that cases are resampled to.
        patch, batch: voxels of a patch, and patches of a step of one process.
        profile: of the network.
        device: to train on.
        threads: of each process.
    """
    grids = [(case.shape_ras, case.spacing_ras_mm) for case in fingerprint.cases]
    boxes = [case.positive_box_ras_mm or () for case in fingerprint.cases] if crop(fingerprint).value else None
    step = _step_bytes(batch, patch, profile, device)
    return needs_of(grids, spacing_mm, manifest.n_channels, len(manifest.labels), step, threads, boxes)


def needs_of_run(config: dict[str, Any], manifest: Manifest, root: Path) -> Needs:
    """Return what the run of a config needs, of each of its processes, by the headers of its cases' files.

    What a case is cut to is not in a header, so it counts as it is before.

    Args:
        config: composed.
        manifest, root: the data set, and the folder that its paths start from.

    Raises:
        DataError: a header cannot be used.
        UsageError: a file is not there.
    """
    headers = [read_header(root / case.images[0]) for case in manifest.training]
    steps = [item for item in config["deterministic_transforms"] if isinstance(item, dict)]
    pixdim = [item["pixdim"] for item in steps if "pixdim" in item]
    profile = profile_of(config["network_name"], config["patch_divisor"])
    share = math.ceil(config["batch_size"] / config["processes"])
    step = _step_bytes(share, config["patch_size"], profile, str(config["device"]))
    grids = [(header.shape[:3], header.spacing_mm[:3]) for header in headers]
    spacing, threads = pixdim[0] if pixdim else None, config["threads"]
    return needs_of(grids, spacing, config["in_channels"], config["out_channels"], step, threads)


def _step_bytes(batch: int, patch: Sequence[int], profile: NetworkProfile, device: str) -> int:
    """Return what a step takes of the machine's memory: nothing where a GPU has its own."""
    return 0 if "cuda" in device else batch * math.prod(patch) * profile.bytes_per_voxel
