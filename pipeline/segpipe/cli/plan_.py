"""segpipe plan: a task fragment from a dataset's fingerprint."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.shared_options import AsJson, Augment, DataFolder
from segpipe.common.console import Console


def command(
    manifest: Annotated[Path, typer.Argument(help="Dataset manifest; its training cases are read.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Task fragment to write.")] = Path("task.yaml"),
    data: DataFolder = None,
    memory: Annotated[
        str | None,
        typer.Option(help="What training steps may use, e.g. 8G [default: half of this machine's or container's]."),
    ] = None,
    network: Annotated[str, typer.Option(help="Network to plan for: unet, unetpp, dynunet, or a path.")] = "unet",
    loss: Annotated[str, typer.Option(help="Loss fragment to train with; its time counts with --budget.")] = "dice_ce",
    augment: Augment = "light",
    budget: Annotated[
        str | None, typer.Option(help="Time to train in, e.g. 2h or 45m: plan for this machine, by measured steps.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device to train on: cpu or cuda.")] = "cpu",
    folds: Annotated[
        int | None, typer.Option(help="With --budget: trainings that share it, one a fold [default: one run].")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="With --folds: so many at the same time, as `train --folds all --jobs` does.")
    ] = 1,
    first_stage: Annotated[
        bool,
        typer.Option("--first-stage", help="Plan the first of two stages: so coarse that a patch sees all labels."),
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that share each batch of one training, one for each GPU.")
    ] = 1,
    overwrite: Annotated[bool, typer.Option(help="Replace a fragment that is there already.")] = False,
    json: AsJson = False,
) -> None:
    """Look at the training cases and write the task fragment that suits them.

    Every case is read once for the dataset's fingerprint: shapes, spacings, intensities, label volumes
    (written beside the fragment, with case ids only; test cases are never opened). From it, small rules
    choose orientation, spacing, intensity normalisation, patch size, batch size, depth, cache and overlap,
    and the table says why, and who says so. The fragment is YAML with the same words: change it by hand.

    Where voxels are coarser along one axis, a network fragment is written too, whose strides (and for dynunet kernels)
    follow them.

    With --budget, steps and loading are measured on this machine for some seconds; spacing, patch, batch, steps and
    validations follow, and what the training will take is printed.

    Example: segpipe plan data_manifests/msd_task04_hippocampus.json --data DATA -o task.yaml
    """
    from segpipe.data import fingerprint_path
    from segpipe.training import network_path, plan, runtime_path

    console = Console("plan", as_json=json)
    with console.progress() as progress:
        bar = progress.add_task("reading", total=None)
        planned = plan(
            manifest,
            network=network,
            loss=loss,
            augment=augment,
            memory=memory,
            budget=budget,
            device=device,
            folds=folds,
            jobs=jobs,
            first_stage=first_stage,
            processes=processes,
            data=data,
            out=output,
            overwrite=overwrite,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    written = [output, runtime_path(output), fingerprint_path(output)]
    if planned.network is not None:
        network = str(network_path(output))
        written.insert(2, network_path(output))
    if planned.has_folds:
        runs = ["--fold", "0"] if folds is None else ["--folds", "all", *(["--jobs", str(jobs)] if jobs > 1 else [])]
        next_command = _train_command(
            manifest, data, output, network, loss, augment, ["--folds", "all"] if first_stage else runs, first_stage
        )
    else:
        next_command = shlex.join(["segpipe", "split", str(manifest)])
        console.note(
            "the manifest is not split yet, so this plan has seen cases that may be held out later: split it, "
            "then plan again with --overwrite"
        )
    for note in planned.notes:
        console.note(note)
    rules = list(planned.rules.values())
    console.table(
        f"Plan for {planned.dataset}, {len(planned.fingerprint.cases)} training cases",
        ["rule", "value", "why", "source"],
        [(rule.name, _short(rule.value).splitlines(), rule.why, rule.source) for rule in rules],
    )
    console.say(f"Written: {', '.join(map(str, written[:-1]))} and {written[-1]}")
    console.say(f"Next:    {next_command}")
    console.document(
        task=str(output),
        runtime=str(runtime_path(output)),
        network=None if planned.network is None else str(network_path(output)),
        fingerprint=str(fingerprint_path(output)),
        rules=[vars(rule) for rule in rules],
        settings=planned.settings,
        estimate=None if planned.estimate is None else _rounded(vars(planned.estimate)),
        notes=list(planned.notes),
        next=next_command,
    )


def _short(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        parts = {name: part for name, part in value.items() if name not in ("keys", "allow_missing_keys")}
        return "\n".join(f"{name.replace('_target_', 'transform')} {_short(part)}" for name, part in parts.items())
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "\n".join(f"{part['_target_']} of {', '.join(part['keys'])}" for part in value)
    return str(value)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: value if isinstance(value, int) else float(f"{value:.4g}") for name, value in values.items()}


def _train_command(
    manifest: Path,
    data: Path | None,
    task: Path,
    network: str,
    loss: str,
    augment: str,
    runs: list[str],
    first_stage: bool,
) -> str:
    from segpipe.training import runtime_path

    words = ["segpipe", "train", str(manifest), *(["--data", str(data)] if data else []), "--task", str(task)]
    words += ["--network", network, "--loss", loss, *(["--augment", augment] if augment != "light" else [])]
    words += ["--runtime", str(runtime_path(task))]
    return shlex.join([*words, *runs, "--out", "runs/first_stage" if first_stage else "runs/first"])
