"""All that a batch has to do: NIfTI files, a manifest's cases and DICOM series of one or several inputs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DataError
from pipeline.predict.choice import Chosen, Rules, choose_series
from pipeline.predict.worklist import find_cases, is_manifest, is_nifti, require_unique

if TYPE_CHECKING:
    from pipeline.dicom.series import Progress


def find_work(
    inputs: Sequence[Path],
    rules: Rules,
    *,
    out: Path,
    pseudonymise: bool = False,
    split: str | None = None,
    fold: int | None = None,
    data: Path | None = None,
    progress: Progress | None = None,
) -> Chosen:
    """Find the cases; options as in `find_cases` and `choose_series`.

    Raises:
        UsageError: no such input, a name that cannot be an id, or one id for two cases.
        DataError: nothing to segment was found.
    """
    plain = [
        path for path in inputs if path.is_dir() or is_nifti(path) or is_manifest(path) or not path.exists()
    ]
    items = find_cases(
        plain, rules.channels, out=out, pseudonymise=pseudonymise, split=split, fold=fold, data=data
    )
    mixed = [path for path in inputs if not is_manifest(path) and _may_hold_dicom(path, out)]
    chosen = choose_series(mixed, rules, out, progress) if mixed else Chosen()
    if not items and not chosen.items:
        raise DataError(
            "nothing to segment", path=", ".join(map(str, inputs)), found=_in_words(chosen),
            expected="files that end in .nii or .nii.gz, or DICOM series", hint="check the path and the rules",
        )  # fmt: skip
    items = sorted([*items, *chosen.items], key=lambda item: item.id)
    require_unique(items)
    return replace(chosen, items=items)


def _may_hold_dicom(path: Path, out: Path) -> bool:
    """Whether there is a file that is not NIfTI by name."""
    if not path.is_dir():
        return not is_nifti(path)
    inside = os.path.realpath(out)
    for folder, folders, files in os.walk(path, followlinks=False):
        folders[:] = [name for name in folders if os.path.realpath(Path(folder, name)) != inside]
        if any(not is_nifti(Path(name)) for name in files):
            return True
        if any(Path(folder, name).is_symlink() for name in folders):
            return True
    return False


def _in_words(chosen: Chosen) -> str:
    rules = Counter(each.rule for each in chosen.not_selected)
    words = [f"{count} series left out by {rule}" for rule, count in rules.items()]
    words += [f"{count} other files ({kind})" for kind, count in chosen.passed_over.items()]
    return "; ".join(["no NIfTI file", *words])
