"""segpipe bundle: what a bundle is, and whether it can be run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.bundle_packing import pack
from pipeline.cli.bundle_signing import keygen, sign
from pipeline.console import Console
from pipeline.errors import OK

if TYPE_CHECKING:
    from pipeline.bundle.outcome import Verdict

group = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look into a bundle and check it before anything of it runs.\n\n"
    "Example: segpipe bundle verify liver_ct.zip --json",
)
Bundle = Annotated[Path, typer.Argument(help="Bundle: a folder, or one zip file.", show_default=False)]
Allow = Annotated[
    list[str] | None,
    typer.Option(help="Admit this one name, as a finding gives it; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@group.command("verify")
def verify(
    bundle: Bundle,
    allow: Allow = None,
    key: Annotated[
        Path | None, typer.Option(help="Public key that must have signed it.", metavar="PUB.pem")
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay/--no-replay", help="Run it, isolated, where the static checks passed.")
    ] = True,
    json: Json = False,
) -> int:
    """Check a bundle's archive, hashes, metadata, versions, weights and configs, then run it where all of that passed.

    Each class and function that a config names must be on a list of single names, whatever path leads to it;
    expressions are parsed and never evaluated. What falls outside is shown with its place and with the name that
    --allow takes, and nothing of the bundle is executed. Where nothing does, its network is built and its golden case
    replayed in a process of its own, without network, other files and programs as far as the kernel allows it.
    Exit code 0: passed. 5: refused. Hashes show that nothing changed, never who made it: only a bundle that is signed
    by the key of --key is called trusted, and any other is refused then.

    Example: segpipe bundle verify bundles/spleen --allow glob --allow glob.glob

    Example: segpipe bundle verify liver_ct.zip --key clinic.pub.pem
    """
    from pipeline.console import quiet_libraries

    console = Console("bundle", as_json=json)
    quiet_libraries()
    from pipeline.bundle.finding import printable
    from pipeline.bundle.verdict import verify_bundle

    verdict = verify_bundle(bundle, allow or (), key, replay)
    _verdict(console, verdict)
    console.say(printable(verdict.words))
    unused = sorted({*(allow or ())} - {*verdict.allowed})
    if unused:
        console.note(f"not needed: --allow {' --allow '.join(unused)}")
    console.document(action="verify", **verdict.as_dict())
    return verdict.exit_code


@group.command("inspect")
def inspect(bundle: Bundle, allow: Allow = None, json: Json = False) -> int:
    """Show what a bundle is and the code that it would run, without executing anything of it.

    Its card, inputs, labels, results, licence, size and requirements, and every target and expression of its configs,
    each with whether it is on the list of admitted names. To refuse is the work of `segpipe bundle verify`.

    Example: segpipe bundle inspect bundles/hippocampus_mri
    """
    from pipeline.console import quiet_libraries

    console = Console("bundle", as_json=json)
    quiet_libraries()
    from pipeline.bundle.inspecting import inspect_bundle

    found = inspect_bundle(bundle, allow or ())
    _description(console, found)
    console.document(action="inspect", **found)
    return OK


group.command("pack")(pack)
group.command("keygen")(keygen)
group.command("sign")(sign)


def _verdict(console: Console, verdict: Verdict) -> None:
    from pipeline.bundle.finding import printable

    checks = [(check.name, check.status, printable(check.detail)) for check in verdict.checks]
    console.table(
        printable(f"{verdict.name} {verdict.version}").strip() or "bundle",
        ["check", "outcome", "detail"],
        checks,
    )
    if verdict.findings:
        rows = [
            tuple(
                printable(text or "-") for text in (each.file, each.place, each.text, each.reason, each.name)
            )
            for each in verdict.findings
        ]
        console.table("Not admitted", ["file", "place", "text", "reason", "--allow"], rows)


def _description(console: Console, found: dict[str, Any]) -> None:
    from pipeline.bundle.finding import printable

    if found["card"]:
        console.say(printable(found["card"]))
    size = found["size"]
    rows = [
        *found["about"].items(),
        ("licence", found["licence"]),
        *((f"input {name}", tensor) for name, tensor in found["inputs"].items()),
        ("labels", ", ".join(f"{value} {name}" for value, name in found["labels"].items())),
        ("results", "in the card and under --json" if found["results"] else "none stated"),
        ("size", f"{size['bytes'] / 1e6:.1f} MB in {size['files']} files"),
        ("weights", f"{size['weights_bytes'] / 1e6:.1f} MB"),
        ("content", found["bundle"]["sha256"]),
    ]
    head = f"{found['bundle']['name']} {found['bundle']['version']}"
    console.table(
        printable(head),
        ["what", "value"],
        [(what.replace("_", " "), printable(_words(value))) for what, value in rows],
    )
    versions = [
        tuple(printable(str(each[key] or "-")) for key in ("package", "made_with", "installed", "state"))
        for each in found["requirements"]
    ]
    console.table("Requirements", ["package", "made with", "installed", "state"], versions)
    console.table(
        "Code that it would run", ["kind", "text", "times", "admitted", "first place"], _code(found["code"])
    )
    admitted = sum(each["admitted"] for each in found["code"])
    console.say(f"{admitted} of {len(found['code'])} places are admitted. Nothing was executed.")


def _words(value: Any) -> str:
    """A value of the metadata as a person would write it."""
    if isinstance(value, dict):
        return ", ".join(
            f"{name} {_words(each)}" for name, each in value.items() if each not in (None, [], {})
        )
    if isinstance(value, list):
        return ("; " if any(isinstance(each, str) for each in value) else " x ").join(map(_words, value))
    return "-" if value is None else str(value)


def _code(code: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """One row for each text, with how often it stands in the bundle."""
    from pipeline.bundle.finding import printable

    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for each in code:
        rows.setdefault((each["kind"], each["text"], "; ".join(each["reasons"])), []).append(each)
    return [
        (kind, printable(text), len(same), printable(f"no: {reasons}") if reasons else "yes",
         printable(f"{same[0]['file']} {same[0]['place']}"))
        for (kind, text, reasons), same in rows.items()
    ]  # fmt: skip
