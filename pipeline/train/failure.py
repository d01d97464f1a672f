"""Why a training ended early, out of what MONAI and Ignite wrap around it."""

from __future__ import annotations

import errno

from pipeline.errors import chain, first_cause, ours_within
from pipeline.files import cannot_write


def unwrap(error: BaseException) -> BaseException:
    """The error of ours, or the disk's, inside those that MONAI and Ignite wrap around it; else the first cause."""
    ours = ours_within(error)
    if ours is not None:
        return ours
    for link in chain(error):
        if isinstance(link, OSError) and link.errno in (
            errno.EACCES,
            errno.ENOSPC,
            errno.EROFS,
            errno.EDQUOT,
        ):
            return cannot_write(link.filename or "the run folder", link)
    return first_cause(error)
