"""Averaged weights and a slow start: what makes the end of a training less a matter of its last steps."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch.optim.lr_scheduler import LinearLR, LRScheduler, SequentialLR

from segpipe.components.pretrained import copy_frozen

MOMENTUM = "ema_momentum"  # of the trainer's state


def averaged_network(network: torch.nn.Module, decay: float = 0.0) -> torch.nn.Module:
    """Return the copy of a network that `WeightAveraging` keeps, or the network itself for a decay of 0."""
    return EMAHandler(network, momentum=1 - decay).ema_model if decay else network


class WeightAveraging:
    """Exponential moving average of the weights after each step (Polyak and Juditsky 1992), by Ignite's `EMAHandler`.

    Step t moves the average by max(1 - decay, 9 / (10 + t)) of the way to the weights, so that the first steps, whose
    weights are far from good, are soon forgotten (as `num_updates` of TensorFlow's ExponentialMovingAverage does).
    Running statistics of batch normalisation are averaged alike, and frozen modules stay as they are (the mean of equal
    numbers need not be that number). It depends on nothing but weights and step, so a
    resumed run goes on bit for bit.

    Args:
        network: that is trained.
        averaged: what `averaged_network` made of it.
        decay: share of the average that stays at each step; 0: no average.
    """

    def __init__(self, network: torch.nn.Module, averaged: torch.nn.Module, decay: float = 0.0) -> None:
        self.decay = decay
        self.network, self.averaged = network, averaged
        self.handler = EMAHandler(network, momentum=1 - decay, handle_buffers="update") if decay else None
        if self.handler is not None:
            self.handler.ema_model = averaged

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before the handlers that validate and save."""
        if self.handler is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._set_momentum)
            self.handler.attach(engine, MOMENTUM, warn_if_exists=False)
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: copy_frozen(self.network, self.averaged))

    def _set_momentum(self, engine: Engine) -> None:
        setattr(engine.state, MOMENTUM, max(1 - self.decay, 9 / (10 + engine.state.iteration)))


def warmed_up(optimizer: Any, schedule: LRScheduler, epochs: int = 0) -> LRScheduler:
    """Return a schedule behind so many epochs in which the learning rate rises to its first value; 0: as it is.

    Epoch k of them has k / (epochs + 1) of the rate.

    Args:
        optimizer: whose rate it is.
        schedule: of the epochs that follow.
        epochs: of the warm-up.
    """
    if not epochs:
        return schedule
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / (epochs + 1), total_iters=epochs), schedule], [epochs])
