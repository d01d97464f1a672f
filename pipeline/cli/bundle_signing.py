"""segpipe bundle keygen and sign."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.console import Console
from pipeline.errors import OK

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def keygen(
    prefix: Annotated[Path, typer.Argument(help="Path of the keys, without a suffix.", metavar="OUT_PREFIX")],
    password: Annotated[
        bool,
        typer.Option("--password", help="Ask for a password to encrypt the private key with."),
    ] = False,
    json: Json = False,
) -> int:
    """Make a key pair to sign bundles with: OUT_PREFIX.pem, which you keep, and OUT_PREFIX.pub.pem, for everyone.

    Only you may read the private key (mode 0600). With --password, or where the environment variable
    SEGPIPE_KEY_PASSWORD is set, it is encrypted. No file is ever overwritten.

    Example: segpipe bundle keygen ~/keys/clinic --password
    """
    from pipeline.bundle.keys import PASSWORD, fingerprint_of, make_keys

    console = Console("bundle", as_json=json)
    secret = os.environ.get(PASSWORD)
    if password and not secret:
        secret = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    private, public = make_keys(prefix, secret)
    signer = fingerprint_of(public)
    console.say(
        f"private key  {private}  ({'encrypted' if secret else 'not encrypted'}; keep it to yourself)"
    )
    console.say(f"public key   {public}  (for those who verify)")
    console.say(f"fingerprint  {signer}")
    console.document(
        action="keygen",
        private_key=str(private),
        encrypted=bool(secret),
        public_key=str(public),
        fingerprint=signer,
    )
    return OK


def sign(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.", show_default=False)],
    key: Annotated[
        Path, typer.Option(help="Private key to sign with.", metavar="KEY.pem", show_default=False)
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace its signature.")] = False,
    json: Json = False,
) -> int:
    """Sign a bundle: write model.sig into it, over all of its other files, in the format of OpenSSF model signing.

    Nothing is sent anywhere. The password of an encrypted key is read from the environment variable
    SEGPIPE_KEY_PASSWORD, else asked for. Whoever has the public key verifies with `segpipe bundle verify --key` and
    runs with `segpipe predict --require-signature`. Sign the folder last, then pack it.

    Example: segpipe bundle sign bundles/liver_ct --key ~/keys/clinic.pem
    """
    from pipeline.bundle.keys import PASSWORD, is_encrypted
    from pipeline.bundle.signing import sign_bundle
    from pipeline.bundle.sums import SIGNATURE

    console = Console("bundle", as_json=json)
    secret = os.environ.get(PASSWORD)
    if not secret and is_encrypted(key) and sys.stdin.isatty():
        secret = typer.prompt("Password of the key", hide_input=True, err=True)
    signer = sign_bundle(bundle, key, secret, overwrite)
    console.say(f"signed       {bundle / SIGNATURE}")
    console.say(f"fingerprint  {signer}")
    console.document(action="sign", signature=str(bundle / SIGNATURE), signed_by=signer)
    return OK
