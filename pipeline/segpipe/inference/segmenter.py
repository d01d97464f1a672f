"""Whole-volume segmentation of one case after another with the model of one bundle.

Two routes give a label map on the source's grid:

    typed   the preprocessing is in the supported subset: it is built from its typed form
    stock   anything else: the bundle's own transforms, as MONAI's ConfigParser builds them

Two engines carry them out, and a case gets the labels that `python -m monai.bundle run` would give it by both:

    streaming   where inferer and post-processing are supported as well: scores block by block
    monai       anything else: inferer and post-processing of the bundle's config on the whole volume; on the stock
                route its own evaluator
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from monai.data import decollate_batch
from monai.data.utils import list_data_collate
from monai.transforms import Compose

from segpipe.common.nifti import Header
from segpipe.common.processes import usable_cores
from segpipe.dicom import Series
from segpipe.errors import SegpipeError, UsageError
from segpipe.inference.averaging import side_by_side
from segpipe.inference.engine import StreamingEngine
from segpipe.inference.first_stage import FirstStage
from segpipe.inference.memory_estimate import SLACK, allowed_bytes, source_bytes
from segpipe.inference.monai_evaluator import MonaiEvaluator
from segpipe.inference.observation import Observation
from segpipe.inference.output import ExtraOutputs, LabelMap, as_labels
from segpipe.inference.precision import ChosenPrecision, precision_for
from segpipe.inference.recipe import AXES, Recipe
from segpipe.inference.runtimes import ChosenRuntime, choose_runtime, torch_runtime
from segpipe.inference.slices import sliced
from segpipe.inference.sliding_window import Windowing
from segpipe.inference.source import CaseInput, ReadCase, Source, read_case, read_headers
from segpipe.inference.transforms import Preprocessing, bundle_parser, parsed
from segpipe.inference.weights import load_models

NOT_OURS = "the bundle's own inferer calls the network"


class Segmenter:
    """A bundle's model in memory.

    Attributes:
        engine: ``streaming`` or ``monai``.
        engine_reasons: why it is not the streaming one.
        runtime: what computes the scores.
        prefetcher: the case that was read before its turn.

    Raises:
        UsageError: the device or the runtime is not there.
        DataError: the config lacks something, or the weights do not fit its network.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, options = recipe, recipe.options
        self.device = device_of(options.device)
        masks = max(0, recipe.masks - (recipe.channels - recipe.scans))  # among what a case brings
        self.prefetcher = Prefetcher(recipe.scans, options.max_memory, masks)
        self._first_stage = None
        if recipe.first_stage is not None:
            first = Segmenter(recipe.first_stage)
            fits = first.fit, self.fit
            self._first_stage = FirstStage(recipe.first_stage, recipe.channels, first.segment, fits)
        torch.set_num_threads(options.threads or min(torch.get_num_threads(), usable_cores()))
        typed = None if recipe.preprocessing is None else Preprocessing.parse(recipe.preprocessing)
        self.engine_reasons: tuple[str, ...] = ()
        if typed is None:
            self.engine_reasons = ("the transforms are outside the closed list",)
        elif recipe.windowing is None:
            self.engine_reasons = ("inferer or post-processing is outside the closed form",)
        elif reason := typed.why_not_streamed():
            self.engine_reasons = (reason,)
        self.engine = "monai" if self.engine_reasons else "streaming"
        if typed is None or recipe.windowing is None or self.engine_reasons:
            self.runtime = self._use_monai(typed)
            return
        windowing = Windowing(**recipe.windowing)
        cleanup = None
        if recipe.cleanup:
            parser = bundle_parser(recipe.root, recipe.inference, str(self.device))
            parser["cleanup"] = list(recipe.cleanup)
            cleanup = parsed(parser, "cleanup")
        parsers = [bundle_parser(bundle.root, bundle.inference, str(self.device)) for bundle in recipe.bundles]
        networks = [parsed(parser, "network_def") for parser in parsers]
        models = [
            replace(model, module=sliced(model.module, windowing.slice_axis))
            for model in load_models(recipe.bundles, networks, self.device)
        ]
        self.runtime = choose_runtime(
            options.runtime,
            models,
            self.device,
            (recipe.channels, *windowing.roi_size),
            torch.get_num_threads(),
            [AXES.index(axis) for axis in options.mirror],
            members=windowing.members > 1,
            precision=precision_for(
                options.precision, self.device.type, [bundle.metadata for bundle in recipe.bundles], options.mirror
            ),
        )
        self._streaming = StreamingEngine(
            typed,
            windowing,
            self.runtime.run,
            self.device,
            recipe.channels,
            options.max_memory,
            cleanup,
            masks=recipe.masks,
            lanes=self.runtime.lanes,
        )

    def fit(self, headers: Sequence[Header], held: int = 0) -> int:
        """Judge a case by its headers, as `StreamingEngine.fit`; 0 by MONAI's engine, whose memory nobody foresees."""
        return self._streaming.fit(headers, held) if self.engine == "streaming" else 0

    def segment(
        self,
        case: CaseInput,
        extra_outputs: ExtraOutputs | None = None,
        key: str | None = None,
        observation: Observation | None = None,
    ) -> LabelMap:
        """Return the label map of one case.

        Args:
            case: one file per channel, or one file with all of them; or a DICOM series, or images that were read and
                judged (neither on the stock route).
            extra_outputs: files to write probabilities and entropy to.
            key: by which ``prefetcher`` knows the case, where it was read before its turn.
            observation: is filled with what is seen on the network's grid, by the streaming engine alone; or None.

        Raises:
            UsageError: no such file, or this bundle's probabilities cannot be given.
            DataError: the images cannot be used, or the bundle does not give one label map on their grid.
            RefusedError: the case needs more memory than it may take.
            OSError: an extra output cannot be written.
        """
        seconds: dict[str, float] = {}
        if self.engine != "streaming" and extra_outputs is not None and extra_outputs.files:
            raise UsageError(
                "this bundle's probabilities cannot be given",
                found="; ".join(self.engine_reasons),
                hint="predict without --probabilities and --entropy",
            )
        prefetched = self.prefetcher.take(key)
        if self._first_stage is not None:
            prefetched = self._first_stage.read(case, prefetched, seconds)
            case = prefetched.source
        with _timed(seconds, "check"):
            if self.engine == "streaming":
                read, peak = self._streaming.read(case, prefetched)
                self.prefetcher.begin(peak)
            else:
                read = read_case(case, self.recipe.channels, masks=self.recipe.masks)
        source, grid, regions = read.source, read.source.header, self.recipe.regions
        with torch.inference_mode():
            if self.engine == "streaming":
                labels, regions = self._by_blocks(source, seconds, extra_outputs, observation)
            elif self.recipe.route == "stock":
                source.release()
                labels = as_labels(self._evaluator.predict(_paths_of(case), seconds), grid, regions)
            else:
                labels = as_labels(self._by_monai(source, seconds), grid, regions)
        return LabelMap(labels, grid, read.preview, seconds, regions, self.runtime.name, source.notes)

    def _by_blocks(
        self,
        source: Source,
        seconds: dict[str, float],
        extra_outputs: ExtraOutputs | None,
        observation: Observation | None,
    ) -> tuple[Any, int]:
        watched = self.runtime.bottlenecks if observation is not None and len(self.recipe.bundles) == 1 else ()
        for bottleneck in watched:
            bottleneck.watch()
        labels, regions = self._streaming.segment(source, seconds, extra_outputs, observation)
        embedding = tuple(bottleneck.taken() for bottleneck in watched)
        if observation is not None and all(each.size for each in embedding):
            observation.embedding = embedding
        return labels, regions

    def _by_monai(self, source: Source, seconds: dict[str, float]) -> Any:
        with _timed(seconds, "preprocess"):
            image = source.tensor()
            source.release()
            batch = list_data_collate([self._preprocessing({"image": image})])
        with _timed(seconds, "network"):
            image = batch["image"].to(self.device)
            scores = {key: self._inferer(image, network) for key, network in self._networks.items()}
        with _timed(seconds, "postprocess"):
            item = decollate_batch({**batch, "image": image, **scores})[0]
            return self._postprocessing(item)["pred"]

    def _use_monai(self, typed: Preprocessing | None) -> ChosenRuntime:
        """Build the bundle's own evaluator, or its inferer and post-processing, which call the network themselves."""
        recipe = self.recipe
        reasons = () if recipe.options.runtime == "torch" else (NOT_OURS,)
        if recipe.options.mirror or recipe.ensemble:
            raise UsageError(
                "this bundle's scores cannot be averaged",
                found="; ".join(self.engine_reasons),
                hint="predict without --mirror and --ensemble",
            )
        if recipe.options.precision == "bfloat16":
            raise UsageError(
                "this bundle is computed in float32 alone",
                found="; ".join(self.engine_reasons),
                hint="predict without --precision bfloat16",
            )
        precision = ChosenPrecision("float32", NOT_OURS)
        if typed is None:
            self._evaluator = MonaiEvaluator(recipe.root, recipe.inference, recipe.metadata, self.device)
            return ChosenRuntime("torch", torch_runtime(self._evaluator.network), reasons, precision)
        parser = bundle_parser(recipe.root, recipe.inference, str(self.device))
        # as an object, so that Invertd refers to the very same
        parser["preprocessing"] = Compose(typed.build())
        models = load_models([recipe], [parsed(parser, "network_def")], self.device)
        keys = ["pred"] if len(models) == 1 else [f"member_{number}" for number in range(len(models))]
        self._networks = dict(zip(keys, (model.module for model in models), strict=True))
        self._preprocessing = parsed(parser, "preprocessing")
        self._postprocessing = parsed(parser, "postprocessing")
        self._inferer = parsed(parser, "inferer")
        network = side_by_side([torch_runtime(model.module) for model in models])
        return ChosenRuntime("torch", network, reasons, precision)


def _paths_of(case: CaseInput) -> list[str] | str:
    """Return what MONAI reads a case from."""
    if isinstance(case, (Series, Source)):
        raise SegpipeError("the stock route was given no files", hint="write the images as NIfTI first")
    paths = [str(path) for path in case]
    return paths if len(paths) > 1 else paths[0]


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)


def device_of(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda:N`` names.

    Raises:
        UsageError: it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:
        raise UsageError(
            "this device cannot be used", found=name, expected="auto, cpu or cuda:N", hint="try --device cpu"
        ) from error
    return device


class Prefetcher:
    """At most one case that was read before its turn.

    One thread computes cases, another one calls `read`. A case that cannot be read, or that does not fit beside the
    one that is computed, is left to its own turn, and so is what there is to say of it.

    Args:
        channels: of the images.
        max_memory: bytes that the process may take; None for what the machine has.
        masks: how many of the last channels are masks, which may be constant.
    """

    def __init__(self, channels: int, max_memory: int | None, masks: int = 0) -> None:
        self._channels, self._max_memory, self._masks = channels, max_memory, masks
        self._peak = 0
        self._was_read = threading.Event()
        self._waiting: tuple[str, ReadCase] | None = None

    def expect(self) -> None:
        """Note that a case was asked for; the one behind it waits until that one was read."""
        self._was_read.clear()

    def begin(self, peak: int) -> None:
        """Note that the case that is computed now was read, and the bytes that the process will take with it."""
        self._peak = peak
        self._was_read.set()

    def end(self) -> None:
        """Note that the case that was asked for has ended, well or not."""
        self.begin(0)

    def read(self, key: str, case: Callable[[], CaseInput], most_bytes: int | None) -> None:
        """Read a case beside the one that is computed, if both fit.

        Args:
            key: names the case.
            case: returns its files or its series.
            most_bytes: at which the process is ended; None for no limit.
        """
        self._was_read.wait()
        allowed = min(allowed_bytes(limit) for limit in (self._max_memory, most_bytes))
        try:
            images = case()
            headers = read_headers(images, self._channels)
            if self._peak + SLACK * source_bytes(headers) <= allowed:
                self._waiting = key, read_case(images, self._channels, headers, self._masks)
        except Exception:  # noqa: BLE001 - it is read again when its turn comes, and fails then
            self._waiting = None

    def take(self, key: str | None) -> ReadCase | None:
        """Return the case of this name, if it was read; any other is let go."""
        waiting, self._waiting = self._waiting, None
        return waiting[1] if waiting is not None and waiting[0] == key else None
