"""A budget of steps or minutes as whole epochs, since a run's learning rate falls from its first epoch to its last."""

from __future__ import annotations

import math

VALIDATIONS = 10  # a run is validated about so often, and always at its end


def epochs_for_steps(steps: int, steps_per_epoch: int) -> int:
    """The number of epochs that comes nearest to the steps, at least one."""
    return max(1, math.floor(steps / steps_per_epoch + 0.5))


def epochs_for_minutes(minutes: float, seconds_of_training: float, seconds_of_validation: float) -> int:
    """The epochs that fit into the minutes with their validations, at least one.

    Args:
        minutes: the budget.
        seconds_of_training: of one epoch's steps.
        seconds_of_validation: of validating once.
    """
    seconds = minutes * 60
    most = 2 * VALIDATIONS  # a run of n intervals of epochs, each with a validation, n below this
    interval = max(1, math.floor((seconds / most - seconds_of_validation) / seconds_of_training) + 1)
    intervals = math.floor(seconds / (interval * seconds_of_training + seconds_of_validation))
    return max(1, intervals * interval)


def validation_interval(epochs: int) -> int:
    """The largest divisor of the epochs with at least ten validations, or 1: so the last epoch is validated."""
    return next(step for step in range(max(1, epochs // VALIDATIONS), 0, -1) if epochs % step == 0)
