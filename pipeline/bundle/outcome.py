"""What came of checking a bundle: each check, what is refused, and the verdict in words and for machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.bundle.finding import Finding, Use
from pipeline.errors import OK, REFUSED

if TYPE_CHECKING:
    from pipeline.bundle.replay import Replay

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
            "its files are those of SHA256SUMS"
            if self.intact
            else "it has no SHA256SUMS, so nothing shows a change"
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
