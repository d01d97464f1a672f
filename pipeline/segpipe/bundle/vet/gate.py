"""The gate: nothing of a bundle is instantiated, evaluated or imported before its static checks passed.

The worker of a batch (`segpipe.prediction.worker`) stands behind it. The checks resolve names in MONAI and torch, which
the worker imports anyway and the parent of a batch never does.

What is covered: the configs and the metadata that the worker executes are those that were vetted, as they are handed
over as data and read from no file again, and the files are those that the parent hashed. Not covered is who can write
to the bundle's folder while it runs: weights, which torch loads with ``weights_only``, and Python files that were
allowed are opened after they were vetted. A zip file is unpacked where only its user can write.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from segpipe.bundle.vet.bundle_files import (
    DOCUMENTS,
    FIRST_STAGE,
    LOGGING,
    METADATA,
    Finding,
    Use,
    bounded,
    plain,
    shown,
    unpacked,
)
from segpipe.bundle.vet.configs import imports_of, vet_config, vet_metadata
from segpipe.bundle.vet.contents import vet_contents
from segpipe.bundle.vet.documents import (
    SUMS,
    compare_sums,
    fingerprint,
    hash_files,
    is_ours,
    requirements,
    vet_logging,
    vet_schema,
    vet_versions,
)
from segpipe.bundle.vet.names import Names
from segpipe.bundle.vet.reading import read_documents
from segpipe.common.console import quiet_libraries
from segpipe.errors import RefusedError

FLAG = "--run-unvetted-code"
CHECKS = ("archive", "hashes", "files", "schema", "versions", "configs", "metadata", "logging")
CARD = "docs/README.md"
LONGEST_CARD = 2**18
METADATAS = (METADATA, f"{FIRST_STAGE}/{METADATA}")
INFERENCE = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")  # the first that is there
Purpose = Literal["predict", "all"]
Status = Literal["passed", "refused", "absent", "not run"]


@dataclass(frozen=True)
class TrustPolicy:
    """On which terms a bundle is let through.

    Attributes:
        allow: names admitted beside the list, as `vet_bundle` takes them.
        run_unvetted_code: let it through whatever is found.
        allow_unisolated: run code of its own, or what was let through, also where nothing can isolate it.
    """

    allow: tuple[str, ...] = ()
    run_unvetted_code: bool = False
    allow_unisolated: bool = False


def require_vetted(
    path: str | Path,
    policy: TrustPolicy = TrustPolicy(),
    documents: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    purpose: Purpose = "all",
) -> dict[str, Any]:
    """Vet a bundle before anything of it runs in this process.

    Args:
        path: its folder or zip file.
        policy: on which terms it is let through.
        documents: by file, what was read from it and is about to be executed.
        sha256: of its content when they were read.
        purpose: what is to be run, as in `vet_unpacked`.

    Returns:
        What results say of it: ``passed``, ``findings`` (their number), ``allowed`` and ``intact``.

    Raises:
        UsageError: not a bundle.
        RefusedError: it did not pass and the policy does not let it through all the same, or its files are others now.
    """
    verdict = vet_bundle(path, policy.allow, purpose)
    if sha256 is not None and verdict.sha256 not in (sha256, None):
        raise RefusedError("the bundle was changed while it was opened", path=path, hint="try again")
    handed_over = vet_documents(documents or {}, Names(policy.allow))
    # what is handed over is what lies there, or else is found as well
    found = dict.fromkeys([*verdict.findings, *(finding for use in handed_over for finding in use.findings)])
    findings, count = bounded(found)
    if findings and not policy.run_unvetted_code:
        raise RefusedError(
            "the bundle did not pass the static checks, and nothing of it was run",
            path=path,
            found="1 finding" if count == 1 else f"{count} findings",
            hint=_hint(findings),
            findings=plain(findings),
        )
    answer = {"passed": not findings, "findings": count}
    return {**answer, "allowed": list(verdict.allowed), "intact": verdict.intact}


def _hint(findings: Iterable[Finding]) -> str:
    nameable = any(finding.name for finding in findings)
    file = "`segpipe bundle inspect BUNDLE --allow-file FILE` writes all of them, with what each grants"
    single = f"read each place and admit its name with --allow ({file}), or " if nameable else ""
    return f"{single}get it from whom you trust; {FLAG} lets it do on this machine whatever you may do"


def require_vetted_sources(files: Iterable[str | Path | None], policy: TrustPolicy) -> None:
    """Vet each bundle that one of the files lies in; names of fragments and None are passed over.

    Raises:
        RefusedError: a bundle did not pass.
    """
    for root in dict.fromkeys(bundle_around(Path(file)) for file in files if file is not None):
        if root is not None:
            quiet_libraries()
            require_vetted(root, policy)


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


def vet_opened(bundles: Iterable[OpenedBundle], policy: TrustPolicy) -> dict[str, Any]:
    """Vet what is about to be executed: the bundles on the disk, and the documents that were read from them.

    Args:
        bundles: such as those of a `segpipe.inference.Recipe`.
        policy: on which terms they are let through.

    Returns:
        As `require_vetted`.

    Raises:
        RefusedError: as `require_vetted`, or files of a bundle are not those that were hashed.
    """
    results = [
        require_vetted(
            bundle.root,
            policy,
            {bundle.config_file: bundle.inference, METADATA: bundle.metadata},
            bundle.sha256,
            "predict",
        )
        for bundle in bundles
    ]
    return {
        "passed": all(result["passed"] for result in results),
        "findings": sum(result["findings"] for result in results),
        "allowed": sorted({name for result in results for name in result["allowed"]}),
        "intact": results[0]["intact"],
    }


@dataclass(frozen=True)
class Check:
    """One check: its outcome, what it looked at or why it did not run, and what speaks against the bundle."""

    name: str
    status: Status
    detail: str
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, name: str, detail: str, findings: Iterable[Finding], absent: str | None = None) -> Check:
        """Return a check that ran: refused with findings, absent where a reason for that is given, else passed."""
        found, count = bounded(findings)
        status: Status = "refused" if found else "absent" if absent else "passed"
        return cls(name, status, f"{count} found" if found else absent or shown(detail), tuple(found))

    def as_dict(self) -> dict[str, str]:
        """Return plain values, as in the JSON document."""
        return {"name": self.name, "status": self.status, "detail": self.detail}


@dataclass(frozen=True)
class Verdict:
    """What is known of a bundle after the static checks.

    Attributes:
        checks: each check, in the order of running, with those that did not run.
        name: what its metadata calls it.
        version: its version.
        sha256: names its content, as results name a bundle; None where its archive is not safe to be unpacked.
        uses: each place where it would run code.
        allowed: names of ``--allow`` that were needed.
        metadata: ``configs/metadata.json``, empty where it cannot be read.
        sizes: bytes of each file.
        card: the model card, empty where there is none.
        aside: what is found in documents that `segpipe predict` does not run; among the findings only where the checks
            were for all of the bundle.
    """

    checks: tuple[Check, ...]
    name: str = ""
    version: str = ""
    sha256: str | None = None
    uses: Sequence[Use] = ()
    allowed: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    card: str = ""
    aside: Sequence[Finding] = ()

    def is_run(self, file: str) -> bool:
        """Return whether `segpipe predict` may run or read a file; it runs one config of those that a bundle has."""
        return is_run(file, self.sizes)

    @property
    def findings(self) -> list[Finding]:
        """What is refused, each with its place, in the order of the checks."""
        return [finding for check in self.checks for finding in check.findings]

    @property
    def of_predict(self) -> list[Finding]:
        """What is refused for `segpipe predict`."""
        return [finding for finding in self.findings if finding not in self.aside]

    @property
    def refused(self) -> bool:
        """Whether anything was found."""
        return bool(self.findings)

    @property
    def intact(self) -> bool | None:
        """Whether each file is as SHA256SUMS says; None where there is no such file, or it was not looked at."""
        status = next(check.status for check in self.checks if check.name == "hashes")
        return {"passed": True, "refused": False}.get(status)

    @property
    def outcome(self) -> str:
        """The verdict in a word."""
        return "refused" if self.refused else "static checks passed"


def vet_bundle(path: str | Path, allow: Collection[str] = (), purpose: Purpose = "all") -> Verdict:
    """Check a bundle folder or zip file; nothing of it is executed or imported.

    Args:
        path: the bundle.
        allow: names admitted beside the list: classes, functions, modules of imports, files of code, each exactly.
        purpose: what is to be run, as in `vet_unpacked`.

    Raises:
        UsageError: not a bundle.
    """
    with unpacked(path) as (root, findings):
        return vet_unpacked(root, findings, allow, purpose)


def vet_unpacked(
    root: Path | None, findings: Iterable[Finding], allow: Collection[str], purpose: Purpose = "all"
) -> Verdict:
    """Check a bundle as `unpacked` gives it.

    Args:
        root: its folder, None where that is not safe.
        findings: those on its form.
        allow: as in `vet_bundle`.
        purpose: for ``predict``, what stands in configs that it does not run is set aside; the rest is the same.
    """
    archive = Check.of("archive", "links, paths, sizes, special files", findings)
    if root is None:
        why = "the archive is not safe to go on with"
        return Verdict((archive, *(Check(name, "not run", why) for name in CHECKS[1:])))
    paths = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    names, sorting = Names(allow), _Sorting(paths, purpose)
    code_files = []
    for finding in vet_contents(root):
        allowed = finding.name is not None and names.allows(finding.name)
        code_files.append(Use(finding.file, finding.place, "file", finding.text, (), () if allowed else (finding,)))
    detail = f"{len(paths)} files: weights are tensors, arrays are numbers"
    files = Check.of("files", detail, sorting.counted(_findings(code_files)))
    sha256, hashes = _check_hashes(root)
    documents, unreadable = read_documents(paths)
    document = documents.pop(METADATA, None)
    metadata = document if isinstance(document, dict) else {}
    by = "our schema" if is_ours(metadata) else "MONAI's bundle specification"
    schema = Check.of("schema", f"metadata.json by {by}", vet_schema(metadata))
    differing = [f"{needed.package} {needed.state}" for needed in requirements(metadata) if needed.state != "same"]
    detail = ", ".join(differing) or "all as here"
    versions = Check.of("versions", detail, vet_versions(metadata, names.allows))
    logging_files = [file for file, path in paths.items() if path.suffix.lower() in LOGGING]
    refused = [finding for file in logging_files for finding in vet_logging(paths[file], file)]
    absent = None if logging_files else "no logging configuration"
    logging = Check.of("logging", f"{len(logging_files)} files", sorting.counted(refused), absent)
    together, before, apart = sorting.documents(documents)
    alone = Names(allow, admitted=names.admitted)
    code = [*vet_documents(together, names), *vet_documents(before, alone), *vet_documents(apart, Names(allow))]
    detail = f"{len(together) + len(before)} files, {len(code)} targets and expressions"
    configs = Check.of("configs", detail, sorting.counted([*unreadable, *_findings(code)]))
    expressions = [] if document is None else list(vet_metadata(document, METADATA))
    plain_metadata = Check.of("metadata", "no expression in it", _findings(expressions))
    return Verdict(
        (archive, hashes, files, schema, versions, configs, plain_metadata, logging),
        name=str(metadata.get("name") or root.resolve().name),
        version=str(metadata.get("version", "")),
        sha256=sha256,
        uses=[*code_files, *code, *expressions],
        allowed=sorted(names.admitted),
        metadata=metadata,
        sizes={file: path.stat().st_size for file, path in paths.items()},
        card=_card(paths[CARD]) if CARD in paths else "",
        aside=bounded(sorting.aside)[0],
    )


@dataclass
class _Sorting:
    """Sorts what is found by whether `segpipe predict` runs it."""

    files: Collection[str]
    purpose: Purpose
    aside: list[Finding] = field(default_factory=list)

    def counted(self, findings: Iterable[Finding]) -> list[Finding]:
        """Return what counts for the purpose; what is not run is kept aside."""
        found = list(findings)
        self.aside += [finding for finding in found if not is_run(finding.file, self.files)]
        return [finding for finding in found if self.purpose == "all" or is_run(finding.file, self.files)]

    def documents(self, read: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Return documents that run together, whose imports count in all of them, those of a first stage, the rest."""
        run = {file: each for file, each in read.items() if self.purpose == "all" or is_run(file, self.files)}
        before = {file: each for file, each in run.items() if _stage_of(file, self.files)}
        together = {file: each for file, each in run.items() if file not in before}
        return together, before, {file: each for file, each in read.items() if file not in run}


def is_run(file: str, files: Collection[str]) -> bool:
    """Return whether a file is no config, logging config or TorchScript, or the one of a stage that `predict` runs."""
    root = _stage_of(file, files)
    run = (root + METADATA, *[root + each for each in INFERENCE if root + each in files][:1])
    return file in run or Path(file).suffix.lower() not in (*DOCUMENTS, *LOGGING, ".ts")


def _stage_of(file: str, files: Collection[str]) -> str:
    """Return the folder of the bundle that a file is of: that of the first stage, where there is one, or none."""
    nested = f"{FIRST_STAGE}/"
    return nested if file.startswith(nested) and nested + METADATA in files else ""


def _card(path: Path) -> str:
    """Return the model card, of one that nobody would read the beginning."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        text = stream.read(LONGEST_CARD + 1)
    return text if len(text) <= LONGEST_CARD else f"{text[:LONGEST_CARD]}\n\n[...] {path.stat().st_size} bytes in all"


def _check_hashes(root: Path) -> tuple[str, Check]:
    hashes = hash_files(root)
    try:
        differences = compare_sums(root, hashes)
    except RefusedError as error:
        finding = Finding(SUMS, "", shown(error.found or ""), error.message)
        return fingerprint(hashes), Check.of("hashes", "", [finding])
    missing = None if differences is not None else f"no {SUMS}: a change could not be seen"
    findings = [
        Finding(file.name, "", f"sha256 {file.found}", f"{file.problem}: {SUMS} says {file.expected}")
        for file in differences or []
    ]
    return fingerprint(hashes), Check.of("hashes", f"{len(hashes)} files are those of {SUMS}", findings, missing)


def vet_documents(documents: Mapping[str, Any], names: Names) -> list[Use]:
    """Return what configs, and metadata under its name, would run: the imports of each count in all of them."""
    for document in documents.values():
        for alias, name in imports_of(document):
            names.add_import(alias, name)
    return [
        use
        for file, document in documents.items()
        for use in (vet_metadata(document, file) if file in METADATAS else vet_config(document, file, names))
    ]


def _findings(uses: Iterable[Use]) -> list[Finding]:
    return [finding for use in uses for finding in use.findings]
