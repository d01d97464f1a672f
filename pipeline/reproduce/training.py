"""The recorded training once more, in an ordinary run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.compose import check_components, check_network
from pipeline.reproduce.recorded import Recorded
from pipeline.train import require_same, resume, start


def train_again(recorded: Recorded, out: Path, data: Path) -> dict[str, Any]:
    """Train with the recorded config, seed, threads and workers; a run that is there goes on, a finished one is kept.

    Args:
        recorded: of the bundle.
        out: run folder.
        data: folder of the data set.

    Returns:
        The run record.

    Raises:
        UsageError: the folder holds another run, or the config needs what this version does not have.
    """
    composed = recorded.at(out, data)
    if (out / "run.json").exists():
        require_same(out, composed.config, recorded.manifest_file)
        return resume(out, data)
    check_components(composed.config)
    check_network(composed.config)
    return start(composed, recorded.manifest_file, out)
