"""The static verdict on a bundle: each check with its outcome and what it found. Nothing of the bundle is executed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segpipe.bundle.vet.configs import imports_of, vet_config, vet_logging, vet_metadata
from segpipe.bundle.vet.documents import NotReadableError, read_document
from segpipe.bundle.vet.files import DOCUMENTS, LOGGING, METADATA, unpacked, vet_contents
from segpipe.bundle.vet.finding import Finding, Use, shown
from segpipe.bundle.vet.metadata import is_ours, requirements, vet_schema, vet_versions
from segpipe.bundle.vet.names import Names
from segpipe.bundle.vet.sums import SUMS, compare_sums, fingerprint, hash_files
from segpipe.errors import RefusedError

CHECKS = ("archive", "hashes", "files", "schema", "versions", "configs", "metadata", "logging")
CARD = "docs/README.md"
Status = Literal["passed", "refused", "absent", "not run"]


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
        found = tuple(findings)
        status: Status = "refused" if found else "absent" if absent else "passed"
        return cls(name, status, f"{len(found)} found" if found else absent or detail, found)

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

    @property
    def findings(self) -> list[Finding]:
        """What is refused, each with its place, in the order of the checks."""
        return [finding for check in self.checks for finding in check.findings]

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


def vet_bundle(path: str | Path, allow: Collection[str] = ()) -> Verdict:
    """Check a bundle folder or zip file; nothing of it is executed or imported.

    Args:
        path: the bundle.
        allow: names admitted beside the list: classes, functions, modules of imports, files of code, each exactly.

    Raises:
        UsageError: not a bundle.
    """
    with unpacked(path) as (root, findings):
        return vet_unpacked(root, findings, allow)


def vet_unpacked(root: Path | None, findings: Iterable[Finding], allow: Collection[str]) -> Verdict:
    """Check a bundle as `unpacked` gives it: its folder, None where that is not safe, and the findings on its form."""
    archive = Check.of("archive", "links, paths, sizes, special files", findings)
    if root is None:
        why = "the archive is not safe to go on with"
        return Verdict((archive, *(Check(name, "not run", why) for name in CHECKS[1:])))
    names = Names(allow)
    paths = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    sha256, hashes = _check_hashes(root)
    files, code_files = _check_files(root, len(paths), names)
    documents, unreadable = _read_documents(paths)
    document = documents.pop(METADATA, None)
    metadata = document if isinstance(document, dict) else {}
    by = "our schema" if is_ours(metadata) else "MONAI's bundle specification"
    schema = Check.of("schema", f"metadata.json by {by}", vet_schema(metadata))
    differing = [f"{needed.package} {needed.state}" for needed in requirements(metadata) if needed.state != "same"]
    detail = shown(", ".join(differing) or "all as here")
    versions = Check.of("versions", detail, vet_versions(metadata, names.allows))
    code = vet_documents(documents, names)
    detail = f"{len(documents)} files, {len(code)} targets and expressions"
    configs = Check.of("configs", detail, [*unreadable, *_findings(code)])
    expressions = [] if document is None else list(vet_metadata(document, METADATA))
    plain = Check.of("metadata", "no expression in it", _findings(expressions))
    return Verdict(
        (archive, hashes, files, schema, versions, configs, plain, _check_logging(paths)),
        name=str(metadata.get("name") or root.resolve().name),
        version=str(metadata.get("version", "")),
        sha256=sha256,
        uses=[*code_files, *code, *expressions],
        allowed=sorted(names.admitted),
        metadata=metadata,
        sizes={file: path.stat().st_size for file, path in paths.items()},
        card=paths[CARD].read_text(encoding="utf-8", errors="replace") if CARD in paths else "",
    )


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


def _check_files(root: Path, number: int, names: Names) -> tuple[Check, list[Use]]:
    uses = []
    for finding in vet_contents(root):
        allowed = finding.name is not None and names.allows(finding.name)
        uses.append(Use(finding.file, finding.place, "file", finding.text, findings=() if allowed else (finding,)))
    detail = f"{number} files: weights are tensors, arrays are numbers"
    return Check.of("files", detail, _findings(uses)), uses


def _read_documents(paths: Mapping[str, Path]) -> tuple[dict[str, Any], list[Finding]]:
    documents: dict[str, Any] = {}
    unreadable: list[Finding] = []
    for file, path in paths.items():
        if path.suffix.lower() in DOCUMENTS:
            try:
                documents[file] = read_document(path)
            except NotReadableError as error:
                unreadable.append(Finding(file, "", shown(str(error)), "it cannot be read without doubt"))
    return documents, unreadable


def vet_documents(documents: Mapping[str, Any], names: Names) -> list[Use]:
    """Return what configs, and metadata under its name, would run: the imports of each count in all of them."""
    for document in documents.values():
        for alias, name in imports_of(document):
            names.add_import(alias, name)
    return [
        use
        for file, document in documents.items()
        for use in (vet_metadata(document, file) if file == METADATA else vet_config(document, file, names))
    ]


def _check_logging(paths: Mapping[str, Path]) -> Check:
    files = {file: path for file, path in paths.items() if path.suffix.lower() in LOGGING}
    findings = [finding for file, path in files.items() for finding in vet_logging(path, file)]
    return Check.of("logging", f"{len(files)} files", findings, None if files else "no logging configuration")


def _findings(uses: Iterable[Use]) -> list[Finding]:
    return [finding for use in uses for finding in use.findings]
