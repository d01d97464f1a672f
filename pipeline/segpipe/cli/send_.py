"""segpipe send."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segpipe.common.console import Console
from segpipe.errors import OK, SOME_FAILED

if TYPE_CHECKING:
    from segpipe.dicom import ResultFile, Sending


def command(
    folder: Annotated[Path, typer.Argument(help="Result folder of `segpipe predict`.", metavar="FOLDER")],
    to: Annotated[
        str,
        typer.Option(
            help="The archive: https://HOST/dicom-web (DICOMweb, STOW-RS) or AET@HOST:PORT (C-STORE).",
            metavar="URL|AET@HOST:PORT",
            show_default=False,
        ),
    ],
    calling: Annotated[str, typer.Option(help="Our AE title, for C-STORE.")] = "SEGPIPE",
    ca: Annotated[Path | None, typer.Option(help="Certificates to trust, for https [default: the system's].")] = None,
    no_verify_tls: Annotated[
        bool, typer.Option("--no-verify-tls", help="Trust any certificate. For tests only.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Send what arrived there before, too.")] = False,
    retries: Annotated[int, typer.Option(min=0, help="Further tries where the trouble may pass.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Store DICOM results (SEG, RTSTRUCT, SR) in a PACS.

    What arrived is written down in FOLDER/sent.jsonl, so the same command sends only what is missing. Only what the
    archive confirms counts as sent; the exit code is 4 when any file failed. Credentials for DICOMweb come from
    the environment (SEGPIPE_DICOMWEB_TOKEN, or SEGPIPE_DICOMWEB_USER and SEGPIPE_DICOMWEB_PASSWORD) or ~/.netrc.

    Example: segpipe send results --to https://pacs.example.org/dicom-web

    Example: segpipe send results --to ARCHIVE@pacs.example.org:104 --calling SEGPIPE
    """
    from segpipe.dicom import find_results, open_archive, send_results

    console = Console("send", as_json=json)
    files, others = find_results(folder)
    archive = open_archive(to, files, calling=calling, ca=ca, verify=not no_verify_tls)
    if no_verify_tls:
        console.note("segpipe send: the server's certificate is not checked")
    with console.progress() as bar:
        task = bar.add_task("send", total=len(files))
        outcomes = send_results(
            folder,
            files,
            archive,
            again=again,
            retries=retries,
            on_sending=lambda outcome: bar.update(task, advance=1, description=outcome.file.case_id),
        )
    return _report(console, archive.name, outcomes, others)


def _report(console: Console, to: str, outcomes: list[Sending], others: int) -> int:
    counts = {kind: sum(each.status == kind for each in outcomes) for kind in ("sent", "skipped", "failed")}
    rows = [
        [each.file.case_id, each.file.kind, each.status, each.attempts, each.reason]
        for each in outcomes
        if each.status != "skipped"
    ]
    if rows:
        console.table(f"to {to}", ["case", "kind", "outcome", "tries", "reason"], rows)
    console.say(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    if others:
        console.say(f"{others} other DICOM files were passed over")
    console.document(to=to, counts=counts, passed_over=others, files=[_as_dict(each, each.file) for each in outcomes])
    return SOME_FAILED if counts["failed"] else OK


def _as_dict(outcome: Sending, file: ResultFile) -> dict[str, object]:
    return {
        "case_id": file.case_id,
        "file": file.name,
        "kind": file.kind,
        "sop_instance_uid": file.sop_instance_uid,
        "status": outcome.status,
        "attempts": outcome.attempts,
        "reason": outcome.reason,
    }
