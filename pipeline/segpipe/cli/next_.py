"""segpipe next: which cases to annotate next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segpipe.cli.shared_options import AsJson, DataFolder
from segpipe.common.console import Console, counted, quiet_libraries, some_of

PLACES = 6  # behind the point, in JSON


def command(
    source: Annotated[
        Path,
        typer.Argument(
            help="Results of `segpipe predict` on cases without labels, or a manifest that has such cases.",
            metavar="RESULTS|MANIFEST",
            show_default=False,
        ),
    ],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many to choose.")] = 10,
    annotated: Annotated[
        Path | None,
        typer.Option(help="Manifest of what is annotated; its labelled cases are never chosen.", show_default=False),
    ] = None,
    data: DataFolder = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write the ids to a file, one a line.", show_default=False)
    ] = None,
    json: AsJson = False,
) -> None:
    """Choose which cases to annotate next: those in doubt, and unlike what is annotated already.

    Doubt is that of the model: of the predicted Dice, where the bundle has a quality model, else of the entropy that
    `segpipe predict --entropy` wrote. Distance is how unlike an image is to the nearest one that is annotated or was
    chosen before it. The gain of a case is the mean of its ranks by both. Of a manifest alone only distances are known:
    that is for the first cases of all.

    Cases that a model chose are trained on and never measured: `segpipe import --corrections` sees to that.

    Example: segpipe next predictions --annotated manifest.json -n 10
    """
    console = Console("next", as_json=json)
    quiet_libraries()
    from segpipe.cohort import OTHER_PATIENTS, next_cases
    from segpipe.common.files import write_text

    with console.progress() as bar:
        task = bar.add_task("images", total=None)
        found = next_cases(
            source,
            count,
            annotated=annotated,
            data=data,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    rows = [
        (each.id, *(_shown(value) for value in (each.gain, each.doubt, each.distance)), each.decision)
        for each in found.choices
    ]
    console.table("annotate next", ("case", "gain", "doubt", "distance", "decision"), rows)
    compared = f"{counted(found.candidates, 'case')}, compared with {found.annotated} that are annotated"
    console.say(f"of {compared}; doubt from: {found.doubt_from}")
    if found.doubt_from == "none" and source.is_dir():
        console.say("the model's doubt is not known: `segpipe predict --entropy` writes it")
    if found.unreadable:
        console.note(f"left out: {some_of(f'{name} ({why})' for name, why in found.unreadable.items())}")
    if found.left_out_by_id:
        console.note(f"left out by id, though annotated cases have other images: {some_of(found.left_out_by_id)}")
        console.note(OTHER_PATIENTS)
    if out is not None:
        write_text(out, "".join(f"{each.id}\n" for each in found.choices))
        console.say(f"{out}")
    console.document(
        cases=[
            {
                "id": each.id,
                "gain": round(each.gain, PLACES),
                "doubt": None if each.doubt is None else round(each.doubt, PLACES),
                "distance": None if each.distance is None else round(each.distance, PLACES),
                "decision": each.decision,
            }
            for each in found.choices
        ],
        candidates=found.candidates,
        annotated=found.annotated,
        doubt_from=found.doubt_from,
        unreadable=found.unreadable,
        left_out_by_id=found.left_out_by_id,
        file=None if out is None else str(out),
    )


def _shown(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
