"""Train a bundle's weights again from its own record, and say how near the outcome is.

recorded     what the bundle records of its training
data         the data set against the hashes that the bundle's manifest holds
environment  what differs here from where it was trained
training     the training, begun or gone on with
outcome      weights and validation Dice against the recorded ones, and the verdict
"""

from pipeline.reproduce.data import check_data, trained_on
from pipeline.reproduce.environment import Difference, differences
from pipeline.reproduce.outcome import REPORT, Outcome, judge
from pipeline.reproduce.recorded import Recorded, read_recorded
from pipeline.reproduce.training import train_again

__all__ = [
    "REPORT",
    "Difference",
    "Outcome",
    "Recorded",
    "check_data",
    "differences",
    "judge",
    "read_recorded",
    "train_again",
    "trained_on",
]
