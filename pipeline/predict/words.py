"""Words for reports and state files: without paths and file names."""

from __future__ import annotations

import os
import re

from pipeline.manifest import nifti_stem
from pipeline.predict.worklist import WorkItem

PATH_LIKE = re.compile(r"(?<!\w)/[^\s'\"]+")


def without_paths(text: str, item: WorkItem) -> str:
    """The text with paths and file names of the case replaced by its id."""
    for path in item.paths:
        for name in (str(path), os.path.realpath(path)):
            text = text.replace(name, item.id)
        if not item.is_dicom:  # whose files may be called 1, 2, 3
            text = text.replace(path.name, item.id)
            text = re.sub(rf"(?<!\w){re.escape(nifti_stem(path))}(?!\w)", item.id, text)
    for folder in dict.fromkeys(path.parent for path in item.paths):  # as a whole: it may hold blanks
        for name in (str(folder), os.path.realpath(folder)):
            text = text.replace(name + "/", "/")
    return PATH_LIKE.sub("(path)", text)
