"""``segpipe send``: results go to a PACS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segpipe.cli.shared_options import AsJson
from segpipe.common.console import Console
from segpipe.common.files import read_json
from segpipe.common.result_folder import RESULT, case_folder
from segpipe.errors import OK, SOME_FAILED, SOME_HELD, SegpipeError, UsageError

if TYPE_CHECKING:
    from segpipe.dicom import Delivery


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
    release: Annotated[
        list[str] | None,
        typer.Option(help="Let a held case go on that you have looked at; may be repeated.", metavar="CASE"),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Who releases, for the record and the report: 'Doe^Jane'.", metavar="NAME")
    ] = None,
    json: AsJson = False,
) -> int:
    """Store DICOM results (SEG, RTSTRUCT, SR) in a PACS.

    What arrived is written down in FOLDER/sent.jsonl, so the same command sends only what is missing. Only what the
    archive confirms counts as sent; the exit code is 4 when any file failed. What the prediction remarked of a case,
    such as a flag or a missing image, is said again, and so is what arrived there earlier and is no result now.
    Results of a held case are not sent (exit code 6) until a person releases it: --release CASE --by NAME, which is
    written down, and a report that goes along names the person. It is no clinical verification. Credentials for
    DICOMweb come from the environment (SEGPIPE_DICOMWEB_TOKEN, or SEGPIPE_DICOMWEB_USER and
    SEGPIPE_DICOMWEB_PASSWORD) or ~/.netrc.

    Example: segpipe send results --to https://pacs.example.org/dicom-web

    Example: segpipe send results --to ARCHIVE@pacs.example.org:104 --calling SEGPIPE
    """
    from segpipe.dicom import open_archive, release_held, send_results

    console = Console("send", as_json=json)
    if (by is None) != (not release):
        hint = "--release CASE --by NAME"
        raise UsageError("a release names a case and a person", found="--by" if by else "--release", hint=hint)
    if release:
        open_archive(to, (), calling=calling, ca=ca, verify=not no_verify_tls).close()  # a release cannot be taken back
        words = {True: "was released; this is no clinical verification", False: "was released before"}
        release_held(
            folder, release, str(by), progress=lambda case, now: console.note(f"segpipe send: {case} {words[now]}")
        )
        _say_released(folder, console)
    if no_verify_tls:
        console.note("segpipe send: the server's certificate is not checked")
    with console.progress() as bar:
        task = bar.add_task("send", total=None)
        delivery = send_results(
            folder,
            to,
            calling=calling,
            ca=ca,
            verify=not no_verify_tls,
            again=again,
            retries=retries,
            progress=lambda sending, total: bar.update(task, total=total, advance=1, description=sending.file.case_id),
        )
    counts = _report(console, delivery, _remarks(folder, delivery))
    return SOME_FAILED if counts["failed"] else SOME_HELD if counts["held"] else OK


def _say_released(folder: Path, console: Console) -> None:
    """Let table and page say what was released; where they cannot be written, the release stands all the same."""
    from segpipe.prediction import refresh_summary

    try:
        refresh_summary(folder)
    except (SegpipeError, OSError) as error:
        words = error.message if isinstance(error, SegpipeError) else "a file cannot be read"
        console.note(f"segpipe send: page and table do not say so yet ({words}); the next `segpipe predict` lets them")


def _remarks(folder: Path, delivery: Delivery) -> dict[str, list[str]]:
    """Return what `segpipe predict` remarked of the cases of the files, by case."""
    from segpipe.reporting import remarks

    found: dict[str, list[str]] = {}
    files = {sending.file.case_id: folder / sending.file.name for sending in delivery.files}
    for case_id, file in files.items():
        with suppress(SegpipeError, AttributeError, TypeError):  # files of another folder than a batch's
            found[case_id] = remarks(read_json(case_folder(file) / RESULT))
    return {case_id: words for case_id, words in found.items() if words}


def _of_superseded(delivery: Delivery) -> Iterator[str]:
    """Say of each case what of it lies in the archive, though it is no result now."""
    held = {sending.file.case_id for sending in delivery.files if sending.status == "held"}
    for case_id in dict.fromkeys(each.case_id for each in delivery.superseded):
        own = [each for each in delivery.superseded if each.case_id == case_id]
        kinds = " and ".join(dict.fromkeys(each.kind for each in own))
        day = datetime.fromtimestamp(max(each.time for each in own)).strftime("%Y-%m-%d %H:%M")
        now = "the case is held now" if case_id in held else "the results of now are others"
        yield f"{case_id}: an earlier {kinds} was sent there on {day}, and {now}: see to it in the archive"


def _report(console: Console, delivery: Delivery, remarks: dict[str, list[str]]) -> dict[str, int]:
    ends = ("sent", "skipped", "failed", "held")
    counts = {status: sum(sending.status == status for sending in delivery.files) for status in ends}
    rows = [
        [sending.file.case_id, sending.file.kind, sending.status, sending.attempts, sending.reason]
        for sending in delivery.files
        if sending.status != "skipped"
    ]
    if rows:
        console.table(f"to {delivery.archive}", ["case", "kind", "outcome", "tries", "reason"], rows)
    console.say(", ".join(f"{count} {status}" for status, count in counts.items()))
    if counts["held"]:
        console.say("held results were not sent; look at them, then --release CASE --by NAME lets them go on")
    for sentence in _of_superseded(delivery):
        console.say(sentence)
    for case_id, words in remarks.items():
        console.say(f"look at {case_id}: {'; '.join(words)}")
    if delivery.passed_over:
        console.say(f"{delivery.passed_over} other DICOM files were passed over")
    console.document(
        to=delivery.archive,
        counts=counts,
        passed_over=delivery.passed_over,
        superseded=[asdict(each) for each in delivery.superseded],
        files=[
            {
                "case_id": sending.file.case_id,
                "file": sending.file.name,
                "kind": sending.file.kind,
                "sop_instance_uid": sending.file.sop_instance_uid,
                "status": sending.status,
                "attempts": sending.attempts,
                "reason": sending.reason,
                "remarks": remarks.get(sending.file.case_id, []),
            }
            for sending in delivery.files
        ],
    )
    return counts
