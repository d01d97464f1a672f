"""segpipe bundle: what a bundle is, whether it can be run, and whose it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segpipe.cli.shared_options import Allow, AllowFile, AsJson, BundlePath, DataFolder, RunUnvetted, allowed_names
from segpipe.common.console import Console, quiet_libraries, quoted
from segpipe.errors import OK, REFUSED

if TYPE_CHECKING:
    from segpipe.bundle import Verification

group = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look into a bundle and check it before anything of it runs.\n\n"
    "Example: segpipe bundle verify liver_ct.zip --json",
)


@group.command("verify")
def verify(
    bundle: BundlePath,
    allow: Allow = None,
    allow_file: AllowFile = None,
    purpose: Annotated[
        Literal["predict", "all"],
        typer.Option("--for", help="What is to be run: all of its configs, or what `segpipe predict` runs of them."),
    ] = "all",
    key: Annotated[Path | None, typer.Option(help="Public key that must have signed it.", metavar="PUB.pem")] = None,
    replay: Annotated[
        bool, typer.Option("--replay/--no-replay", help="Run it, isolated, where the static checks passed.")
    ] = True,
    json: AsJson = False,
) -> int:
    """Check a bundle's archive, hashes, metadata, versions, weights and configs, then run it where all of that passed.

    Each class and function that a config names must be on a list of single names, whatever path leads to it;
    expressions are parsed and never evaluated. What falls outside is shown with its place and with the name that
    --allow takes, and nothing of the bundle is executed. Where nothing does, its network is built and its golden case
    replayed in a process of its own, without network, other files and programs as far as the kernel allows it.
    With --for predict, what stands in configs that `segpipe predict` does not run is shown and refuses nothing.
    Exit code 0: passed. 5: refused. Hashes show that nothing changed, never who made it: only a bundle that is signed
    by the key of --key is called trusted, and any other is refused then.

    Example: segpipe bundle verify bundles/spleen --allow glob --allow glob.glob

    Example: segpipe bundle verify liver_ct.zip --key clinic.pub.pem
    """
    console = Console("bundle", as_json=json)
    quiet_libraries()
    from segpipe.bundle import verify_bundle

    names = allowed_names(allow, allow_file)
    verified = verify_bundle(bundle, names, key, replay, purpose)
    _show_checks(console, verified)
    unused = sorted({*names} - {*verified.allowed})
    if unused:
        console.note(f"not needed: --allow {' --allow '.join(unused)}")
    console.document(action="verify", **verified.as_dict())
    return verified.exit_code


def _show_checks(console: Console, verified: Verification) -> None:
    checks = [_cells(check.name, check.status, check.detail) for check in verified.checks]
    (title,) = _cells(f"{verified.name} {verified.version}".strip() or "bundle")
    console.table(title, ["check", "outcome", "detail"], checks)
    for title, findings in (("Not admitted", verified.of_predict), ("Not run by predict", verified.aside)):
        rows = [
            _cells(*(text or "-" for text in (found.file, found.place, found.text, found.reason, found.name)))
            for found in findings
        ]
        if rows:
            console.table(title, ["file", "place", "text", "reason", "--allow"], rows)
    if verified.grants:
        rows = [
            _cells(name, words, "yes" if name in verified.allowed else "no") for name, words in verified.grants.items()
        ]
        console.table("What each name grants", ["--allow", "grants", "given"], rows)
    console.say(*_cells(verified.words))


@group.command("inspect")
def inspect(
    bundle: BundlePath,
    allow: Allow = None,
    allow_file: Annotated[
        Path | None,
        typer.Option(
            "--allow-file",
            help="Write the names that it needs beside the list into this new file, with what each grants.",
            metavar="FILE",
        ),
    ] = None,
    json: AsJson = False,
) -> int:
    """Show what a bundle is and the code that it would run, without executing anything of it.

    Its card, inputs, labels, results, licence, size and requirements, and every target and expression of its configs,
    each with whether it is on the list of admitted names and whether `segpipe predict` runs it. To refuse is the work
    of `segpipe bundle verify`. The file of --allow-file is read by --allow-file of predict, verify, train, evaluate,
    reproduce and pack: go through it before, and take out what you do not want to grant.

    Example: segpipe bundle inspect bundles/hippocampus_mri

    Example: segpipe bundle inspect spleen --allow-file spleen.names
    """
    console = Console("bundle", as_json=json)
    quiet_libraries()
    from segpipe.bundle import inspect_bundle, write_allow_file

    description = inspect_bundle(bundle, allow or ())
    _show_description(console, description)
    written = None if allow_file is None else write_allow_file(bundle, allow_file, allow or ())
    if written is not None:
        needed, more = len(written.needed), len(written.more)
        console.say(f"{allow_file}: {needed} names that predict needs, and as comments {more} for the rest")
        if written.refused:
            console.say(f"{written.refused} findings are admitted by no name there; see `segpipe bundle verify`")
    names = written and {"needed": written.needed, "more": written.more, "refused": written.refused}
    console.document(action="inspect", **description, allow_file=names)
    return OK


def _show_description(console: Console, description: dict[str, Any]) -> None:
    if description["card"]:
        console.say(*_cells(description["card"]))
    size, code, parent = description["size"], description["code"], description["parent"]
    rows = [
        *description["about"].items(),
        ("licence", description["licence"]),
        *((f"input {name}", tensor) for name, tensor in description["inputs"].items()),
        ("labels", ", ".join(f"{value} {name}" for value, name in description["labels"].items())),
        *(
            [("members", f"{len(description['members'])}, whose probabilities are averaged")]
            if description["members"]
            else []
        ),
        *([("began with", f"{parent.get('name')} {parent.get('version')}")] if parent else []),
        ("results", "in the card and under --json" if description["results"] else "none stated"),
        ("size", f"{size['bytes'] / 1e6:.1f} MB in {size['files']} files"),
        ("weights", f"{size['weights_bytes'] / 1e6:.1f} MB"),
        ("content", description["bundle"]["sha256"]),
    ]
    (title,) = _cells(f"{description['bundle']['name']} {description['bundle']['version']}")
    console.table(title, ["what", "value"], [(what.replace("_", " "), *_cells(_words(value))) for what, value in rows])
    packages = ("package", "made_with", "installed", "state")
    versions = [_cells(*(needed[column] or "-" for column in packages)) for needed in description["requirements"]]
    console.table("Requirements", [column.replace("_", " ") for column in packages], versions)
    columns = ["kind", "text", "times", "admitted", "run by predict", "first place"]
    console.table("Code that it would run", columns, _code_rows(code))
    admitted = sum(use["admitted"] for use in code)
    console.say(f"{admitted} of {len(code)} places are admitted. Nothing was executed.")


def _cells(*values: Any) -> tuple[str, ...]:
    """Return text of a bundle as a terminal may be shown it."""
    from segpipe.bundle import printable

    return tuple(printable(str(value)) for value in values)


def _words(value: Any) -> str:
    """Return a value of the metadata as a person would write it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items() if part not in (None, [], {}))
    if isinstance(value, list):
        return ("; " if any(isinstance(part, str) for part in value) else " x ").join(map(_words, value))
    return "-" if value is None else str(value)


def _code_rows(code: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return one row for each text, with how often it stands in the bundle."""
    groups: dict[tuple[str, str, str, bool], list[dict[str, Any]]] = {}
    for use in code:
        key = (use["kind"], use["text"], "; ".join(use["reasons"]), use["run_by_predict"])
        groups.setdefault(key, []).append(use)
    return [
        (
            *_cells(kind, text),
            len(uses),
            *_cells(f"no: {reasons}" if reasons else "yes", "yes" if run else "no"),
            *_cells(f"{uses[0]['file']} {uses[0]['place']}"),
        )
        for (kind, text, reasons, run), uses in groups.items()
    ]


@group.command("pack")
def pack(
    bundle: BundlePath,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file [default: NAME_vVERSION.zip here].", metavar="FILE.zip")
    ] = None,
    safetensors: Annotated[
        bool, typer.Option("--safetensors", help="Add models/model.safetensors, equal to models/model.pt.")
    ] = False,
    publish: Annotated[
        bool, typer.Option("--publish", help="Refuse where something in it could name a patient or a place.")
    ] = False,
    allow: Allow = None,
    allow_file: AllowFile = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is already there.")] = False,
    json: AsJson = False,
) -> int:
    """Make one zip file of a bundle, with the same bytes for the same content wherever it is made.

    What `segpipe bundle verify` refuses is not packed, nor is a bundle without SHA256SUMS. The bundle is only read:
    with --safetensors the second form of the weights and its line in SHA256SUMS are in the file alone, as the content's
    hash then says. Unpacked and packed again it gives the same file.

    With --publish it is looked through first: paths of a machine, DICOM UIDs, dates, e-mail addresses other than the
    authors', persons as DICOM writes them, original names beside pseudonyms, texts in headers of volumes and pictures.
    File and place are named, never the text.

    Example: segpipe bundle pack bundles/liver_ct -o liver_ct.zip
    """
    console = Console("bundle", as_json=json)
    quiet_libraries()
    from segpipe.bundle import pack_bundle

    names = allowed_names(allow, allow_file)
    packed = pack_bundle(bundle, out, safetensors=safetensors, allow=names, publish=publish, overwrite=overwrite)
    size = packed.file.stat().st_size
    rows = [
        ("file", packed.file),
        ("size", f"{size / 1e6:.1f} MB, {packed.files} files"),
        ("sha256", packed.sha256),
        ("content", packed.content_sha256),
    ]
    console.table(f"{packed.name} {packed.version}", ["what", "value"], rows)
    console.document(
        action="pack",
        bundle={"name": packed.name, "version": packed.version, "sha256": packed.content_sha256},
        file=str(packed.file),
        file_sha256=packed.sha256,
        bytes=size,
        files=packed.files,
    )
    return OK


@group.command("precision")
def precision(
    model: Annotated[
        Path,
        typer.Argument(help="Bundle, or folder of `segpipe train --folds`.", metavar="BUNDLE|RUN", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="JSON file of the figures.", show_default=False)],
    manifest: Annotated[
        Path | None, typer.Argument(help="Of a bundle: manifest of cases with their truth.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="Which cases: validation, training or all; no test cases.")] = "validation",
    fold: Annotated[int | None, typer.Option(help="The fold that the training left out.")] = None,
    data: DataFolder = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    runtime: Annotated[str, typer.Option(help="Of which the proof is: auto, torch or openvino.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    allow: Allow = None,
    allow_file: AllowFile = None,
    run_unvetted_code: RunUnvetted = False,
    json: AsJson = False,
) -> int:
    """Measure whether a model gives the same label maps with bfloat16: predict cases that it left out both ways.

    A bundle is set to the cases of a manifest; the fold models of a cross-validation, which stand for their ensemble,
    each to their own.

    The proof is good where the mean Dice is at most 0.001 lower, that of no case and label more than 0.01, no label of
    a case is lost, and no volume changes by more than 1 %. `segpipe export --precision` takes the file into the bundle,
    and `segpipe predict` then computes in bfloat16 where the processor is fast with it. Exit code 5: it is not good.

    Example: segpipe bundle precision runs/cross --out precision.json

    Example: segpipe bundle precision bundles/liver_ct liver/manifest.json --fold 0 --out precision.json
    """
    console = Console("bundle", as_json=json)
    quiet_libraries()
    from segpipe.studies import prove_precision

    proof = prove_precision(
        model,
        out,
        manifest=manifest,
        split=split,
        fold=fold,
        data=data,
        device=device,
        runtime=runtime,
        threads=threads,
        allow=allowed_names(allow, allow_file),
        run_unvetted_code=run_unvetted_code,
    )
    means = proof["mean_dice"]
    rows = [
        ("cases", proof["cases"]),
        ("computed with", ", ".join(proof["runtime"])),
        ("mean Dice", f"{means['float32']:.4f} in float32, {means['bfloat16']:.4f} in bfloat16"),
        ("most lost by a case and label", f"{proof['case_dice_lost']:.4f}"),
        ("labels lost", proof["labels_lost"]),
        ("largest change of a volume", f"{proof['volume_changed']:.2%}"),
    ]
    console.table("float32 and bfloat16", ["what", "value"], rows)
    proven = f"proven: `segpipe export --precision {quoted(out)}` takes it into the bundle"
    console.say("; ".join(proof["faults"]) or proven)
    console.document(action="precision", file=str(out), proof=proof)
    return REFUSED if proof["faults"] else OK


@group.command("keygen")
def keygen(
    prefix: Annotated[Path, typer.Argument(help="Path of the keys, without a suffix.", metavar="OUT_PREFIX")],
    password: Annotated[
        bool, typer.Option("--password", help="Ask for a password to encrypt the private key with.")
    ] = False,
    json: AsJson = False,
) -> int:
    """Make a key pair to sign bundles with: OUT_PREFIX.pem, which you keep, and OUT_PREFIX.pub.pem, for everyone.

    Only you may read the private key (mode 0600). With --password, or where the environment variable
    SEGPIPE_KEY_PASSWORD is set, it is encrypted. No file is ever overwritten.

    Example: segpipe bundle keygen ~/keys/clinic --password
    """
    from segpipe.bundle import PASSWORD, fingerprint_of, make_keys

    console = Console("bundle", as_json=json)
    secret = os.environ.get(PASSWORD)
    if password and not secret:
        secret = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    private, public = make_keys(prefix, secret)
    signer = fingerprint_of(public)
    console.say(f"private key  {private}  ({'encrypted' if secret else 'not encrypted'}; keep it to yourself)")
    console.say(f"public key   {public}  (for those who verify)")
    console.say(f"fingerprint  {signer}")
    console.document(
        action="keygen", private_key=str(private), encrypted=bool(secret), public_key=str(public), fingerprint=signer
    )
    return OK


@group.command("sign")
def sign(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.", show_default=False)],
    key: Annotated[Path, typer.Option(help="Private key to sign with.", metavar="KEY.pem", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace its signature.")] = False,
    json: AsJson = False,
) -> int:
    """Sign a bundle: write model.sig into it, over all of its other files, in the format of OpenSSF model signing.

    Nothing is sent anywhere. The password of an encrypted key is read from the environment variable
    SEGPIPE_KEY_PASSWORD, else asked for. Whoever has the public key verifies with `segpipe bundle verify --key` and
    runs with `segpipe predict --require-signature`. Sign the folder last, then pack it.

    Example: segpipe bundle sign bundles/liver_ct --key ~/keys/clinic.pem
    """
    from segpipe.bundle import PASSWORD, SIGNATURE, is_encrypted, sign_bundle

    console = Console("bundle", as_json=json)
    secret = os.environ.get(PASSWORD)
    if not secret and is_encrypted(key) and sys.stdin.isatty():
        secret = typer.prompt("Password of the key", hide_input=True, err=True)
    signer = sign_bundle(bundle, key, secret, overwrite)
    console.say(f"signed       {bundle / SIGNATURE}")
    console.say(f"fingerprint  {signer}")
    console.document(action="sign", signature=str(bundle / SIGNATURE), signed_by=signer)
    return OK
