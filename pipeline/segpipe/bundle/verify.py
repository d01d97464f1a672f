"""What came of checking a bundle: each check, what is refused, and the verdict in words and for machines.

One verdict on a bundle: which checks ran, what they found, which did not run.

The static checks execute nothing of it. Only where they all passed, and where it is asked for, it is run, in a process
of its own (`segpipe.bundle.replay.parent`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segpipe.bundle.reading import NotReadableError, read_document
from segpipe.bundle.signing import check_signature
from segpipe.bundle.sums import SIGNATURE, SUMS, compare_sums, fingerprint, hash_files
from segpipe.bundle.vet import (
    DOCUMENTS,
    LOGGING,
    METADATA,
    Finding,
    Names,
    Use,
    imports_of,
    is_ours,
    requirements,
    shown,
    unpacked,
    vet_config,
    vet_contents,
    vet_logging,
    vet_metadata,
    vet_schema,
    vet_versions,
)
from segpipe.errors import OK, REFUSED, RefusedError

if TYPE_CHECKING:
    from segpipe.bundle.replay import Replay


Status = Literal["passed", "refused", "absent", "not run"]


@dataclass(frozen=True)
class Check:
    """One check: its outcome, and what it looked at or why it did not run."""

    name: str
    status: Status
    detail: str

    def as_dict(self) -> dict[str, str]:
        """Plain values, as in the JSON document."""
        return {"name": self.name, "status": self.status, "detail": self.detail}


@dataclass
class Verdict:
    """What is known of a bundle after the checks.

    Attributes:
        name: what its metadata calls it.
        version: its version.
        sha256: names its content, as results name a bundle.
        signed_by: fingerprint of the given key, where the bundle is as its owner signed it.
        checks: each check, in the order of running, with those that did not run.
        findings: what is refused, each with its place.
        uses: each place where it would run code.
        allowed: names of ``--allow`` that were needed.
        metadata: ``configs/metadata.json``, empty where it cannot be read.
        sizes: bytes of each file.
        card: the model card, empty where there is none.
        replay: what came of running it; None where it was not run.
    """

    name: str = ""
    version: str = ""
    sha256: str | None = None
    signed_by: str | None = None
    checks: list[Check] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    card: str = ""
    replay: Replay | None = None

    @property
    def refused(self) -> bool:
        """Whether anything was found."""
        return bool(self.findings)

    @property
    def trusted(self) -> bool:
        """Whether it is as the owner of a key that the user gave has signed it, and nothing speaks against it."""
        return self.signed_by is not None and not self.refused

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return REFUSED if self.refused else OK

    @property
    def intact(self) -> bool | None:
        """Whether each file is as SHA256SUMS says; None where there is no such file, or it was not looked at."""
        states = {check.status for check in self.checks if check.name == "hashes"}
        return True if states == {"passed"} else False if states == {"refused"} else None

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        if self.refused:
            where = "Nothing of it was executed."
            if self.replay is not None and self.replay.isolation is not None:
                where = f"It ran in a process of its own alone, {self.replay.isolated}."
            return f"REFUSED: do not run it. {where}"
        hashes = (
            "its files are those of SHA256SUMS" if self.intact else "it has no SHA256SUMS, so nothing shows a change"
        )
        who = f"It is signed with the key {self.signed_by}: trusted, as far as you trust whoever holds that key."
        if not self.trusted:
            who = "No signature was checked: who made it is not known, so it is not trusted."
        names = "its configs name only what is listed or allowed"
        golden = self.replay and self.replay.golden
        replayed = f"Replay passed: {golden}." if golden else "Not replayed."
        return f"Static checks passed: {hashes}, and {names}. {replayed} {who}"

    @property
    def outcome(self) -> Literal["refused", "static checks passed", "static checks and replay passed"]:
        """The verdict in a word."""
        if self.refused:
            return "refused"
        replayed = self.replay is not None and self.replay.golden is not None
        return "static checks and replay passed" if replayed else "static checks passed"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in the JSON document."""
        return {
            "bundle": {"name": self.name, "version": self.version, "sha256": self.sha256},
            "verdict": self.outcome,
            "intact": self.intact,
            "trusted": self.trusted,
            "signed_by": self.signed_by,
            "checks": [check.as_dict() for check in self.checks],
            "findings": [finding.as_dict() for finding in self.findings],
            "allowed": self.allowed,
            "isolation": self.replay and self.replay.isolation,
            "isolation_reason": self.replay and self.replay.reason,
            "replay": self.replay and self.replay.numbers,
        }


DYNAMIC = ("network", "replay")
CARD = "docs/README.md"


def verify_bundle(
    path: str | Path, allow: Collection[str] = (), key: Path | None = None, replay: bool = False
) -> Verdict:
    """Check a bundle folder or zip file; nothing of it is executed or imported in this process.

    Args:
        path: the bundle.
        allow: names admitted beside the list: classes, functions, modules of imports, files of code, each exactly.
        key: file of the public key that must have signed it; None checks no signature.
        replay: where all static checks passed, run it in an isolated process.

    Raises:
        UsageError: not a bundle, not a key, or the packages that check signatures are not installed.
    """
    with unpacked(path) as (root, findings):
        verdict = Verdict()
        _note(verdict, "archive", "links, paths, sizes, special files", findings)
        if root is not None:
            _Checks(root, frozenset(allow), key, verdict).run()
        ran = {check.name for check in verdict.checks}
        skipped = [name for name in _Checks.NAMES if name not in ran]
        verdict.checks += [Check(name, "not run", "the archive is not safe to go on with") for name in skipped]
        if root is None or verdict.refused or not replay:
            why = "the static checks refused it" if verdict.refused else "not asked for"
            verdict.checks += [Check(name, "not run", why) for name in DYNAMIC]
        else:
            _run(root, verdict)
        return verdict


def _run(root: Path, verdict: Verdict) -> None:
    """The dynamic checks of a bundle that passed the static ones."""
    from segpipe.bundle.replay import replay_bundle

    replay = verdict.replay = replay_bundle(root, verdict.metadata)
    absent = "the metadata does not say its input", "no golden case in the bundle"
    for name, words, why in zip(DYNAMIC, (replay.network, replay.golden), absent, strict=True):
        found = replay.findings[name]
        if words is None and not found and (replay.not_run or any(replay.findings.values())):
            verdict.checks.append(Check(name, "not run", replay.not_run or "the bundle is refused already"))
        else:
            _note(verdict, name, f"{words}; {replay.isolated}", found, None if words else why)


def _note(verdict: Verdict, name: str, detail: str, findings: Iterable[Finding], absent: str | None = None) -> None:
    found = list(findings)
    verdict.findings += found
    status: Status = "refused" if found else "absent" if absent else "passed"
    verdict.checks.append(Check(name, status, f"{len(found)} found" if found else absent or detail))


class _Checks:
    """The checks of an unpacked bundle, in their order."""

    NAMES = ("hashes", "signature", "files", "schema", "versions", "configs", "metadata", "logging")

    def __init__(self, root: Path, allow: frozenset[str], key: Path | None, verdict: Verdict) -> None:
        self.root, self.allow, self.key, self.verdict = root, allow, key, verdict
        self.names = Names(allow)
        self.paths = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}

    def run(self) -> None:
        """Run all of them; each goes on where another refused."""
        self._hashes()
        self._signature()
        self._files()
        documents, unreadable = self._documents()
        metadata = documents.pop(METADATA, None)
        self.verdict.metadata = metadata if isinstance(metadata, dict) else {}
        self.verdict.name = str(self.verdict.metadata.get("name") or self.root.resolve().name)
        self.verdict.version = str(self.verdict.metadata.get("version", ""))
        self._schema_and_versions()
        self._configs(documents, unreadable)
        uses = [] if metadata is None else list(vet_metadata(metadata, METADATA))
        self._noted_uses("metadata", "no expression in it", uses)
        logging = [path for path in self.paths.items() if path[1].suffix.lower() in LOGGING]
        found = [finding for file, path in logging for finding in vet_logging(path, file)]
        _note(self.verdict, "logging", f"{len(logging)} files", found, None if logging else "no logging configuration")
        self.verdict.allowed = sorted(self.names.admitted)

    def _hashes(self) -> None:
        found = hash_files(self.root)
        self.verdict.sha256 = fingerprint(found)
        try:
            differences = compare_sums(self.root, found)
        except RefusedError as error:
            _note(self.verdict, "hashes", "", [Finding(SUMS, "", shown(error.found or ""), error.message)])
            return
        missing = None if differences is not None else f"no {SUMS}: a change could not be seen"
        findings = [
            Finding(each.name, "", f"sha256 {each.found}", f"{each.problem}: {SUMS} says {each.expected}")
            for each in differences or []
        ]
        _note(self.verdict, "hashes", f"{len(found)} files are those of {SUMS}", findings, missing)

    def _signature(self) -> None:
        signed = SIGNATURE in self.paths
        unsigned = "no signature: hashes prove intact, never authentic"
        if self.key is None:
            status: Status = "not run" if signed else "absent"
            detail = "it is signed, and no key was given to check it with (--key)" if signed else unsigned
            self.verdict.checks.append(Check("signature", status, detail))
            return
        findings = []
        try:
            self.verdict.signed_by = check_signature(self.root, self.key)
        except RefusedError as error:
            findings = [Finding(SIGNATURE, "", shown(error.found or ""), error.message)]
        self.verdict.findings += findings
        outcome: Status = "passed" if not findings else "refused" if signed else "absent"
        said = f"by the key {self.verdict.signed_by}" if not findings else findings[0].reason
        self.verdict.checks.append(Check("signature", outcome, said))

    def _files(self) -> None:
        self.verdict.sizes = {file: path.stat().st_size for file, path in self.paths.items()}
        if CARD in self.paths:
            self.verdict.card = self.paths[CARD].read_text(encoding="utf-8", errors="replace")
        uses = []
        for found in vet_contents(self.root):
            allowed = found.name is not None and self.names.allows(found.name)
            uses.append(Use(found.file, found.place, "file", found.text, findings=() if allowed else (found,)))
        self._noted_uses("files", f"{len(self.paths)} files: weights are tensors, arrays are numbers", uses)

    def _documents(self) -> tuple[dict[str, Any], list[Finding]]:
        found: dict[str, Any] = {}
        unreadable: list[Finding] = []
        for file, path in self.paths.items():
            if path.suffix.lower() in DOCUMENTS:
                try:
                    found[file] = read_document(path)
                except NotReadableError as error:
                    unreadable.append(Finding(file, "", shown(str(error)), "it cannot be read without doubt"))
        return found, unreadable

    def _schema_and_versions(self) -> None:
        metadata = self.verdict.metadata
        by = "our schema" if is_ours(metadata) else "MONAI's bundle specification"
        _note(self.verdict, "schema", f"metadata.json by {by}", vet_schema(metadata))
        odd = [f"{each.package} {each.state}" for each in requirements(metadata) if each.state != "same"]
        said = ", ".join(odd) or "all as here"
        _note(self.verdict, "versions", shown(said), vet_versions(metadata, self.names.allows))

    def _configs(self, documents: dict[str, Any], unreadable: list[Finding]) -> None:
        for document in documents.values():
            for alias, name in imports_of(document):
                self.names.add_import(alias, name)
        uses = [use for file, document in documents.items() for use in vet_config(document, file, self.names)]
        self._noted_uses("configs", f"{len(documents)} files, {len(uses)} targets and expressions", uses, unreadable)

    def _noted_uses(self, name: str, detail: str, uses: list[Use], more: Iterable[Finding] = ()) -> None:
        self.verdict.uses += uses
        _note(self.verdict, name, detail, [*more, *(finding for use in uses for finding in use.findings)])
