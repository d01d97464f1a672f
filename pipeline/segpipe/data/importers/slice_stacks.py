"""Slices as TIFF or PNG files beside their masks: which files make which volume, judged by their names alone.

The layout of the Kaggle data set ``lgg-mri-segmentation`` (Buda et al. 2019; TCGA-LGG) is known:

    TCGA_<site>_<id>_<date>/TCGA_<site>_<id>_<date>_<n>.tif         three channels: pre-contrast, FLAIR, post-contrast
    TCGA_<site>_<id>_<date>/TCGA_<site>_<id>_<date>_<n>_mask.tif    0 and 255

Any other is told by two patterns. Slice numbers order the slices as numbers; a stack may begin and end anywhere, but
has no hole.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from segpipe.common.console import some_of
from segpipe.common.folder_walk import Entry, walk_folders
from segpipe.errors import DataError, UsageError

ENDINGS = (".tif", ".tiff", ".png")
KAGGLE = re.compile(
    r"(?:.*/)?(?P<case>[^/]+)/(?P<stem>[^/]+)_0*(?P<slice>\d+)(?P<mask>_mask)?\.(?:tiff?|png)", re.IGNORECASE
)
TCGA = re.compile(r"(?P<patient>TCGA_[A-Za-z0-9]+_[A-Za-z0-9]+)(?:_\d{8})?")
FIELD = re.compile(r"\{([a-z]+)\}|(\*)")


@dataclass(frozen=True)
class Stack:
    """The slices of one volume, in order, each with its mask; paths are absolute."""

    id: str
    patient_id: str | None
    slices: tuple[Path, ...]
    masks: tuple[Path, ...]


@dataclass
class SliceStacks:
    """All stacks of a tree, those that cannot be one with the reason, and what is no slice at all."""

    stacks: list[Stack] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)

    @property
    def is_lgg(self) -> bool:
        """Whether every stack is named as those of the Kaggle LGG data set."""
        return bool(self.stacks) and all(TCGA.fullmatch(str(stack.patient_id)) for stack in self.stacks)


def image_files(root: Path) -> list[Path]:
    """Return TIFF and PNG files below a folder, sorted, also those that cannot be opened, but none that is hidden."""
    return [entry.path for entry in _entries(root) if not entry.is_folder]


def _entries(root: Path) -> list[Entry]:
    return [
        entry
        for entry in sorted(walk_folders([root]))
        if (entry.is_folder or entry.path.suffix.lower() in ENDINGS)
        and not any(part.startswith(".") for part in entry.path.relative_to(root).parts)
    ]


def _require_open(root: Path) -> None:
    faults = [f"{_shown(root, entry.path)}: {entry.fault}" for entry in _entries(root) if entry.fault]
    if faults:
        raise DataError(
            f"{len(faults)} entries of the folder cannot be opened",
            path=root,
            found=some_of(faults),
            expected="slices that can be read",
            hint="fetch what links stand for, or take these entries out",
        )


def looks_like_slices(root: Path) -> bool:
    """Return whether some slice lies beside its mask as in the Kaggle layout."""
    return any(
        (match := KAGGLE.fullmatch(path.relative_to(root.parent).as_posix())) and match["mask"]
        for path in image_files(root)
    )


def find_stacks(root: Path, images: str | None = None, masks: str | None = None) -> SliceStacks:
    """Sort the files of a tree into stacks.

    Args:
        root: the folder.
        images: pattern of slices relative to it, e.g. ``{patient}/{slice}.png``; None takes the Kaggle layout.
            ``{slice}`` is the number, ``{patient}`` and ``{case}`` tell the volumes apart, ``*`` is anything but "/".
        masks: pattern of masks, with the same fields.

    Raises:
        UsageError: no such folder, or patterns that cannot be used.
        DataError: no slice at all, or entries that cannot be opened.
    """
    if not root.is_dir():
        raise UsageError("no such folder", path=root, hint="check the path")
    if (images is None) != (masks is None):
        raise UsageError("--slices and --masks go together", expected="a pattern for each")
    _require_open(root)
    named = _named_kaggle(root) if images is None else _named_by(root, images, str(masks))
    if not named.slices:
        raise DataError(
            "no slices are found here",
            path=root,
            found=f"{len(image_files(root))} TIFF or PNG files",
            expected="CASE/CASE_1.tif beside CASE/CASE_1_mask.tif, and so on",
            hint="another layout is told by --slices '{patient}/{slice}.png' --masks '{patient}/{slice}_mask.png'",
        )
    stacks = SliceStacks(faults=dict(named.misplaced), passed_over=named.passed_over)
    for case in sorted(named.slices.keys() | named.masks.keys()):
        slices, masks_of = named.slices[case], named.masks[case]
        fault = _fault(root, slices, masks_of)
        if fault:
            stacks.faults.setdefault(case, fault)
        elif case not in stacks.faults:
            numbers = sorted(slices)
            ordered = [tuple(files[n][0] for n in numbers) for files in (slices, masks_of)]
            stacks.stacks.append(Stack(case, named.patients.get(case), *ordered))
    if images is None:
        stacks.stacks = _without_dates(stacks.stacks)
    return stacks


Files = defaultdict[int, list[Path]]


@dataclass
class _Named:
    slices: defaultdict[str, Files] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    masks: defaultdict[str, Files] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    patients: dict[str, str] = field(default_factory=dict)
    places: dict[str, tuple[str, str]] = field(default_factory=dict)
    misplaced: dict[str, str] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)

    def require_one(self, case: str, place: str, shown: str) -> None:
        """Take a case out whose slices lie in several places: one name is no proof that they are of one volume."""
        known, first = self.places.setdefault(case, (place, shown))
        if known != place:
            fault = f"one name twice: of {first} and of {shown}; rename or remove one"
            self.misplaced.setdefault(case, fault)


def _named_kaggle(root: Path) -> _Named:
    named = _Named()
    for path in image_files(root):
        match = KAGGLE.fullmatch(path.relative_to(root.parent).as_posix())
        if match is None:
            named.passed_over.append(_shown(root, path))
            continue
        case = match["case"]
        named.require_one(case, _shown(root.parent, path.parent), _shown(root, path))
        if match["stem"] != case:
            fault = f"{_shown(root, path)} lies in a folder of another name; move it to where it belongs"
            named.misplaced.setdefault(case, fault)
        (named.masks if match["mask"] else named.slices)[case][int(match["slice"])].append(path)
    for name in named.passed_over:  # among slices it is one whose name went wrong
        case = (root.name + "/" + name).split("/")[-2]
        if case in named.slices:
            named.misplaced.setdefault(case, f"{name} has no slice number; name it CASE_<n>.tif or remove it")
    return named


def _named_by(root: Path, images: str, masks: str) -> _Named:
    named = _Named()
    patterns = [_pattern(images), _pattern(masks)]
    if set(patterns[0].groupindex) != set(patterns[1].groupindex):
        raise UsageError("--slices and --masks have different fields", found=f"{images} and {masks}")
    for path in image_files(root):
        relative = path.relative_to(root).as_posix()
        of_image, of_mask = (pattern.fullmatch(relative) for pattern in patterns)
        if of_image and of_mask:
            raise UsageError(
                "a file fits both patterns", path=path, hint="make --slices or --masks say more, e.g. with a folder"
            )
        match = of_image or of_mask
        if match is None:
            named.passed_over.append(_shown(root, path))
            continue
        fields = match.groupdict()
        number = int(fields.pop("slice"))
        case = "_".join(fields.values()) or root.name
        named.require_one(case, str(fields), _shown(root, path))
        if "patient" in fields:
            named.patients[case] = fields["patient"]
        (named.slices if of_image else named.masks)[case][number].append(path)
    return named


def _pattern(text: str) -> re.Pattern[str]:
    """Return a pattern of ours as a regular expression; a field that stands twice must be the same both times."""
    parts, seen, end = [], set(), 0
    for match in FIELD.finditer(text):
        parts.append(re.escape(text[end : match.start()]))
        name = match[1]
        if name is None:
            parts.append("[^/]*")
        elif name in seen:
            parts.append(f"(?P={name})")
        elif name in ("slice", "patient", "case"):
            parts.append(r"0*(?P<slice>\d+)" if name == "slice" else rf"(?P<{name}>[^/]+)")
            seen.add(name)
        else:
            raise UsageError(f"no field {{{name}}}", found=text, expected="{slice}, {patient}, {case} and *")
        end = match.end()
    if "slice" not in seen:
        raise UsageError("the pattern has no {slice}", found=text, expected="e.g. {patient}/{slice}.png")
    return re.compile("".join(parts) + re.escape(text[end:]))


def _fault(root: Path, slices: Files, masks: Files) -> str | None:
    """Return why these files are no stack, by name, or None."""
    for files in (slices, masks):
        twice = next((paths for _, paths in sorted(files.items()) if len(paths) > 1), None)
        if twice:
            return f"one slice number twice: {_shown(root, twice[0])} and {_shown(root, twice[1])}; remove one"
    lonely = sorted(slices.keys() - masks.keys())
    if lonely:
        return f"without a mask: {some_of(_shown(root, slices[n][0]) for n in lonely)}"
    lonely = sorted(masks.keys() - slices.keys())
    if lonely:
        return f"a mask without its slice: {some_of(_shown(root, masks[n][0]) for n in lonely)}"
    numbers = sorted(slices)
    missing = sorted(set(range(numbers[0], numbers[-1])) - set(numbers))
    if missing:
        before = max(n for n in numbers if n < missing[0])
        return f"missing: slice {some_of(map(str, missing))} after {_shown(root, slices[before][0])}"
    if len(numbers) < 2:
        return f"only one slice: {_shown(root, slices[numbers[0]][0])}"
    return None


def _shown(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _without_dates(stacks: Iterable[Stack]) -> list[Stack]:
    """Name stacks by TCGA id: folder names carry the date of the scan. A second scan of a patient gets ``_2``."""
    kept, scans = [], defaultdict[str, int](int)
    for stack in stacks:
        match = TCGA.fullmatch(stack.id)
        if match is None:
            kept.append(stack)
            continue
        patient = match["patient"]
        scans[patient] += 1
        id = patient if scans[patient] == 1 else f"{patient}_{scans[patient]}"
        kept.append(Stack(id, patient, stack.slices, stack.masks))
    return kept
