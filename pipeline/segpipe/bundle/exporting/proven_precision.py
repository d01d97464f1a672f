"""The proof that a bundle gives the same label maps with bfloat16, as its metadata keep it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segpipe.common.files import read_json
from segpipe.errors import DataError, RefusedError
from segpipe.inference import bfloat16_faults

INFERENCE = "configs/inference.json"
KEPT = (
    "manifest_sha256",
    "split",
    "fold",
    "runtime",
    "mirror",
    "processor",
    "cases",
    "mean_dice",
    "mean_dice_lost",
    "case_dice_lost",
    "labels_lost",
    "volume_changed",
)


def read_proof(path: str | Path, files: Mapping[str, str]) -> dict[str, Any]:
    """Return what `segpipe bundle precision` measured, for the metadata of the bundle that it was measured with.

    Args:
        path: of its file.
        files: SHA-256 of the config and the weights that the bundle will hold, by name.

    Raises:
        UsageError: no such file.
        DataError: it is not what that command writes.
        RefusedError: it is of other weights or settings, or its label maps change with bfloat16.
    """
    document = read_json(path, "proof of a precision")
    try:
        found, proof = dict(document["files"]), {name: document[name] for name in KEPT}
        faults = bfloat16_faults(proof)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "not a proof of a precision",
            path=path,
            found=f"{type(error).__name__}: {error}",
            expected="what `segpipe bundle precision` writes",
        ) from error
    if INFERENCE not in found:  # of fold models: the config of their ensemble is its own
        files = {name: sha256 for name, sha256 in files.items() if name != INFERENCE}
    if found != dict(files):
        other = next(name for name in {**files, **found} if found.get(name) != files.get(name))
        raise RefusedError(
            "the proof of the precision is of another model than the bundle's",
            path=path,
            found=f"{other}: {found.get(other)}",
            expected=str(files.get(other)),
            hint="export without --precision, prove that bundle with `segpipe bundle precision`, then export again",
        )
    if faults:
        raise RefusedError(
            "the bundle's label maps change with bfloat16",
            path=path,
            found="; ".join(faults),
            hint="export without --precision: it is then computed in float32",
        )
    return proof
