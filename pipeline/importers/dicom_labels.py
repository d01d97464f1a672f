"""Which labels belong to which volume in a tree of DICOM files, told by what they refer to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.dicom import Series, scan
from pipeline.dicom.labels import LabelFile, may_hold_labels, open_labels
from pipeline.errors import DataError
from pipeline.files import sha256_of


@dataclass(frozen=True)
class LabelledSeries:
    """A volume and every SEG and RTSTRUCT that refers to it, copies left out."""

    series: Series
    labels: tuple[LabelFile, ...]


@dataclass
class DicomTree:
    """The series of a tree by whether labels refer to them.

    Attributes:
        root: the tree.
        labelled: loaded or refused.
        unlabelled: loaded or refused.
        faults: label files that belong to none, or to several, by their path below the root, with the reason.
        elsewhere: number of label files that belong to series of a modality that is not wanted.
    """

    root: Path
    labelled: list[LabelledSeries] = field(default_factory=list)
    unlabelled: list[Series] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    elsewhere: int = 0

    def names(self) -> Counter[str]:
        """Names of the regions and segments, free text, and in how many of the files each is."""
        return Counter(name for each in self.labelled for file in each.labels for name in set(file.names))


def find_labelled(
    root: Path,
    modalities: Collection[str] = (),
    progress: Callable[[int, int], object] | None = None,
) -> DicomTree:
    """Scan a tree and match labels to series.

    A file belongs to the series whose images it names; where none of these is in the tree, to the series whose UID it
    names; where it names neither, to the only series in its frame of reference.

    Args:
        root: the tree.
        modalities: only series of these (``CT``, ``MR``, ...).
        progress: called with the number of files read and of all files.

    Raises:
        UsageError: no such folder.
        DataError: no DICOM series.
    """
    found = scan(root, progress=progress)
    if not found.series:
        raise DataError(
            "there is no DICOM series", path=root, found=f"{len(found.passed_over)} other files",
            hint="`segpipe scan` lists them",
        )  # fmt: skip
    tree = DicomTree(root)
    wanted = [series for series in found.series if not modalities or series.modality in modalities]
    files: dict[str, list[LabelFile]] = defaultdict(list)
    for path in [passed.path for passed in found.passed_over if may_hold_labels(passed)]:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        try:
            labels = open_labels(path)
        except DataError as error:
            tree.faults[name] = error.sentence(root).removeprefix(f"{name}: ")
            continue
        everywhere = _referred(labels, found.series)
        here = [series for series in everywhere if series in wanted]
        if len(here) == 1:
            files[here[0].case_id].append(labels)
        elif here:
            ids = ", ".join(series.case_id for series in here)
            tree.faults[name] = (
                f"it refers to {len(here)} volumes: {ids}; choose by --modality, or remove the others"
            )
        elif everywhere:
            tree.elsewhere += 1
        else:
            tree.faults[name] = "the series that it refers to is not here; add it, or remove this file"
    for series in wanted:
        if series.case_id in files:
            tree.labelled.append(LabelledSeries(series, _without_copies(files[series.case_id])))
        else:
            tree.unlabelled.append(series)
    return tree


def _referred(labels: LabelFile, series: Sequence[Series]) -> list[Series]:
    by_image = [
        one for one in series if any(frame.sop_instance_uid in labels.instances for frame in one.frames)
    ]
    by_series = [one for one in series if labels.series_uid and one.series_uid == labels.series_uid]
    found = by_image or by_series
    if not found and not (labels.instances or labels.series_uid):
        place = labels.frame_of_reference_uid
        found = [one for one in series if place and one.frame_of_reference_uid == place]
    volumes = [one for one in found if one.reason != "single_slice"]  # a scout of the series
    return volumes or found


def _without_copies(files: Sequence[LabelFile]) -> tuple[LabelFile, ...]:
    if len(files) == 1:
        return tuple(files)
    return tuple({sha256_of(file.path): file for file in reversed(files)}.values())[::-1]
