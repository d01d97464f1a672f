"""segpipe info."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from segpipe.cli.shared_options import AsJson
from segpipe.common.console import Console, quiet_libraries
from segpipe.errors import OK

if TYPE_CHECKING:
    from segpipe.cli.info import Batch, NetworkFacts


class Topic(StrEnum):
    """What can be listed."""

    networks = "networks"
    losses = "losses"


def command(
    topic: Annotated[Topic, typer.Argument(help="What to list.", show_default=False)],
    network: Annotated[
        list[str] | None, typer.Option(help="Only this network, by name or path; may be repeated.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task fragment to take channels and patch size from; a name or a path.")
    ] = None,
    in_channels: Annotated[int | None, typer.Option(min=1, help="Image channels. [default: 1]")] = None,
    out_channels: Annotated[int | None, typer.Option(min=1, help="Scores of a voxel. [default: 2]")] = None,
    patch: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Patch, three numbers of voxels. [default: 64 64 64]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Patches of a step.")] = 2,
    time: Annotated[bool, typer.Option("--time", help="Run training steps on this CPU, too.")] = False,
    json: AsJson = False,
) -> int:
    """List the networks with what a training step of each costs, or the losses with what each is for.

    Memory and multiply-adds are counted from shapes, so they take seconds and hold for any machine; `--time`
    measures seconds on this one. Each network gets the patch padded as `segpipe train` would.

    Example: segpipe info networks --task task.yaml
    """
    console = Console("info", as_json=json)
    if topic is Topic.losses:
        return _losses(console)
    quiet_libraries()
    from segpipe.cli.info import BASELINE, batch_of, network_facts
    from segpipe.training import known_fragments

    batch_facts = batch_of(task, in_channels, out_channels, patch, batch)
    names = list(network or known_fragments("network"))
    rows = []
    with console.progress() as bar:
        row = bar.add_task("networks", total=len(names))
        for facts in network_facts(names, batch_facts, time):
            rows.append(facts)
            bar.advance(row)
    _table(console, rows, batch_facts, time)
    console.document(
        topic=topic.value,
        baseline=BASELINE,
        **asdict(batch_facts),
        threads=_threads() if time else None,
        networks=[asdict(facts) for facts in rows],
    )
    return OK


def _table(console: Console, rows: list[NetworkFacts], batch: Batch, timed: bool) -> None:
    from segpipe.training import divisor_words

    channels = f"{batch.in_channels} to {batch.out_channels} channels"
    columns = ["network", "parameters", "weights MB", "kept MB", "step MB", "GMAC", "cost"]
    columns += ["s a step", "time"] if timed else []
    columns += ["patch", "divisor", "heads", "normalisation"]
    table = []
    for facts in rows:
        cells = [
            facts.name,
            f"{facts.parameters:,}",
            facts.weights_mb,
            facts.activations_mb,
            facts.step_mb,
            facts.multiply_adds_g,
            facts.relative_cost,
        ]
        cells += [facts.seconds, facts.relative_seconds] if timed else []
        size = "x".join(map(str, facts.patch_size))
        cells += [size, divisor_words(facts.patch_divisor), facts.heads, ", ".join(facts.normalisation)]
        table.append(cells)
    console.table(f"A training step of {batch.batch_size} patches, {channels}", columns, table)
    for facts in rows:
        if facts.refused:
            console.say(f"{facts.name} does not take this patch: {facts.refused}")
    console.say(
        "kept: by the forward pass for the backward pass. step: peak with weights, gradients and AdamW, without the "
        "loss.\nGMAC: 10^9 multiply-adds, forward and backward; cost: the same by the U-Net's. "
        "patch: padded to multiples of its divisor.\n"
        "heads: more than one is deep supervision, which every loss here takes."
    )
    if timed:
        console.say(f"s a step: on this machine's CPU with {_threads()} threads, Dice + cross entropy included.")


def _losses(console: Console) -> int:
    from segpipe.cli.info import losses

    rows = losses()
    console.table("Losses", ["loss", "class", "about"], [tuple(row.values()) for row in rows])
    console.document(topic="losses", losses=rows)
    return OK


def _threads() -> int:
    import torch

    return torch.get_num_threads()
