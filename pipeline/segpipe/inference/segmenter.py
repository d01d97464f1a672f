"""Whole-volume segmentation of one case after another with the model of one bundle.

Two routes give a label map on the source's grid:

    typed   the preprocessing is in the closed list: it is built from its typed form
    stock   anything else: the bundle's own transforms, as MONAI's ConfigParser builds them

Two engines carry them out, and a case gets the labels that `python -m monai.bundle run` would give it by both:

    streaming   where inferer and post-processing are of the closed form as well: scores block by block
    monai       anything else: inferer and post-processing of the bundle's config on the whole volume; on the stock
                route its own evaluator
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch
from monai.data.utils import list_data_collate
from monai.transforms import Compose

from segpipe.common.processes import usable_cores
from segpipe.dicom import Series
from segpipe.errors import SegpipeError, UsageError
from segpipe.inference.engine import StreamingEngine
from segpipe.inference.monai_evaluator import MonaiEvaluator
from segpipe.inference.openvino import Model
from segpipe.inference.output import ExtraOutputs, LabelMap, as_labels
from segpipe.inference.prefetch import Prefetcher, ReadCase, read_case
from segpipe.inference.recipe import AXES, Recipe
from segpipe.inference.runtimes import (
    ChosenRuntime,
    choose_average,
    device_of,
    load_weights,
    mirrored,
    parsed,
    torch_runtime,
    without_savers,
)
from segpipe.inference.sliding_window import Windowing
from segpipe.inference.source import CaseInput, Source, read_headers
from segpipe.inference.transforms import Preprocessing


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
        torch.set_num_threads(options.threads or min(torch.get_num_threads(), usable_cores()))
        self.prefetcher = Prefetcher(recipe.channels, options.max_memory)
        typed = None if recipe.preprocessing is None else Preprocessing.parse(recipe.preprocessing)
        self.engine_reasons = _why_not_streaming(typed, recipe.windowing)
        self.engine = "monai" if self.engine_reasons else "streaming"
        self._stock: MonaiEvaluator | None = None
        if typed is None:
            self._stock = MonaiEvaluator(recipe.root, recipe.inference, recipe.metadata, self.device)
            self.runtime = self._monai_runtime(self._stock.network)
            return
        parser = self._parser(recipe.root, recipe.inference)
        # as an object, so that Invertd refers to the very same
        parser["preprocessing"] = Compose(list(typed.build().values()))
        parser["cleanup"] = list(recipe.cleanup)
        network = load_weights(parsed(parser, "network_def"), recipe.weights, self.device)
        if self.engine == "monai":
            self.runtime = self._monai_runtime(network)
            self._network, self._inferer = network, parsed(parser, "inferer")
            self._preprocessing, self._postprocessing = (
                parsed(parser, "preprocessing"),
                parsed(parser, "postprocessing"),
            )
            return
        windowing = Windowing(**recipe.windowing or {})
        self.runtime = self._streaming_runtime(network, windowing)
        self._streaming = StreamingEngine(
            typed,
            windowing,
            self.runtime.run,
            self.device,
            recipe.channels,
            options.max_memory,
            parsed(parser, "cleanup") if recipe.cleanup else None,
        )

    def segment(self, case: CaseInput, extra_outputs: ExtraOutputs | None = None, key: str | None = None) -> LabelMap:
        """Return the label map of one case.

        Args:
            case: one file per channel, or one file with all of them; or a DICOM series, or images that were read and
                judged (neither on the stock route).
            extra_outputs: files to write probabilities and entropy to.
            key: by which ``prefetcher`` knows the case, where it was read before its turn.

        Raises:
            UsageError: no such file, or this bundle's probabilities cannot be given.
            DataError: the images cannot be used, or the bundle does not give one label map on their grid.
            RefusedError: the case needs more memory than it may take.
            OSError: an extra output cannot be written.
        """
        seconds: dict[str, float] = {}
        if extra_outputs is not None and extra_outputs.files and self.engine != "streaming":
            raise UsageError(
                "this bundle's probabilities cannot be given",
                found="; ".join(self.engine_reasons),
                hint="predict without --probabilities, --probabilities-of and --entropy",
            )
        with _timed(seconds, "check"):
            read = self._read(case, key) if self.engine == "streaming" else read_case(case, self.recipe.channels)
        source, grid, regions = read.source, read.source.header, self.recipe.regions
        with torch.inference_mode():
            if self.engine == "streaming":
                labels, regions = self._streaming.segment(source, seconds, extra_outputs)
            elif self._stock is not None:
                source.release()
                labels = as_labels(self._stock.predict(_paths_of(case), seconds), grid, regions)
            else:
                labels = as_labels(self._by_monai(source, seconds), grid, regions)
        return LabelMap(labels, grid, read.preview, seconds, regions)

    def _read(self, case: CaseInput, key: str | None) -> ReadCase:
        """Read a case that fits into memory, unless it was read before, and let the next one be read."""
        read = self.prefetcher.take(key)
        headers = read.headers if read else read_headers(case, self.recipe.channels)
        source = read.source if read else case
        held = source.array.nbytes if isinstance(source, Source) else 0
        estimate = self._streaming.fit_memory(headers, held)
        read = read or read_case(case, self.recipe.channels, headers)
        self.prefetcher.begin(estimate.peak)
        return read

    def _by_monai(self, source: Source, seconds: dict[str, float]) -> Any:
        with _timed(seconds, "preprocess"):
            image = source.tensor()
            source.release()
            batch = list_data_collate([self._preprocessing({"image": image})])
        with _timed(seconds, "network"):
            image = batch["image"].to(self.device)
            scores = self._inferer(image, self._network)
        with _timed(seconds, "postprocess"):
            item = decollate_batch({**batch, "image": image, "pred": scores})[0]
            return self._postprocessing(item)["pred"]

    def _monai_runtime(self, network: torch.nn.Module) -> ChosenRuntime:
        """Return the network itself, which is what an inferer of MONAI is given."""
        if self.recipe.options.mirror or self.recipe.ensemble:
            raise UsageError(
                "this bundle's scores cannot be averaged",
                found="; ".join(self.engine_reasons),
                hint="predict without --mirror and --ensemble",
            )
        reasons = () if self.recipe.options.runtime == "torch" else ("the bundle's own inferer calls the network",)
        return ChosenRuntime("torch", torch_runtime(network), reasons)

    def _streaming_runtime(self, network: torch.nn.Module, windowing: Windowing) -> ChosenRuntime:
        recipe = self.recipe
        models = [Model(network, recipe.weights, _as_text(recipe.inference))]
        for member in recipe.ensemble:
            parser = self._parser(member.root, member.inference)
            network = load_weights(parsed(parser, "network_def"), member.weights, self.device)
            models.append(Model(network, member.weights, _as_text(member.inference)))
        shape = (recipe.channels, *windowing.roi_size)
        chosen = choose_average(recipe.options.runtime, models, self.device, shape, torch.get_num_threads())
        axes = [AXES.index(axis) for axis in recipe.options.mirror]
        return replace(chosen, run=mirrored(chosen.run, axes))

    def _parser(self, root: str, config: Mapping[str, Any]) -> ConfigParser:
        parser = ConfigParser(config=without_savers(config))
        parser["bundle_root"] = root
        parser["device"] = str(self.device)
        return parser


def _why_not_streaming(typed: Preprocessing | None, windowing: Mapping[str, Any] | None) -> tuple[str, ...]:
    if typed is None:
        return ("the transforms are outside the closed list",)
    if windowing is None:
        return ("inferer or post-processing is outside the closed form",)
    reason = typed.why_not_streamed()
    return (reason,) if reason else ()


def _as_text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, default=str)


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
