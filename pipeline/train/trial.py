"""A dry run: everything built, one step and one validation case, nothing written."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from pipeline.compose import Composed
from pipeline.console import quiet_libraries
from pipeline.errors import DataError
from pipeline.train.failure import unwrap


def dry_run(composed: Composed, manifest: Path) -> dict[str, Any]:
    """Instantiate everything and run one training step and one validation case, before any caching.

    Returns:
        Parameters, shapes, seconds a step, and an estimate of the whole.
    """
    quiet_libraries()
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser(
        {**json.loads(json.dumps(composed.config)), "cache_rate": 0.0, "manifest": str(manifest)}
    )
    try:
        parser.get_parsed_content("initialize")
        trainer, device = parser.get_parsed_content("train::trainer"), parser.get_parsed_content("device")
        network, loss = parser.get_parsed_content("train::network"), parser.get_parsed_content("train::loss")
        loader = parser.get_parsed_content("train::dataloader")
        batch = next(iter(loader))
        network.train()
        for _ in range(2):  # the first step warms up
            began = time.perf_counter()
            value = loss(network(batch["image"].to(device)), batch["label"].to(device))
            value.backward()
            seconds = time.perf_counter() - began
        case = next(iter(parser.get_parsed_content("validate::dataloader")))
        network.eval()
        began = time.perf_counter()
        with torch.no_grad():
            scores = parser.get_parsed_content("validate::inferer")(case["image"].to(device), network)
        loss(scores, case["label"].to(device))
        validation_seconds = time.perf_counter() - began
    except Exception as error:
        raise unwrap(error) from error
    if not math.isfinite(float(value)):
        raise DataError("the first loss is not finite", found=float(value))
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "batch_shape": list(batch["image"].shape),
        "first_loss": float(value),
        "validation_scores_shape": list(scores.shape),
        "seconds_per_step": round(seconds, 3),
        "steps_per_epoch": len(loader),
        "seconds_per_validation_case": round(validation_seconds, 3),
        "estimated_minutes": round(seconds * len(loader) * trainer.state.max_epochs / 60, 1),
    }
