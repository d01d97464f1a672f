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

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch
from monai.data.utils import list_data_collate
from monai.transforms import Compose
from numpy.typing import NDArray

from segpipe.common.nifti import Header
from segpipe.common.processes import usable_cores
from segpipe.dicom import Series
from segpipe.errors import SegpipeError, UsageError
from segpipe.inference.activations import ExtraOutputs
from segpipe.inference.engine import StreamingEngine
from segpipe.inference.monai_evaluator import MonaiEvaluator, device_of, load, parsed, stop_saving
from segpipe.inference.output import as_labels
from segpipe.inference.prefetch import Prefetcher, Read
from segpipe.inference.recipe import AXES, Recipe
from segpipe.inference.runtimes import ChosenRuntime, Model, choose_average, flips_along, mirrored, torch_runtime
from segpipe.inference.sliding_window import Windowing
from segpipe.inference.source import CaseInput, Preview, Source, preview_of, read_headers, read_source
from segpipe.inference.transforms import Preprocessing


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map (X, Y, Z) on its source's grid, a look at the source, and the seconds that each stage took.

    With ``regions`` bits of a voxel say in which of so many regions, which may overlap, it lies.
    """

    labels: NDArray[np.uint8]
    grid: Header
    preview: Preview
    seconds: dict[str, float] = field(default_factory=dict)
    regions: int = 0


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
        self.recipe = recipe
        self.prefetcher = Prefetcher(recipe.channels, recipe.options.max_memory)
        self.device = device_of(recipe.options.device)
        torch.set_num_threads(recipe.options.threads or min(torch.get_num_threads(), usable_cores()))
        self._typed = None if recipe.preprocessing is None else Preprocessing.parse(recipe.preprocessing)
        self.engine_reasons = self._why_monai()
        self.engine = "monai" if self.engine_reasons else "streaming"
        if self._typed is None:
            self._stock = MonaiEvaluator(recipe.root, recipe.inference, recipe.metadata, self.device)
            self.runtime = self._choose(self._stock.network)
        else:
            self._build(recipe, self._typed)

    def _build(self, recipe: Recipe, typed: Preprocessing) -> None:
        config = copy.deepcopy(recipe.inference)
        stop_saving(config)
        parser = self._parser(recipe.root, config)
        # as an object, so that Invertd refers to the very same
        parser["preprocessing"] = Compose(typed.build(after_reading=True))
        network = load(parsed(parser, "network_def"), recipe.weights, self.device)
        self.runtime = self._choose(network)
        if self.engine == "monai":
            self._preprocessing = parsed(parser, "preprocessing")
            self._postprocessing = parsed(parser, "postprocessing")
            self._inferer = parsed(parser, "inferer")
            self._network = network
        else:
            parser["cleanup"] = list(recipe.cleanup)
            self._streaming = StreamingEngine(
                typed,
                Windowing(**recipe.windowing or {}),
                self.runtime.run,
                self.device,
                recipe.channels,
                recipe.options.max_memory,
                parsed(parser, "cleanup") if recipe.cleanup else None,
            )

    def _parser(self, root: str, config: dict[str, Any]) -> ConfigParser:
        parser = ConfigParser(config=config)
        parser["bundle_root"] = root
        parser["device"] = str(self.device)
        return parser

    def segment(self, case: CaseInput, extra_outputs: ExtraOutputs | None = None, key: str | None = None) -> LabelMap:
        """The label map of one case.

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
            source, preview = self._read(case, key)
        with torch.inference_mode():
            if self.engine == "streaming":
                labels = self._streaming.segment(source, seconds, extra_outputs)
                regions = self._streaming.regions
            else:
                labels, regions = self._as_monai(source, case, seconds), self.recipe.regions
        return LabelMap(labels, source.header, preview, seconds, regions)

    def _read(self, case: CaseInput, key: str | None) -> tuple[Source, Preview]:
        """A case's images, which fit into memory."""
        if self.engine != "streaming":
            source = read_source(case, self.recipe.channels)
            return source, preview_of(source)
        read = self.prefetcher.take(key)
        if read is not None:
            forecast = self._streaming.estimate_memory(read.headers, read.source.array.nbytes)
        else:
            headers = read_headers(case, self.recipe.channels)
            loaded = case.array.nbytes if isinstance(case, Source) else 0
            forecast = self._streaming.estimate_memory(headers, loaded)
            source = read_source(case, self.recipe.channels, headers)
            read = Read(headers, source, preview_of(source))
        self.prefetcher.begin(forecast.peak)
        return read.source, read.preview

    def _as_monai(self, source: Source, case: CaseInput, seconds: dict[str, float]) -> NDArray[np.uint8]:
        if self._typed is None:
            source.forget()
            return as_labels(self._stock.predict(_paths_of(case), seconds), source.header, self.recipe.regions)
        with _timed(seconds, "preprocess"):
            image = source.tensor()
            source.forget()
            batch = list_data_collate([self._preprocessing({"image": image})])
        with _timed(seconds, "network"):
            image = batch["image"].to(self.device)
            scores = self._inferer(image, self._network)
        with _timed(seconds, "postprocess"):
            item = decollate_batch({**batch, "image": image, "pred": scores})[0]
            return as_labels(self._postprocessing(item)["pred"], source.header, self.recipe.regions)

    def _choose(self, network: torch.nn.Module) -> ChosenRuntime:
        recipe, options, wanted = self.recipe, self.recipe.options, self.recipe.options.runtime
        if self.engine == "monai":  # its inferer is given the network itself
            if options.mirror or recipe.ensemble:
                raise UsageError(
                    "this bundle's scores cannot be averaged",
                    found="; ".join(self.engine_reasons),
                    hint="predict without --mirror and --ensemble",
                )
            why = () if wanted == "torch" else ("the bundle's own inferer calls the network",)
            return ChosenRuntime("torch", torch_runtime(network), why)
        models = [Model(network, recipe.weights, json.dumps(recipe.inference, sort_keys=True, default=str))]
        for member in recipe.ensemble:
            parser = self._parser(member.root, copy.deepcopy(member.inference))
            network = load(parsed(parser, "network_def"), member.weights, self.device)
            text = json.dumps(member.inference, sort_keys=True, default=str)
            models.append(Model(network, member.weights, text))
        shape = (recipe.channels, *(recipe.windowing or {})["roi_size"])
        chosen = choose_average(wanted, models, self.device, shape, torch.get_num_threads())
        flips = flips_along([AXES.index(axis) for axis in options.mirror])
        return replace(chosen, run=mirrored(chosen.run, flips))

    def _why_monai(self) -> tuple[str, ...]:
        if self._typed is None:
            return ("the transforms are outside the closed list",)
        if self.recipe.windowing is None:
            return ("inferer or post-processing is outside the closed form",)
        reason = self._typed.why_not_streamed()
        return (reason,) if reason else ()


def _paths_of(case: CaseInput) -> list[str] | str:
    """What MONAI reads a case from."""
    if isinstance(case, (Series, Source)):
        raise SegpipeError("the stock route was given no files", hint="write the images as NIfTI first")
    paths = [str(path) for path in case]
    return paths if len(paths) > 1 else paths[0]


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)
