"""Writing the golden case of a bundle: an image in which the network finds every label, and what it makes of it."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.bundle.golden.golden_case import DOCUMENT, GOLDEN, IMAGES, LABELS, LEAST, SCORES, array_sha256
from segpipe.bundle.golden.golden_input import HOW, HOW_BENT, Wish, find
from segpipe.bundle.golden.golden_record import RULE, Recording, record, surroundings
from segpipe.bundle.open import read_inference
from segpipe.common.files import read_json, sha256_of, write_json, write_whole
from segpipe.data import write_nifti
from segpipe.errors import DataError, UsageError, first_cause

WISHED = (400, 1000, 2500)  # voxels in one window, of which the whole path may leave fewer
TOLERANCE = {"score": 1e-3, "labels": 1e-3}  # largest difference of a score, and share of voxels
SEED = 0


@dataclass(frozen=True)
class Made:
    """How the input came to be: in words, with the steps of the search, None where there was none."""

    how: str
    steps: int | None


def write_golden(
    folder: Path, metadata: Mapping[str, Any], labels: Mapping[int, str], files: int, given: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write ``golden/`` into a bundle that has its inference config and weights already.

    Args:
        folder: of the bundle.
        metadata: of the bundle.
        labels: name of each value of a label map, background included.
        files: images of one case.
        given: images of a case whose owner lets it be passed on; without them one is generated.

    Returns:
        For ``metadata["golden"]``: where the input is from and voxels of each label, or the reason why there is none.

    Raises:
        UsageError: not as many images are given as a case has.
        DataError: the given case cannot be read or does not show every label.
    """
    try:
        if given:
            _copy(folder, files, given)
            made = Made("given by who exported the bundle", None)
            recording = _record(folder)
            if few := _too_few(recording.labels, labels):
                raise DataError(
                    "the given golden case does not show every label",
                    found=few,
                    expected=f"at least {LEAST} voxels of each",
                    hint="give another case with --golden, or none",
                )
        else:
            recording, made = _generate(folder, metadata, files, labels)
    except _NoneFoundError as reason:
        shutil.rmtree(folder / GOLDEN, ignore_errors=True)
        return {"reason": str(reason)}
    write_nifti(folder / LABELS, recording.labels, recording.affine)
    with write_whole(folder / SCORES) as stream:
        np.save(stream, recording.scores, allow_pickle=False)
    shown = _shown(recording.labels, labels)
    write_json(folder / DOCUMENT, _document(folder, recording, made, shown))
    return {"how": made.how, "voxels": {label["name"]: label["voxels"] for label in shown.values()}}


class _NoneFoundError(Exception):
    """Why a bundle gets no golden case."""


def _generate(
    folder: Path, metadata: Mapping[str, Any], files: int, labels: Mapping[int, str]
) -> tuple[Recording, Made]:
    config = read_json(folder / "configs" / "inference.json", "inference config")
    found, unsupported = read_inference(config)
    channels = int(metadata["network_data_format"]["inputs"]["image"]["num_channels"])
    if unsupported or files not in (1, channels):
        raise _NoneFoundError(f"nothing is generated for {unsupported[0] if unsupported else f'{files} files a case'}")
    network = _network(found["network_def"], folder)
    seen = ((metadata.get("training_data") or {}).get("seen") or {}).get("intensity") or ()
    ranges = tuple((channel[0][0], channel[-1][1]) for channel in seen)
    room = math.prod(found["roi_size"]) // (2 * len(labels))
    few = ""
    for voxels in WISHED:
        exclusive = found["activation"] == "softmax"
        wanted = max(LEAST, min(voxels, room))
        wish = Wish(found["preprocessing"], found["roi_size"], channels, exclusive, ranges, wanted, SEED)
        try:
            image = find(wish, network)
            _write_images(folder, files, image.voxels, image.affine)
            recording = _record(folder)
        except UsageError:  # a place that cannot be written to
            raise
        except Exception as error:  # of any kind: a bundle without a golden case is one all the same
            cause = first_cause(error)
            raise _NoneFoundError(f"the search for an image failed: {type(cause).__name__}") from error
        if not (few := _too_few(recording.labels, labels)):
            return recording, Made(HOW_BENT if image.steps else HOW, image.steps)
        if not image.reached or wanted < voxels:
            break
    raise _NoneFoundError(f"no generated image shows {LEAST} voxels of each label; the last one: {few}")


def _network(definition: dict[str, Any], folder: Path) -> Any:
    import torch
    from monai.bundle import ConfigParser

    with contextlib.redirect_stdout(io.StringIO()):  # some networks print their features
        network = ConfigParser({"network_def": definition}).get_parsed_content("network_def")
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    return network.eval().requires_grad_(False)


def _record(folder: Path) -> Recording:
    with tempfile.TemporaryDirectory(prefix="segpipe-golden-") as work:
        try:
            return record(folder, folder / IMAGES, Path(work), SEED)
        except Exception as error:  # MONAI wraps what a transform raises
            words = (str(first_cause(error)).strip() or type(error).__name__).splitlines()[-1]
            raise DataError("the bundle's inference fails on the golden case", found=words[:200]) from error


def _write_images(folder: Path, files: int, voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    arrays = voxels if files == len(voxels) else [np.moveaxis(voxels, 0, -1)]
    for index, array in enumerate(arrays):
        write_nifti(folder / IMAGES / _image_name(index, files), array, affine)


def _image_name(index: int, files: int) -> str:
    return "image.nii.gz" if files == 1 else f"image_{index:04}.nii.gz"


def _copy(folder: Path, files: int, given: Sequence[Path]) -> None:
    """The voxels and the grid of each file alone: a header may say more."""
    import nibabel as nib

    from segpipe.common.nifti import read_header

    if len(given) != files:
        raise UsageError("another number of golden images than a case has", found=len(given), expected=files)
    for index, path in enumerate(given):
        header = read_header(path)
        try:
            image = nib.load(path)  # type: ignore[attr-defined, unused-ignore]
            array = np.asarray(image.dataobj)  # type: ignore[attr-defined, unused-ignore]
        except (OSError, EOFError, ValueError) as error:
            raise DataError("the golden image cannot be read", path=path) from error
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        write_nifti(folder / IMAGES / _image_name(index, files), array, header.affine)


def _shown(labels: NDArray[np.uint8], names: Mapping[int, str]) -> dict[str, Any]:
    """Name and voxels of each label but the background, by value."""
    return {
        str(value): {"name": name, "voxels": int((labels == value).sum())}
        for value, name in sorted(names.items())
        if value
    }


def _too_few(labels: NDArray[np.uint8], names: Mapping[int, str]) -> str:
    """Labels below `LEAST` voxels, in words; empty where there is none."""
    found = _shown(labels, names).values()
    return ", ".join(f"{each['voxels']} voxels of {each['name']}" for each in found if each["voxels"] < LEAST)


def _document(folder: Path, recording: Recording, made: Made, shown: dict[str, Any]) -> dict[str, Any]:
    images = sorted((folder / IMAGES).iterdir())
    return {
        "schema_version": 1,
        "inputs": [{"file": f"images/{path.name}", "sha256": sha256_of(path)} for path in images],
        "labels": {
            "file": "labels.nii.gz",
            "dtype": "uint8",
            "shape": list(recording.labels.shape),
            "sha256_of_array": array_sha256(recording.labels),
            "shown": shown,
        },
        "scores": {
            "file": "scores.npy",
            "dtype": "float32",
            "shape": list(recording.scores.shape),
            "sha256_of_array": array_sha256(recording.scores),
            "grid": list(recording.grid),
            "seed": SEED,
            "rule": RULE,
        },
        "tolerance": TOLERANCE,
        "recorded_with": surroundings(),
        "made": {"how": made.how, "seed": SEED, "steps": made.steps},
    }
