"""segpipe plan: a task fragment from a dataset's fingerprint."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from segpipe.common.console import Console
from segpipe.errors import UsageError


def command(
    manifest: Annotated[Path, typer.Argument(help="Dataset manifest; its training cases are read.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Task fragment to write.")] = Path("task.yaml"),
    data: Annotated[Path | None, typer.Option(help="Folder that the manifest's paths start from.")] = None,
    memory: Annotated[str, typer.Option(help="What one training step may use, e.g. 8G or 600M.")] = "8G",
    network: Annotated[str, typer.Option(help="Network to plan for: unet, unetpp, dynunet, or a path.")] = "unet",
    overwrite: Annotated[bool, typer.Option(help="Replace a fragment that is there already.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Look at the training cases and write the task fragment that suits them.

    Every case is read once for the dataset's fingerprint: shapes, spacings, intensities, label volumes
    (written beside the fragment, with case ids only; test cases are never opened). From it, small rules
    choose orientation, spacing, intensity normalisation, patch size, batch size, depth, cache and overlap,
    and the table says why, and who says so. The fragment is YAML with the same words: change it by hand.

    Example: segpipe plan data_manifests/msd_task04_hippocampus.json --data DATA -o task.yaml
    """
    import psutil

    from segpipe.common.files import write_text
    from segpipe.common.processes import usable_cores
    from segpipe.data import beside, data_root, load_manifest, save_fingerprint, take_fingerprint
    from segpipe.training import cost_of, fragment_text, make_plan, read_fragment

    console = Console("plan", as_json=json)
    memory_bytes = _bytes(memory)
    cost = cost_of(network, read_fragment("network", network)[0]["patch_divisor"])
    dataset = load_manifest(manifest)
    root = data_root(manifest, data)
    if output.exists() and not overwrite:
        raise UsageError(
            "the task fragment is there already, and may have been changed by hand",
            path=output,
            hint="name another one with -o, or give --overwrite",
        )
    with console.progress() as progress:
        bar = progress.add_task("reading", total=len(dataset.training))
        fingerprint = take_fingerprint(dataset, root, on_case=lambda _id: progress.advance(bar))
    plan = make_plan(
        fingerprint, dataset, cost, memory_bytes, free_bytes=psutil.virtual_memory().available, cores=usable_cores()
    )
    save_fingerprint(fingerprint, beside(output))
    write_text(output, fragment_text(plan, len(fingerprint.cases)))

    next_command = _next_command(manifest, data, output, network, plan.settings)
    if not dataset.folds():
        next_command = shlex.join(["segpipe", "split", str(manifest)])
        console.note(
            "the manifest is not split yet, so this plan has seen cases that may be held out later: split it, "
            "then plan again with --overwrite"
        )
    rules = list(plan.rules.values())
    console.table(
        f"Plan for {dataset.name}, {len(fingerprint.cases)} training cases",
        ["rule", "value", "why", "source"],
        [(rule.name, _short(rule.value), rule.why, rule.source) for rule in rules],
    )
    console.say(f"Written: {output} and {beside(output)}\nNext:    {next_command}")
    console.document(
        task=str(output),
        fingerprint=str(beside(output)),
        rules=[vars(rule) for rule in rules],
        settings=plan.settings,
        next=next_command,
    )


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise UsageError("not an amount of memory", found=text, expected="a number and a unit, e.g. 8G or 600M")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))


def _short(value: object) -> str:
    if isinstance(value, dict):
        parts = {name: part for name, part in value.items() if name not in ("keys", "allow_missing_keys")}
        return "\n".join(f"{name.replace('_target_', 'transform')} {_short(part)}" for name, part in parts.items())
    return str(value)


def _next_command(manifest: Path, data: Path | None, task: Path, network: str, settings: dict[str, object]) -> str:
    words = ["segpipe", "train", str(manifest), *(["--data", str(data)] if data else []), "--task", str(task)]
    words += ["--network", network, "--loss", "dice_ce", "--fold", "0", "--out", "runs/first"]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join(words)
