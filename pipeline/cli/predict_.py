"""segpipe predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.console import Console
from pipeline.errors import OK, SOME_FAILED

if TYPE_CHECKING:
    from pipeline.bundle import Bundle
    from pipeline.predict import Options, Outcome, WorkItem
    from pipeline.predict.client import WorkerDiedError


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of a MONAI bundle.", metavar="BUNDLE")],
    inputs: Annotated[
        list[Path],
        typer.Argument(help="NIfTI files, folders (searched below), or one manifest.", metavar="IN..."),
    ],
    out: Annotated[Path, typer.Argument(help="Result folder; made, or gone on with.", metavar="OUT")],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads [default: torch's choice].")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds for one case.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="Tries after a case crashed the worker.")] = 1,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Compute finished cases again; take over another bundle's folder."),
    ] = False,
    max_memory: Annotated[
        str | None, typer.Option(help="Memory that a case may take, e.g. 4G [default: what is free].")
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Write the probabilities of all classes beside the labels."),
    ] = False,
    pseudonymise: Annotated[
        bool, typer.Option("--pseudonymise", help="Name cases by the hash of their path, not by their file.")
    ] = False,
    split: Annotated[
        str | None, typer.Option(help="Of a manifest: training, validation, test or all [default: all].")
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Of a manifest: the validation fold.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of a manifest's files [default: its own].")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Segment NIfTI images with a bundle, each into its own folder.

    A case becomes OUT/<id>/segmentation.nii.gz (labels on the image's own grid) and result.json (volumes in mL,
    times, flags). Run the same command again after an interruption: finished cases are skipped. One bad case
    never stops the rest; the exit code is 4 when any failed. Several channels are files _0000, _0001 and so on.

    Example: segpipe predict bundles/hippocampus_mri scans/ results/
    """
    from pipeline.bundle import open_bundle
    from pipeline.predict import Options, find_cases
    from pipeline.predict.memory import parse_bytes

    console = Console("predict", as_json=json)
    opened = open_bundle(bundle)
    items = find_cases(
        inputs, max(1, len(opened.channels)), out=out, pseudonymise=pseudonymise, split=split, fold=fold, data=data
    )  # fmt: skip
    options = Options(
        device, threads, timeout, retries, overwrite,
        max_memory=None if max_memory is None else parse_bytes(max_memory), probabilities=probabilities,
    )  # fmt: skip
    outcomes = _with_progress(console, opened, items, out, options)
    return _report(console, opened, outcomes)


def _with_progress(
    console: Console, bundle: Bundle, items: list[WorkItem], out: Path, options: Options
) -> list[Outcome]:
    from pipeline.predict import predict_cases

    with console.progress() as bar:
        task = bar.add_task("predict", total=len(items))

        def on_outcome(outcome: Outcome) -> None:
            bar.update(task, advance=1, description=outcome.id)

        def on_crash(case_id: str, death: WorkerDiedError) -> None:
            console.note(f"segpipe predict: {case_id}: {death.reason}; its last words:")
            for line in death.last_words or ["(none)"]:
                console.note(f"  | {line}")

        return predict_cases(bundle, items, out, options, on_outcome=on_outcome, on_crash=on_crash)


def _report(console: Console, bundle: Bundle, outcomes: list[Outcome]) -> int:
    counts = {kind: sum(each.status == kind for each in outcomes) for kind in ("done", "skipped", "failed")}
    rows = [
        [each.id, each.status, each.seconds, _remark(each)] for each in outcomes if each.status != "skipped"
    ]
    if rows:
        console.table(f"{bundle.name} {bundle.version}", ["case", "outcome", "seconds", "remark"], rows)
    console.say(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    if bundle.outside:
        console.say(f"through the bundle's own transforms (stock): {'; '.join(bundle.outside)}")
    console.document(
        bundle={"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256},
        counts=counts,
        cases=[
            {
                "id": each.id,
                "status": each.status,
                "seconds": each.seconds,
                "reason": each.reason,
                "volumes_ml": each.result.get("volumes_ml"),
                "flags": each.result.get("flags"),
            }
            for each in outcomes
        ],
    )
    return SOME_FAILED if counts["failed"] else OK


def _remark(outcome: Outcome) -> str | None:
    if outcome.reason:
        return outcome.reason
    flags = outcome.result.get("flags", {})
    words = ["no label found"] if flags.get("empty") else []
    if flags.get("touches_border"):
        words.append(f"touches the border: {', '.join(flags['touches_border'])}")
    if flags.get("orientation_unknown"):
        words.append("the image does not say which side is which")
    return "; ".join(words) or None
