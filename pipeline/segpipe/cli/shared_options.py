"""Options that several commands have, each worded once."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
BundlePath = Annotated[Path, typer.Argument(help="Bundle: a folder, or one zip file.", show_default=False)]
DataFolder = Annotated[
    Path | None, typer.Option(help="Folder that the manifest's paths start from [default: its own].")
]
Readers = Annotated[
    int | None, typer.Option(min=1, help="Processes that read [default: what the files are worth, at most 4].")
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", help="Let the bundle use this one name, as a finding gives it; may be repeated.", metavar="NAME"
    ),
]
AllowFile = Annotated[
    Path | None,
    typer.Option(
        "--allow-file",
        help="As --allow, for each name in a file that `segpipe bundle inspect --allow-file` wrote.",
        metavar="FILE",
    ),
]
RunUnvetted = Annotated[
    bool,
    typer.Option(
        "--run-unvetted-code",
        help="Take a bundle that was changed or whose code is not vetted: it may then read, change and send whatever "
        "you may on this machine.",
    ),
]
SeriesNames = Annotated[
    list[str] | None,
    typer.Option("--series", help="Only this SeriesInstanceUID or case id. May be repeated.", show_default=False),
]
Repair = Annotated[
    list[str] | None,
    typer.Option(
        help="DICOM: resample series that are refused for it to a regular grid: tilt, spacing. May be repeated.",
        show_default=False,
    ),
]
Channels = Annotated[
    list[str] | None,
    typer.Option(
        "--channel",
        help="DICOM: series that are channels of one case, once for each, in order: CT, PET, MR, or "
        "NAME=MODALITY:PATTERN, e.g. T2=MR:t2_tse.",
        metavar="CHANNEL",
        show_default=False,
    ),
]
Registered = Annotated[
    bool,
    typer.Option(
        "--registered",
        help="Files of one case are registered: where their grids differ, resample them to the first one's.",
    ),
]
SecondaryCapture = Annotated[
    list[str] | None,
    typer.Option(
        help="DICOM: take this Secondary Capture, whose values may have been windowed: its SeriesInstanceUID or case "
        "id. May be repeated.",
        metavar="SERIES",
        show_default=False,
    ),
]

TASK = typer.Option(help="Task fragment: a path from `segpipe plan`, or a name in configs/task.")
Augment = Annotated[str, typer.Option(help="Augmentation fragment: light, by_class, mirror, none, or a path.")]
Runtime = Annotated[str, typer.Option(help="Runtime fragment: cpu, gpu, or a path.")]
Override = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override, e.g. --set learning_rate=1e-3 or network_def#channels=[8,16,32]."),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; part of what makes a run repeatable.")]
Workers = Annotated[int | None, typer.Option(help="Loader processes (num_workers).")]
Mlflow = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        help="Tell MLflow as well: a server's address, or sqlite:///FILE.",
        metavar="ADDRESS",
        show_default=False,
    ),
]


def given_beside(context: typer.Context, obeyed: Collection[str]) -> list[str]:
    """Return the options on the command line, as they are written, that are not among these names."""
    return [
        max(option.opts, key=len)
        for option in context.command.params
        if option.name is not None
        and option.name not in obeyed
        and getattr(context.get_parameter_source(option.name), "name", None) == "COMMANDLINE"
    ]


def allowed_names(allow: list[str] | None, allow_file: Path | None) -> tuple[str, ...]:
    """Return the names of ``--allow`` and of the file of ``--allow-file``, each once."""
    if allow_file is None:
        return tuple(allow or ())
    from segpipe.bundle import read_grants

    return tuple(dict.fromkeys([*(allow or ()), *read_grants(allow_file)]))
