"""Ignite handlers that make training repeatable and stop it when it cannot go on."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys

from segpipe.common.console import Console
from segpipe.components.processes import of_all_processes, process_number
from segpipe.errors import DataError, UsageError


class EpochSeed:
    """Seed everything at the start of each epoch from (seed, epoch).

    Then an epoch depends on nothing but its number and the weights, so a resumed run equals an uninterrupted one,
    with and without worker processes (which MONAI's loader seeds from torch).

    Args:
        seed: the run's seed.
        transform: the transform of the training data set, whose random parts keep states of their own.
        sampler: that is told the epoch, such as `EpochSampler`.
    """

    def __init__(self, seed: int, transform: Any = None, sampler: Any = None) -> None:
        self.seed = seed
        self.transform = transform
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed torch (all devices), NumPy, random and the transforms."""
        others = [process_number()] if process_number() else []  # that dropout is not the same in each process
        seed = int(np.random.SeedSequence([self.seed, engine.state.epoch, *others]).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        if hasattr(self.transform, "set_random_state"):
            self.transform.set_random_state(seed=seed)
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(engine.state.epoch)


class LossSchedule:
    """Tell a loss that changes over the run (`HausdorffLoss`) what time it is, from the trainer's own state.

    Args:
        loss: a module; it, or a loss within it, may have ``set_time(epoch, step)``.
    """

    def __init__(self, loss: Any) -> None:
        self.scheduled = [module for module in loss.modules() if hasattr(module, "set_time")]

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set epoch and step, both counted from 1."""
        for loss in self.scheduled:
            loss.set_time(engine.state.epoch, engine.state.iteration)


class StopOnNonFinite:
    """End the run before a loss that is not finite reaches the weights, naming the cases of the batch."""

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Raise `DataError` for an input that is not finite, `UsageError` for a run that diverged."""
        loss = engine.state.output[CommonKeys.LOSS]
        if bool(torch.isfinite(loss).all()):
            return
        raise _not_finite(engine, "loss")


class GradientClip:
    """Clip the gradient's norm; end the run where it is not finite, or leave out such steps as a scaler of AMP does.

    In bfloat16 the voxels of a nearly constant map become equal, and normalising these multiplies a gradient at each
    layer by what keeps it from dividing by 0: images that are mostly padding have such steps, whose weights stay.

    Args:
        max_norm: largest 2-norm over all parameters.
        most_skipped: share of an epoch's steps that may be left out before the run ends; 0: the first ends it.
    """

    def __init__(self, max_norm: float = 12.0, most_skipped: float = 0.0) -> None:
        self.max_norm = max_norm
        self.most_skipped = most_skipped
        self.skipped = Counter[int]()  # by epoch

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._tell)

    def _tell(self, engine: Engine) -> None:
        if self.skipped and process_number() == 0:
            words = f"{self.skipped.total()} steps were left out, as their gradient was not finite in bfloat16"
            Console("train").note(f"{words}; --set precision=float32 has none")

    def __call__(self, engine: Any) -> None:
        """Unscale under AMP, then clip."""
        scaled = getattr(engine, "amp", False) and engine.scaler is not None
        if scaled:
            engine.scaler.unscale_(engine.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_norm)
        if scaled or bool(torch.isfinite(norm)):
            return
        epoch = engine.state.epoch
        self.skipped[epoch] += 1
        if self.skipped[epoch] > self.most_skipped * engine.state.epoch_length:
            hint = "" if not self.most_skipped else "--set precision=float32, or with "
            raise _not_finite(engine, "gradient", hint)
        engine.network.zero_grad(set_to_none=True)  # the optimiser passes over what has no gradient


def _not_finite(engine: Engine, noun: str, instead: str = "") -> Exception:
    batch = engine.state.batch
    batch = batch[0] if isinstance(batch, list) else batch
    finite = torch.isfinite(torch.as_tensor(batch[CommonKeys.IMAGE])).flatten(1).all(1).tolist()
    parts = of_all_processes([*zip(map(str, batch.get("case_id", ["unknown"] * len(finite))), finite, strict=True)])
    where = f"epoch {engine.state.epoch}, step {engine.state.iteration}"
    cases = [pair for part in parts for pair in part]
    faulty = [case for case, is_finite in cases if not is_finite]
    if faulty:
        named = ", ".join(dict.fromkeys(faulty))
        return DataError("an image has NaN or infinite voxels", case_id=named, found=where, hint="run `segpipe check`")
    return UsageError(
        f"the {noun} is not finite",
        case_id=", ".join(dict.fromkeys(case for case, _ in cases)),
        found=where,
        hint=f"the last epoch is kept; train again with {instead}a lower learning_rate (--set learning_rate=...)",
    )
