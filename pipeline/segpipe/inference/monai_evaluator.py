"""Any bundle in MONAI's format, case by case: its own evaluator, as `python -m monai.bundle run` builds it.

Only where cases come from and where results go is changed: the data of the evaluator's loader, `device`,
`dataset_dir`, `output_dir` and `run_dir`, and what saves images. All else is the config's own: imports, macros,
references, initialisation, weights, handlers, inferer and post-processing.
"""

from __future__ import annotations

import contextlib
import copy
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv
from monai.engines.utils import IterationEvents
from monai.transforms import Compose, LoadImaged

from segpipe.errors import DataError, SegpipeError
from segpipe.inference.transforms import elsewhere, root_cause, short_name, without_savers

STOCK = "python -m monai.bundle run --config_file BUNDLE/configs/inference.json --bundle_root BUNDLE"
_RUN = re.compile(r"\$\s*@(\w+(?:(?:#|::)\w+)*)\.run\(\)\s*")
_REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")
_DATASETS = ("Dataset", "CacheDataset", "PersistentDataset", "SmartCacheDataset", "LMDBDataset")
_LOADERS = ("DataLoader", "ThreadDataLoader")


class MonaiEvaluator:
    """A bundle's evaluator, which is given one case after another.

    Args:
        root: the bundle's folder; modules of its own are imported from there.
        inference: its inference config, not evaluated.
        metadata: that of the bundle, which configs may refer to as ``_meta_``.
        device: where it computes.

    Raises:
        DataError: the config is not that of an evaluator over a data set, or cannot be built.
    """

    def __init__(
        self, root: str, inference: Mapping[str, Any], metadata: Mapping[str, Any], device: torch.device
    ) -> None:
        if root not in sys.path:
            sys.path.insert(1, root)  # where `monai.bundle run` has it
        self._config = _as_read(inference, metadata)
        if "device" in self._config:
            self._config["device"] = f"$torch.device({str(device)!r})"
        self._config.update(bundle_root=root, **elsewhere(self._config))
        parser = ConfigParser(self._config)
        with _config_errors("parsed"):
            parser.resolve_macro_and_relative_ids()
        self._config = parser.get()
        self._before, self._evaluator_id = _what_runs(self._config)
        _take_over_data(self._config, self._evaluator_id)
        self._config = without_savers(self._config)
        self._evaluator: Any = None
        self._build()

    def _build(self) -> None:
        parser = ConfigParser(copy.deepcopy(self._config))
        with _config_errors("built"):
            parser.parse()
            for name in self._before:
                parser.get_parsed_content(name)
            evaluator = parser.get_parsed_content(self._evaluator_id)
        if not all(hasattr(evaluator, name) for name in ("run", "state", "data_loader", "add_event_handler")):
            raise _not_case_by_case(f"{self._evaluator_id} is no engine", type(evaluator).__name__)
        self._output: Any = None
        self._marks: dict[str, float] = {}
        evaluator.add_event_handler(Events.GET_BATCH_COMPLETED, self._mark, "preprocess")
        with contextlib.suppress(ValueError):  # an engine of the bundle's own may not have this event
            evaluator.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._mark, "network")
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._keep)  # behind its own post-processing
        self._evaluator = evaluator

    @property
    def network(self) -> Any:
        """The network that the evaluator calls, None where that is several."""
        return getattr(self._evaluator, "network", None)

    def network_with_weights(self) -> Any:
        """Return it after what the evaluator does at the start of a run, such as to load the weights."""
        self._evaluator.fire_event(Events.STARTED)
        return self.network

    def _mark(self, _engine: Any, name: str) -> None:
        self._marks[name] = time.perf_counter()

    def _keep(self, engine: Any) -> None:
        self._output = engine.state.output

    def predict(self, image: str | list[str], seconds: dict[str, float]) -> Any:
        """Return what the bundle makes of one case, a tensor (C, X, Y, Z).

        Args:
            image: the file, or one file a channel.
            seconds: what the stages took is added here.

        Raises:
            DataError: it gives no ``pred`` of one case.
        """
        if self._evaluator is None:  # a failure leaves the engine within its run
            self._build()
        evaluator, self._evaluator = self._evaluator, None
        self._output, self._marks, start = None, {}, time.perf_counter()
        dataset = evaluator.data_loader.dataset
        dataset.data = [{_image_key(dataset.transform): image}]
        evaluator.run()
        end, output, self._output = time.perf_counter(), self._output, None
        evaluator.state.output = evaluator.state.batch = None
        self._evaluator = evaluator
        for name in ("preprocess", "network", "postprocess"):
            reached = self._marks.get(name, end if name == "postprocess" else start)
            seconds[name] = round(reached - start, 3)
            start = reached
        if not isinstance(output, list) or len(output) != 1 or "pred" not in output[0]:
            raise _not_case_by_case("the evaluator gives no 'pred' for a case", type(output).__name__)
        return output[0]["pred"]


def _as_read(inference: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config as MONAI reads it from its file: keys ``a::b`` and ``+a`` taken apart, metadata beside it."""
    parser = ConfigParser(config={})
    with _config_errors("read"):
        for key, value in copy.deepcopy(dict(inference)).items():
            merge_kv(parser, key, value)
    return {**parser.get(), ConfigParser.meta_key: copy.deepcopy(dict(metadata))}


def _what_runs(config: dict[str, Any]) -> tuple[list[str], str]:
    """Return ids that are evaluated first, and that of the evaluator that is run last."""
    run = config.get("run")
    steps = run if isinstance(run, list) else [run]
    match = _RUN.fullmatch(steps[-1]) if steps and isinstance(steps[-1], str) else None
    if match is None or any(isinstance(step, str) and ".run(" in step for step in steps[:-1]):
        raise _not_case_by_case("its 'run' is not that of one evaluator", repr(run))
    prepared = config.get("initialize")
    before = [f"initialize::{index}" for index in range(len(prepared))] if isinstance(prepared, list) else []
    before += ["initialize"] if prepared is not None and not isinstance(prepared, list) else []
    before += [f"run::{index}" for index in range(len(steps) - 1)]
    return before, _follow(config, match[1])


def _take_over_data(config: dict[str, Any], evaluator: str) -> None:
    """Have the evaluator's data set hold one case, which is put into it later."""
    loader = _component(config, evaluator, "val_data_loader", _LOADERS)
    dataset = _component(config, loader, "dataset", _DATASETS)
    own = {name: value for name, value in _at(config, loader).items() if name in ("dataset", "collate_fn")}
    _replace(_at(config, loader), {"_target_": "DataLoader", "batch_size": 1, "num_workers": 0, **own})
    transform = _at(config, dataset).get("transform")
    _replace(_at(config, dataset), {"_target_": "Dataset", "data": [{}], "transform": transform})


def _replace(component: dict[str, Any], by: dict[str, Any]) -> None:
    component.clear()
    component.update(by)


def _component(config: dict[str, Any], owner: str, name: str, kinds: tuple[str, ...]) -> str:
    """Return the id of a component's argument that is a component of a known class itself."""
    id = _follow(config, f"{owner}::{name}")
    component = _at(config, id)
    if not isinstance(component, dict) or short_name(component) not in kinds:
        shown = str(component.get("_target_")) if isinstance(component, dict) else repr(component)
        raise _not_case_by_case(f"{owner}::{name} is not one of {', '.join(kinds)}", shown)
    return id


def _image_key(transform: Any) -> str:
    """Return the first key that the first `LoadImaged` reads, ``image`` where there is none to be seen."""
    for step in getattr(transform, "transforms", [transform]):
        if isinstance(step, LoadImaged):
            return str(step.keys[0])
        if isinstance(step, Compose):
            return _image_key(step)
    return "image"


def _follow(config: dict[str, Any], id: str) -> str:
    """Return the id at the end of a chain of whole references."""
    seen: set[str] = set()
    while id not in seen:
        seen.add(id)
        value = _at(config, id)
        match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            return id
        id = match[1]
    raise _not_case_by_case("its references run in a circle", id)


def _at(config: dict[str, Any], id: str) -> Any:
    value: Any = config
    for part in re.split("#|::", id):
        if isinstance(value, dict):
            value = value.get(part)
        else:
            within = isinstance(value, list) and part.isdecimal() and int(part) < len(value)
            value = value[int(part)] if within else None
    return value


def _not_case_by_case(why: str, found: str) -> DataError:
    return DataError(
        f"the bundle cannot be run case by case: {why}", found=found[:200], hint=f"run it as a whole: {STOCK}"
    )


@contextlib.contextmanager
def _config_errors(what: str) -> Iterator[None]:
    try:
        yield
    except SegpipeError:
        raise
    except Exception as error:
        raise DataError(
            f"the bundle's inference config cannot be {what}",
            found=root_cause(error),
            hint=f"see whether it runs as a whole: {STOCK}",
        ) from error
