"""The gate: nothing of a bundle is instantiated, evaluated or imported before its static checks passed.

The worker of a batch (`segpipe.prediction.worker`) stands behind it. The checks resolve names in MONAI and torch, which
the worker imports anyway and the parent of a batch never does.

What is covered: the configs and the metadata that the worker executes are those that were vetted, as they are handed
over as data and read from no file again, and the files are those that the parent hashed. Not covered is who can write
to the bundle's folder while it runs: weights, which torch loads with ``weights_only``, and Python files that were
allowed are opened after they were vetted. A zip file is unpacked where only its user can write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from segpipe.bundle.vet.files import METADATA, unpacked
from segpipe.bundle.vet.finding import Finding, plain
from segpipe.bundle.vet.names import Names
from segpipe.bundle.vet.verdict import vet_bundle, vet_documents
from segpipe.common.console import quiet_libraries
from segpipe.errors import RefusedError

FLAG = "--run-unvetted-code"


@dataclass(frozen=True)
class TrustPolicy:
    """On which terms a bundle is let through.

    Attributes:
        allow: names admitted beside the list, as `segpipe.bundle.vet.verdict.vet_bundle` takes them.
        run_unvetted_code: let it through whatever is found.
    """

    allow: tuple[str, ...] = ()
    run_unvetted_code: bool = False


@contextmanager
def bundle_folder(path: str | Path) -> Iterator[Path]:
    """Yield the folder of a bundle, which a zip file becomes for the time of the block.

    Raises:
        UsageError: a file that holds no bundle.
        RefusedError: an archive that is not safe to be unpacked, whatever the terms.
    """
    path = Path(path)
    if not path.is_file():  # a folder; of what is not there, `open_bundle` speaks
        yield path
        return
    with unpacked(path) as (root, findings):
        if root is None:
            raise RefusedError(
                "the bundle's archive is not safe to be unpacked",
                path=path,
                findings=plain(findings),
                hint="get it from whom you trust",
            )
        yield root


def require_vetted(
    path: str | Path,
    terms: TrustPolicy = TrustPolicy(),
    documents: Mapping[str, Any] | None = None,
    sha256: str | None = None,
) -> dict[str, Any]:
    """Vet a bundle before anything of it runs in this process.

    Args:
        path: its folder or zip file.
        terms: on which it is let through.
        documents: by file, what was read from it and is about to be executed.
        sha256: of its content when they were read.

    Returns:
        What results say of it: ``passed``, ``findings`` (their number), ``allowed`` and ``intact``.

    Raises:
        UsageError: not a bundle.
        RefusedError: it did not pass and the terms do not let it through all the same, or its files are others now.
    """
    verdict = vet_bundle(path, terms.allow)
    if sha256 is not None and verdict.sha256 not in (sha256, None):
        raise RefusedError("the bundle was changed while it was opened", path=path, hint="try again")
    handed_over = vet_documents(documents or {}, Names(terms.allow))
    # what is handed over is what lies there, or else is found as well
    findings = list(dict.fromkeys([*verdict.findings, *(finding for use in handed_over for finding in use.findings)]))
    if findings and not terms.run_unvetted_code:
        raise RefusedError(
            "the bundle did not pass the static checks, and nothing of it was run",
            path=path,
            found="1 finding" if len(findings) == 1 else f"{len(findings)} findings",
            hint=_hint(findings),
            findings=plain(findings),
        )
    said = {"passed": not findings, "findings": len(findings)}
    return {**said, "allowed": list(verdict.allowed), "intact": verdict.intact}


def _hint(findings: Iterable[Finding]) -> str:
    nameable = any(finding.name for finding in findings)
    single = "read each place and admit its name with --allow, or " if nameable else ""
    return f"{single}get it from whom you trust; {FLAG} lets it do on this machine whatever you may do"


def require_vetted_sources(files: Iterable[str | Path | None], terms: TrustPolicy) -> None:
    """Vet each bundle that one of the files lies in; names of fragments and None are passed over.

    Raises:
        RefusedError: a bundle did not pass.
    """
    for root in dict.fromkeys(bundle_around(Path(file)) for file in files if file is not None):
        if root is not None:
            quiet_libraries()
            require_vetted(root, terms)


def bundle_around(file: Path) -> Path | None:
    """Return the innermost bundle folder that a file lies in."""
    folders = file.resolve().parents if file.exists() else ()
    return next((folder for folder in folders if (folder / METADATA).is_file()), None)


class OpenedBundle(Protocol):
    """What of a bundle is executed: a folder, documents that were read from it, and the hash of its content then."""

    @property
    def root(self) -> str: ...
    @property
    def config_file(self) -> str: ...
    @property
    def inference(self) -> dict[str, Any]: ...
    @property
    def metadata(self) -> dict[str, Any]: ...
    @property
    def sha256(self) -> str: ...


class OpenedBundles(Protocol):
    """What a model is made from: the first bundle, and further ones whose scores are averaged with its own."""

    @property
    def bundles(self) -> Sequence[OpenedBundle]: ...


def vet_recipe(recipe: OpenedBundles, policy: TrustPolicy) -> dict[str, Any]:
    """Vet what is about to be executed: the bundles on the disk, and the documents that were read from them.

    Args:
        recipe: such as `segpipe.inference.Recipe`.
        policy: on which terms they are let through.

    Returns:
        As `require_vetted`.

    Raises:
        RefusedError: as `require_vetted`, or files of a bundle are not those that were hashed.
    """
    results = [
        require_vetted(
            bundle.root, policy, {bundle.config_file: bundle.inference, METADATA: bundle.metadata}, bundle.sha256
        )
        for bundle in recipe.bundles
    ]
    return {
        "passed": all(result["passed"] for result in results),
        "findings": sum(result["findings"] for result in results),
        "allowed": sorted({name for result in results for name in result["allowed"]}),
        "intact": results[0]["intact"],
    }


def _documents(opened: OpenedBundle) -> dict[str, Any]:
    return {opened.config_file: opened.inference, METADATA: opened.metadata}
