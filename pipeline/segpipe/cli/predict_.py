"""segpipe predict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segpipe.cli.shared_options import (
    Allow,
    AllowFile,
    Channels,
    Registered,
    Repair,
    RunUnvetted,
    SecondaryCapture,
    SeriesNames,
    allowed_names,
)
from segpipe.common.console import Console
from segpipe.errors import OK, SOME_FAILED, SOME_HELD

if TYPE_CHECKING:
    from segpipe.bundle import Bundle
    from segpipe.prediction import BatchProgress, BatchResult, Outcome, WorkerDiedError


def command(
    bundle: Annotated[Path, typer.Argument(help="MONAI bundle: a folder, or one zip file.", metavar="BUNDLE")],
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Folders of NIfTI and DICOM (searched below), files, or one manifest.", metavar="IN..."),
    ],
    out: Annotated[Path, typer.Argument(help="Result folder; made, or gone on with.", metavar="OUT")],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Of nifti, seg, labelmap, rtstruct, sr [default: nifti, and seg where the source is DICOM].",
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="dicom or nifti: segment nothing else of a folder that holds both.")
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="Only DICOM series of it, e.g. CT [default: the bundle's].")
    ] = None,
    series_description: Annotated[
        str | None, typer.Option(help="Only series whose description matches this pattern.", metavar="REGEX")
    ] = None,
    min_slices: Annotated[int | None, typer.Option(min=1, help="Only series of so many slices.")] = None,
    max_slices: Annotated[int | None, typer.Option(min=1, help="Only series of at most so many.")] = None,
    series: SeriesNames = None,
    derived: Annotated[
        list[str] | None,
        typer.Option(
            help="Take series as well that were computed from others: localizer, subtraction, projection, reformatted, "
            "map, spectral, computed, or all.",
            metavar="KIND",
            show_default=False,
        ),
    ] = None,
    secondary_capture: SecondaryCapture = None,
    repair: Repair = None,
    channel: Channels = None,
    registered: Registered = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    runtime: Annotated[
        str, typer.Option(help="auto, torch or openvino; auto takes OpenVINO where it gives the same scores.")
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="auto, float32 or bfloat16; auto takes bfloat16 where it is fast and the bundle proves that its label "
            "maps stay."
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads [default: the cores that it may use].")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds for one case.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="Tries after a case crashed the worker.")] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Compute finished cases again; take over another bundle's folder.")
    ] = False,
    max_memory: Annotated[
        str | None, typer.Option(help="Memory that a case may take, e.g. 4G [default: what is free].")
    ] = None,
    max_case_memory: Annotated[
        str | None, typer.Option(help="Memory at which a case is ended and fails, e.g. 8G [default: none].")
    ] = None,
    probabilities: Annotated[
        list[str] | None,
        typer.Option(
            help="Write the probabilities of all classes, or of these labels alone, a file each, e.g. liver,spleen.",
            metavar="all|LABELS",
        ),
    ] = None,
    entropy: Annotated[
        bool, typer.Option("--entropy", help="Write the entropy of the probabilities, in nats.")
    ] = False,
    viewer: Annotated[
        bool,
        typer.Option(
            "--viewer",
            help="Put the volumes of small cases into report.html, to scroll through: whoever has it has the scans.",
        ),
    ] = False,
    no_overlay: Annotated[bool, typer.Option("--no-overlay", help="Write no overlay.png.")] = False,
    mirror: Annotated[
        str | None,
        typer.Option(
            help="Average with windows mirrored along axes of the network's grid that training mirrored: x,y or all.",
            metavar="AXES",
        ),
    ] = None,
    mirror_untrained: Annotated[
        bool, typer.Option("--mirror-untrained", help="Mirror other axes too, at the risk that labels are lost.")
    ] = False,
    rules: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file of the rules by which a case is ok, to look at, or held [default: the bundle's].",
            metavar="FILE",
        ),
    ] = None,
    ensemble: Annotated[
        list[Path] | None,
        typer.Option(help="Average with a further bundle, e.g. another fold; may be repeated.", metavar="BUNDLE"),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that share the cases, and the cores, memory and GPUs of this machine.")
    ] = 1,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Compute one share of the cases, e.g. 0/3; other machines compute 1/3 and 2/3 into the same folder.",
            metavar="I/N",
        ),
    ] = None,
    pseudonymise: Annotated[
        bool,
        typer.Option("--pseudonymise", help="Name cases by the hash of their path (without a key), not by their file."),
    ] = False,
    split: Annotated[
        str | None, typer.Option(help="Of a manifest: training, validation, test or all [default: all].")
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Of a manifest: the validation fold.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of a manifest's files [default: its own].")] = None,
    require_signature: Annotated[
        Path | None,
        typer.Option(help="Public key that must have signed the bundle; else it is refused.", metavar="PUB.pem"),
    ] = None,
    allow: Allow = None,
    allow_file: AllowFile = None,
    run_unvetted_code: RunUnvetted = False,
    allow_unisolated: Annotated[
        bool,
        typer.Option(
            "--allow-unisolated",
            help="Run a bundle's own code also where nothing can isolate it: it may then do whatever you may.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Segment NIfTI images and DICOM series with a bundle, each into its own folder.

    A case becomes OUT/<id>/ with its label map (NIfTI, DICOM SEG, RTSTRUCT, structured report), overlay.png and
    result.json (volumes in mL, times, flags). OUT/report.html shows all cases. Run the same command again after an
    interruption: finished cases are skipped. One bad case never stops the rest; the exit code is 4 when any failed
    or was refused. Where the bundle has a quality model, each result is ok, to look at, or held (exit code 6 when any
    is held and none failed): DICOM of a held case lies in OUT/<id>/held/, and `segpipe send` leaves it there. Several
    NIfTI channels are files _0000, _0001 and so on.

    A bundle is code. It is run when it passes the static checks of `segpipe bundle verify --for predict`, or with
    --allow for each name that they found (--allow-file for many); else it is refused, with exit code 5. With
    --require-signature it must be signed by that key. It runs in a process that reads the bundle and the cases, writes
    results alone, and has no network; where the system cannot do that, a bundle that brings code of its own needs
    --allow-unisolated.

    Example: segpipe predict bundles/hippocampus_mri scans/ results/

    Example: segpipe predict bundles/liver_ct incoming/ results/ --format nifti,seg,rtstruct,sr --min-slices 20
    """
    from segpipe.prediction import predict

    with _progress() as progress:
        batch = predict(
            bundle,
            inputs,
            out,
            progress=progress,
            format=formats,
            probabilities=probabilities,
            entropy=entropy,
            overlay=not no_overlay,
            only=only,
            modality=modality,
            series_description=series_description,
            min_slices=min_slices,
            max_slices=max_slices,
            series=series,
            derived=derived,
            secondary_capture=secondary_capture,
            repair=repair,
            channel=channel,
            registered=registered,
            pseudonymise=pseudonymise,
            split=split,
            fold=fold,
            data=data,
            device=device,
            runtime=runtime,
            precision=precision,
            threads=threads,
            max_memory=max_memory,
            mirror=mirror,
            mirror_untrained=mirror_untrained,
            timeout=timeout,
            retries=retries,
            overwrite=overwrite,
            viewer=viewer,
            max_case_memory=max_case_memory,
            rules=rules,
            ensemble=ensemble or (),
            workers=workers,
            shard=shard,
            allow=allowed_names(allow, allow_file),
            run_unvetted_code=run_unvetted_code,
            require_signature=require_signature,
            allow_unisolated=allow_unisolated,
        )
    return _report(Console("predict", as_json=json), batch)


@contextmanager
def _progress() -> Iterator[BatchProgress]:
    """Show how a batch goes, on standard error."""
    from segpipe.prediction import BatchProgress

    console = Console("predict")
    with console.progress() as bar:
        task = bar.add_task("reading headers", total=None)

        class OnBar(BatchProgress):
            def reading(self, done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            def started(self, total: int) -> None:
                bar.reset(task, description="predict", total=total)

            def finished(self, outcome: Outcome) -> None:
                bar.update(task, advance=1, description=outcome.id)

            def crashed(self, case_id: str, death: WorkerDiedError) -> None:
                console.note(f"segpipe predict: {case_id}: {death.reason}; its last words:")
                for line in death.last_words or ["(none)"]:
                    console.note(f"  | {line}")

        yield OnBar()


def _report(console: Console, batch: BatchResult) -> int:
    from segpipe.prediction import about_quality, not_judged_note
    from segpipe.reporting import is_to_look_at

    bundle, outcomes = batch.bundle, batch.outcomes
    said = [(outcome, _remark(outcome)) for outcome in outcomes]
    rows = [
        [outcome.id, outcome.status, _decided(outcome), outcome.seconds, remark]
        for outcome, remark in said
        if remark or outcome.status != "skipped"
    ]
    vetting = next((outcome.result.get("vetting") for outcome in outcomes if outcome.status == "done"), None)
    isolated = next((outcome.result for outcome in outcomes if outcome.status == "done"), {})
    trust, counts = _trust(bundle, vetting or {}, isolated), batch.counts
    if rows:
        console.table(f"{bundle.name} {bundle.version}", ["case", "outcome", "decision", "seconds", "remark"], rows)
    console.say(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    decisions = batch.decisions
    if any(count for name, count in decisions.items() if name != "not_judged"):
        named = {"ok": "ok", "look": "to look at", "hold": "held", "released": "released"}
        console.say("decisions: " + ", ".join(f"{decisions[name]} {word}" for name, word in named.items()))
    if note := not_judged_note(decisions):
        console.say(note)
    if to_look_at := sum(is_to_look_at(outcome.result) for outcome in outcomes):
        console.say(f"{to_look_at} with a result to look at: decision, flags or notes, as remarked")
    rules = {left_out.rule: left_out.advice for left_out in batch.not_selected}
    for rule, advice in sorted(rules.items()):
        count = sum(left_out.rule == rule for left_out in batch.not_selected)
        console.say(f"{count} series not selected: {rule}" + (f" ({advice})" if advice else ""))
    if batch.passed_over:
        words = ", ".join(f"{count} {kind}" for kind, count in sorted(batch.passed_over.items()))
        console.say(f"files passed over: {words}")
    reasons = next((outcome.result.get("runtime_reasons") for outcome in outcomes if outcome.status == "done"), None)
    if reasons:
        console.say(f"computed with torch: {'; '.join(reasons)}")
    used = next((outcome.result for outcome in outcomes if outcome.status == "done"), {})
    if used.get("precision") == "bfloat16":
        console.say(f"computed in bfloat16: {used['precision_reason']}")
    if bundle.unsupported:
        console.say(f"through the bundle's own transforms (stock): {'; '.join(bundle.unsupported)}")
    for remark in trust:
        console.say(remark)
    console.document(
        bundle=bundle.facts,
        vetting=vetting,
        isolation=isolated.get("isolation"),
        isolation_reason=isolated.get("isolation_reason"),
        counts=counts,
        decisions=decisions,
        cases=[
            {
                "id": outcome.id,
                "status": outcome.status,
                "seconds": outcome.seconds,
                "reason": outcome.reason,
                "detail": outcome.detail,
                "files": outcome.result.get("files"),
                "not_written": outcome.result.get("not_written"),
                "volumes_ml": outcome.result.get("volumes_ml"),
                "flags": outcome.result.get("flags"),
                "notes": outcome.result.get("notes", []),
                **about_quality(outcome.result),
            }
            for outcome in outcomes
        ],
        not_selected=[{"id": left_out.id, "rule": left_out.rule} for left_out in batch.not_selected],
        passed_over=batch.passed_over,
    )
    if counts["failed"] or counts["refused"]:
        return SOME_FAILED
    return SOME_HELD if decisions["hold"] else OK


def _trust(bundle: Bundle, vetting: dict[str, Any], isolated: dict[str, Any]) -> list[str]:
    """Return what is to be said of running this bundle's code."""
    remarks = []
    if vetting.get("passed") is False:
        remarks.append(f"UNVETTED CODE WAS RUN: {vetting['findings']} findings; see `segpipe bundle verify`")
    if vetting.get("allowed"):
        from segpipe.bundle import granted

        remarks += [f"--allow {name}: {granted(name)}" for name in vetting["allowed"]]
    if isolation := isolated.get("isolation"):
        reason = isolated["isolation_reason"]
        remarks.append(f"isolation: {isolation}" + (f" ({reason})" if reason else ""))
    if bundle.intact is None:
        remarks.append("the bundle has no SHA256SUMS, so nothing shows whether it was changed")
    return remarks


def _decided(outcome: Outcome) -> str | None:
    return "released" if outcome.result.get("released") else outcome.decision


def _remark(outcome: Outcome) -> str | None:
    from segpipe.reporting import remarks

    if outcome.reason:
        return ": ".join(part for part in (outcome.reason, outcome.detail) if part)
    return "; ".join(remarks(outcome.result)) or None
