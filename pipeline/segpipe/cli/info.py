"""What there is to choose from: networks with what they cost, and losses, read from their fragments."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from segpipe.errors import UsageError
from segpipe.training import known_fragments, padded_patch, read_comment, read_fragment, take_slices

BASELINE = "unet"
MEGA, GIGA = 1e6, 1e9
NOT_TURNED: dict[str, Any] = {"random_transforms": [], "batch_transforms": []}
TIMED_STEPS = 2  # after one that warms up; the faster counts


@dataclass(frozen=True)
class Batch:
    """What a training step gets.

    Attributes:
        in_channels: image channels.
        out_channels: scores of a voxel.
        patch_size: voxels along each axis, before a network's padding.
        batch_size: patches.
    """

    in_channels: int = 1
    out_channels: int = 2
    patch_size: tuple[int, int, int] = (64, 64, 64)
    batch_size: int = 2


def batch_of(
    task: str | None,
    in_channels: int | None,
    out_channels: int | None,
    patch_size: tuple[int, int, int] | None,
    batch_size: int,
) -> Batch:
    """Return a batch as a task fragment has it, or the default; what is given comes first.

    Raises:
        UsageError: no such fragment, or a patch that is none.
    """
    options = {"in_channels": in_channels, "out_channels": out_channels, "patch_size": patch_size}
    stated: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if task is not None:
        fragment, _ = read_fragment("task", task)
        stated = {**{name: fragment[name] for name in options}, **stated}
    batch = Batch(**stated, batch_size=batch_size)
    sizes = [batch.in_channels, batch.out_channels, *batch.patch_size]
    if len(sizes) != 5 or any(type(size) is not int or size < 1 for size in sizes):
        raise UsageError("channels and patch must be positive whole numbers", found=asdict(batch), path=task)
    return batch


@dataclass(frozen=True)
class NetworkFacts:
    """One row of `segpipe info networks`; None is what could not be counted.

    Attributes:
        name: word or path of the fragment.
        network: class that it builds.
        about: the fragment's own comment.
        patch_divisor: what each axis of a patch must divide by.
        patch_size: the patch, padded for this network.
        normalisation: kinds of normalisation layers.
        parameters: trained numbers.
        heads: outputs that the loss compares with the truth; more than one is deep supervision.
        weights_mb: parameters and buffers.
        activations_mb: what the forward pass of the batch keeps for the backward pass.
        step_mb: peak of a training step with AdamW.
        multiply_adds_g: 10^9 multiply-adds of forward and backward pass.
        relative_cost: multiply-adds by those of the U-Net with its own padded patch.
        seconds: a training step here; None where not timed.
        relative_seconds: by the U-Net's.
        refused: why the network does not take the patch, or None.
    """

    name: str
    network: str
    about: str
    patch_divisor: int | tuple[int, int, int]
    patch_size: list[int]
    normalisation: list[str]
    parameters: int
    heads: int | None = None
    weights_mb: float | None = None
    activations_mb: float | None = None
    step_mb: float | None = None
    multiply_adds_g: float | None = None
    relative_cost: float | None = None
    seconds: float | None = None
    relative_seconds: float | None = None
    refused: str | None = None


def network_facts(names: Sequence[str], batch: Batch, timed: bool = False) -> Iterator[NetworkFacts]:
    """Yield what each network costs, the U-Net's own cost being 1.

    Args:
        names: words or paths of network fragments.
        batch: of the training step.
        timed: run training steps, too.

    Raises:
        UsageError: no such fragment, or one that cannot be built.
    """
    baseline = _measure(BASELINE, batch, timed)
    for name in names:
        facts = baseline if name == BASELINE else _measure(name, batch, timed)
        cost, seconds = (_ratio(facts, baseline, what) for what in ("multiply_adds_g", "seconds"))
        yield NetworkFacts(**facts, relative_cost=cost, relative_seconds=seconds)


def losses() -> list[dict[str, str]]:
    """Return name, class and comment of each shipped loss fragment."""
    return [
        {
            "name": name,
            "loss": str(read_fragment("loss", name)[0]["loss"]["_target_"]).rpartition(".")[2],
            "about": read_comment("loss", name),
        }
        for name in known_fragments("loss")
    ]


def _measure(name: str, batch: Batch, timed: bool) -> dict[str, Any]:
    from segpipe.training import build_network, cost_of_step, output_shapes, profile_of, shapes_of_network

    fragment, _ = read_fragment("network", name)
    divisor = profile_of(name, fragment["patch_divisor"]).divisor
    config = {**fragment, "in_channels": batch.in_channels, "out_channels": batch.out_channels}
    config |= {"patch_size": list(batch.patch_size), "deterministic_transforms": [], **NOT_TURNED}
    take_slices(config)
    patch = padded_patch(config["patch_size"], config["patch_divisor"])
    shape = (batch.batch_size, batch.in_channels, *patch)
    network = shapes_of_network(config).train()
    facts: dict[str, Any] = {
        "name": name,
        "network": type(network).__name__,
        "about": read_comment("network", name),
        "patch_divisor": divisor,
        "patch_size": patch,
        "normalisation": _normalisation(network),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    try:
        runs_on_shapes = output_shapes(network, shape) is not None
    except UsageError as error:
        return {**facts, "refused": error.found}
    if runs_on_shapes:
        counted = cost_of_step(network, shape)
        facts |= {
            "heads": counted.heads,
            "weights_mb": round(counted.weight_bytes / MEGA, 1),
            "activations_mb": round(counted.activation_bytes / MEGA, 1),
            "step_mb": round(counted.step_bytes / MEGA, 1),
            "multiply_adds_g": round(counted.multiply_adds / GIGA, 2),
        }
    if timed:
        facts["seconds"] = _seconds_of_step(build_network(config), shape, batch.out_channels)
    return facts


def _seconds_of_step(network: Any, shape: Sequence[int], out_channels: int) -> float:
    """Time a step of AdamW on noise, with Dice plus cross entropy over all heads, on the CPU."""
    import torch

    from segpipe.components import DeepSupervision, DiceCELoss

    loss = DeepSupervision(DiceCELoss(activation="softmax" if out_channels > 1 else "sigmoid"))
    optimizer = torch.optim.AdamW(network.train().parameters())
    with torch.random.fork_rng(devices=[]):
        image = torch.randn(tuple(shape))
        truth = torch.randint(0, max(2, out_channels), (shape[0], 1, *shape[2:])).float()
    seconds = []
    for _ in range(1 + TIMED_STEPS):
        began = time.perf_counter()
        optimizer.zero_grad()
        loss(network(image), truth).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return round(min(seconds[1:]), 3)


def _normalisation(network: Any) -> list[str]:
    """Return the kinds of the layers whose class is called so: ``BatchNorm3d`` is batch."""
    kinds = {
        type(module).__name__.partition("Norm")[0].lower()
        for module in network.modules()
        if re.fullmatch(r"[A-Z][a-z]+Norm(\dd)?", type(module).__name__)
    }
    return sorted(kinds)


def _ratio(facts: Mapping[str, Any], baseline: Mapping[str, Any], measure: str) -> float | None:
    return round(facts[measure] / baseline[measure], 2) if facts.get(measure) and baseline.get(measure) else None
