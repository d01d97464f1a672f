"""Train a composed config: dry run, run, resume, and the same with several seeds.

folder   what a new run begins with
session  run and resume
seeds    the same training with several seeds, a run each
trial    the dry run
failure  why a training ended early
"""

from pipeline.train.failure import unwrap
from pipeline.train.folder import PLACES, compose_run, prepare, require_same
from pipeline.train.seeds import SEEDS, read_seeds, resume_seeds, train_seeds
from pipeline.train.session import resume, start
from pipeline.train.trial import dry_run

__all__ = [
    "PLACES",
    "SEEDS",
    "compose_run",
    "dry_run",
    "prepare",
    "read_seeds",
    "require_same",
    "resume",
    "resume_seeds",
    "start",
    "train_seeds",
    "unwrap",
]
