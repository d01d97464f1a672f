"""The golden case of a bundle, recorded and written: an image that shows every label, and what the bundle makes of it.

`write_golden` is the exporter's half; `record` runs the bundle's own stock inference, there and in a replay.
"""

from __future__ import annotations

import contextlib
import io
import math
import platform
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segpipe.bundle.golden.golden_case import DOCUMENT, GOLDEN, IMAGES, LABELS, LEAST, SCORES, array_sha256, voxels_of
from segpipe.bundle.golden.golden_input import HOW, HOW_BENT, Goal, search_image
from segpipe.bundle.supported_subset import read_inference, read_members
from segpipe.bundle.tensors import WEIGHTS, load_network
from segpipe.common.files import read_json, sha256_of, write_json, write_whole
from segpipe.common.partial import temporary_folder
from segpipe.common.provenance import hardware, versions
from segpipe.data import write_nifti
from segpipe.errors import DataError, UsageError, first_cause
from segpipe.inference import sliced

if TYPE_CHECKING:
    import torch

WISHED = (400, 1000, 2500)  # voxels in one window, of which the whole path may leave fewer
TOLERANCE = {"score": 1e-3, "labels": 1e-3}  # largest difference of a score, and share of voxels
SEED = 0
POINTS = 4096
THREADS = 1  # so that a machine of more cores adds in the same order
DECIDING = ("monai", "torch", "numpy", "nibabel")
RULE = (
    "voxel (seed + k * step) mod n for k = 0, 1, ..., where n voxels (X, Y, Z) of the network's grid are counted in C "
    "order, and step is the least whole number from 0.618 n on that has no divisor in common with n"
)


@dataclass(frozen=True, eq=False)
class Recording:
    """A golden case as one machine computes it.

    Attributes:
        labels: (X, Y, Z) uint8 label map, or of regions (X, Y, Z, regions) masks, on the grid of the image's file.
        affine: (4, 4) of that grid.
        scores: (classes, points) float32, activated, at `points` of the network's grid.
        grid: (X, Y, Z) size of that grid.
    """

    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    scores: NDArray[np.float32]
    grid: tuple[int, ...]


class _NoneFoundError(Exception):
    """Why a bundle gets no golden case."""


def write_golden(
    folder: Path,
    metadata: Mapping[str, Any],
    labels: Mapping[int, str],
    endings: Sequence[str],
    given: Sequence[Path] = (),
) -> dict[str, Any]:
    """Write ``golden/`` into a bundle that has its inference config and weights already.

    Args:
        folder: of the bundle.
        metadata: of the bundle.
        labels: name of each value of a label map, background included.
        endings: of the files of one case, in the order of its channels.
        given: images of a case whose owner lets it be passed on; without them one is generated.

    Returns:
        For ``metadata["golden"]``: where the input is from and voxels of each label, or the reason why there is none.

    Raises:
        UsageError: not as many images are given as a case has.
        DataError: the given case cannot be read or does not show every label.
    """
    how, steps = "given by who exported the bundle", None
    try:
        if given:
            _copy(folder, endings, given)
            recording = _record(folder)
            if few := _too_few(recording.labels, labels):
                raise DataError(
                    "the given golden case does not show every label",
                    found=few,
                    expected=f"at least {LEAST} voxels of each",
                    hint="give another case with --golden, or none",
                )
        else:
            recording, steps = _generate(folder, metadata, endings, labels)
            how = HOW_BENT if steps else HOW
    except _NoneFoundError as reason:
        shutil.rmtree(folder / GOLDEN, ignore_errors=True)
        return {"reason": str(reason)}
    write_nifti(folder / LABELS, recording.labels, recording.affine)
    with write_whole(folder / SCORES) as stream:
        np.save(stream, recording.scores, allow_pickle=False)
    shown = _shown(recording.labels, labels)
    origin = {"how": how, "seed": SEED, "steps": steps}
    write_json(folder / DOCUMENT, _document(folder, recording, origin, shown))
    return {"how": how, "voxels": {label["name"]: label["voxels"] for label in shown.values()}}


def _generate(
    folder: Path, metadata: Mapping[str, Any], endings: Sequence[str], labels: Mapping[int, str]
) -> tuple[Recording, int]:
    """Search for an image that shows every label on the whole path; return its recording and the search's steps."""
    import torch

    config = read_json(folder / "configs" / "inference.json", "inference config")
    known, unsupported = read_inference(config)
    channels = int(metadata["network_data_format"]["inputs"]["image"]["num_channels"])
    files = len(endings)
    if unsupported or files not in (1, channels):
        raise _NoneFoundError(f"nothing is generated for {unsupported[0] if unsupported else f'{files} files a case'}")
    states = [torch.load(folder / file, weights_only=True) for file in read_members(config) or (WEIGHTS,)]
    loaded = [load_network(known["network_def"], state).eval().requires_grad_(False) for state in states]
    networks = [sliced(each, known.get("slice_axis")) for each in loaded]
    network = networks[0] if len(networks) == 1 else _as_one(networks, known["activation"] == "softmax")
    seen = ((metadata.get("training_data") or {}).get("seen") or {}).get("intensity") or ()
    ranges = tuple((channel[0][0], channel[-1][1]) for channel in seen)
    exclusive, room = known["activation"] == "softmax", math.prod(known["roi_size"]) // (2 * len(labels))
    few = ""
    for voxels in WISHED:
        wanted = max(LEAST, min(voxels, room))
        goal = Goal(known["preprocessing"], known["roi_size"], channels, exclusive, ranges, wanted, SEED)
        try:
            image = search_image(goal, network)
            arrays = image.voxels if files == len(image.voxels) else [np.moveaxis(image.voxels, 0, -1)]
            for ending, array in zip(endings, arrays, strict=True):
                write_nifti(_image_file(folder, ending), array, image.affine)
            recording = _record(folder)
        except UsageError:  # a place that cannot be written to
            raise
        except Exception as error:  # of any kind: a bundle without a golden case is one all the same
            raise _NoneFoundError(f"the search for an image failed: {type(first_cause(error)).__name__}") from error
        if not (few := _too_few(recording.labels, labels)):
            return recording, image.steps
        if not image.reached or wanted < voxels:
            break
    raise _NoneFoundError(f"no generated image shows {LEAST} voxels of each label; the last one: {few}")


def _as_one(networks: Sequence[Callable[[torch.Tensor], Any]], exclusive: bool) -> Callable[[torch.Tensor], Any]:
    """Return an ensemble as one network, whose logits are those of the mean probabilities."""
    import torch

    def logits(windows: torch.Tensor) -> torch.Tensor:
        answers = [network(windows) for network in networks]
        scores = torch.stack([each[0] if isinstance(each, (list, tuple)) else each for each in answers])
        mean = (torch.softmax(scores, 2) if exclusive else torch.sigmoid(scores)).mean(0).clamp(1e-7, 1 - 1e-7)
        return mean.log() if exclusive else torch.logit(mean)

    return logits


def _copy(folder: Path, endings: Sequence[str], images: Sequence[Path]) -> None:
    """Copy the voxels and the grid of each file alone: a header may say more."""
    import nibabel as nib

    from segpipe.common.nifti import read_header

    if len(images) != len(endings):
        raise UsageError("another number of golden images than a case has", found=len(images), expected=len(endings))
    for ending, path in zip(endings, images, strict=True):
        header = read_header(path)
        try:
            image = nib.load(path)  # type: ignore[attr-defined, unused-ignore]
            array = np.asarray(image.dataobj)  # type: ignore[attr-defined, unused-ignore]
        except (OSError, EOFError, ValueError) as error:
            raise DataError("the golden image cannot be read", path=path) from error
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        write_nifti(_image_file(folder, ending), array, header.affine)


def _image_file(folder: Path, ending: str) -> Path:
    return folder / IMAGES / f"image{ending}"


def _record(folder: Path) -> Recording:
    with temporary_folder() as work:
        try:
            return record(folder, folder / IMAGES, work, SEED)
        except Exception as error:  # MONAI wraps what a transform raises
            words = (str(first_cause(error)).strip() or type(error).__name__).splitlines()[-1]
            raise DataError("the bundle's inference fails on the golden case", found=words[:200]) from error


def _shown(labels: NDArray[np.uint8], names: Mapping[int, str]) -> dict[str, Any]:
    """Return name and voxels of each label but the background, or of each region, by value."""
    return {
        str(value): {"name": name, "voxels": voxels_of(labels, value)} for value, name in sorted(names.items()) if value
    }


def _too_few(labels: NDArray[np.uint8], names: Mapping[int, str]) -> str:
    """Return the labels below `LEAST` voxels in words; empty where there is none."""
    shown = _shown(labels, names).values()
    return ", ".join(f"{label['voxels']} voxels of {label['name']}" for label in shown if label["voxels"] < LEAST)


def _document(folder: Path, recording: Recording, origin: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
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
        "made": origin,
    }


def record(bundle: Path, images: Path, work: Path, seed: int = 0) -> Recording:
    """Run ``configs/inference.json`` on a folder with one case, as `monai.bundle run` does, on the CPU.

    Args:
        bundle: folder of the bundle.
        images: folder with nothing but the images.
        work: empty folder for what it writes.
        seed: of the `points`.

    Raises:
        DataError: it does not make one label map, or one file of masks, of one volume, or has no scores to record.
    """
    import nibabel as nib
    import torch
    from monai.bundle import ConfigParser

    with _one_way_to_compute(), contextlib.redirect_stdout(io.StringIO()):
        parser = ConfigParser()
        parser.read_config(str(bundle / "configs" / "inference.json"))
        if (bundle / "configs" / "metadata.json").is_file():
            parser.read_meta(str(bundle / "configs" / "metadata.json"))
        places = {"bundle_root": bundle, "dataset_dir": images, "output_dir": work}
        parser.update({**{key: str(place) for key, place in places.items()}, "device": "cpu"})
        parser.parse(True)
        for number in range(len(parser.get("initialize") or ())):
            parser.get_parsed_content(f"initialize::{number}")
        evaluator = parser.get_parsed_content("evaluator")
        keys = getattr(evaluator, "pred_keys", ("pred",))
        inferer = evaluator.inferer = _LastOutputs(evaluator.inferer, len(keys))
        for number in range(len(parser["run"])):
            parser.get_parsed_content(f"run::{number}")
        activated = _activated(
            parser.get_parsed_content("postprocessing"), dict(zip(keys, inferer.outputs, strict=True))
        )
    written: list[Any] = [nib.load(path) for path in sorted(work.rglob("*.nii.gz"))]  # type: ignore[attr-defined, unused-ignore]
    shapes = [image.shape for image in written]
    masks = [tuple(shape[3:]) for shape in shapes]
    if masks not in ([()], [(len(activated),)]) or activated.ndim != 4:
        raise DataError("the golden case is not one label map, or one mask a region, of one volume", found=f"{shapes}")
    (image,) = written
    grid = tuple(activated.shape[1:])
    chosen = activated.reshape(len(activated), -1)[:, torch.from_numpy(points(math.prod(grid), seed))]
    return Recording(
        np.asarray(image.dataobj).astype(np.uint8),
        np.asarray(image.affine, np.float64),
        np.ascontiguousarray(chosen.numpy(), np.float32),
        grid,
    )


def surroundings() -> dict[str, Any]:
    """Return what decides whether two machines may be asked for the same bits: versions, processor, threads."""
    known, machine = versions(), hardware()
    return {
        "versions": {name: known[name] for name in DECIDING},
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            **{name: machine[name] for name in ("processor", "cpu_capability")},
        },
        "threads": THREADS,
    }


def points(n: int, seed: int = 0) -> NDArray[np.int64]:
    """Return the places of at most `POINTS` different voxels among ``n``, by `RULE`."""
    step = math.ceil(0.618 * n)
    while math.gcd(step, n) != 1:
        step += 1
    return (seed + np.arange(min(n, POINTS), dtype=np.int64) * step) % n


class _LastOutputs:
    """An inferer that keeps what it gave last to each network."""

    def __init__(self, inferer: Any, networks: int) -> None:
        self.inferer = inferer
        self.outputs: deque[Any] = deque(maxlen=networks)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.outputs.append(self.inferer(*args, **kwargs))
        return self.outputs[-1]


def _activated(postprocessing: Any, logits: Mapping[str, Any]) -> torch.Tensor:
    """Return the (C, X, Y, Z) scores, by the first transform behind the network, or behind those of an ensemble."""
    import torch

    steps: Any = getattr(postprocessing, "transforms", (None,))[: 1 if len(logits) == 1 else 2]
    names = [type(step).__name__ for step in steps]
    whole = all(isinstance(each, torch.Tensor) and len(each) == 1 for each in logits.values())
    if names != ["Activationsd", "MeanEnsembled"][: len(steps)] or not whole:
        raise DataError(
            "no scores to record",
            found=", ".join(names),
            expected="Activationsd as the first postprocessing, then MeanEnsembled where there are several networks",
        )
    item: Any = {key: each[0] for key, each in logits.items()}
    for step in steps:
        item = step(item)
    return torch.as_tensor(item["pred"]).detach().cpu().float()


@contextlib.contextmanager
def _one_way_to_compute() -> Iterator[None]:
    """Take `THREADS` threads whatever the machine has, and only the usual algorithms, as training may have chosen."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
