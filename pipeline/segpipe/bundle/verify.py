"""Verifying a bundle: the static checks, its signature, and the replay of its golden case in an isolated process.

Nothing of the bundle is executed in this process. Only where all static checks passed, and where it is asked for, it is
run, in a process of its own (`segpipe.bundle.replay`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.bundle.exporting import check_figures
from segpipe.bundle.signing import check_signature
from segpipe.bundle.vet import SIGNATURE, Check, Finding, Purpose, Verdict, granted, shown, unpacked, vet_unpacked
from segpipe.errors import OK, REFUSED, RefusedError

if TYPE_CHECKING:
    from segpipe.bundle.replay import Replay

DYNAMIC = ("network", "replay")


@dataclass(frozen=True)
class Verification(Verdict):
    """What is known of a bundle after all checks.

    Attributes:
        signed_by: fingerprint of the given key, where the bundle is as its owner signed it.
        replay: what came of running it; None where it was not run.
        purpose: what was to be run.
    """

    signed_by: str | None = None
    replay: Replay | None = None
    purpose: Purpose = "all"

    @property
    def trusted(self) -> bool:
        """Whether it is as the owner of a key that the user gave has signed it, and nothing speaks against it."""
        return self.signed_by is not None and not self.refused

    @property
    def grants(self) -> dict[str, str]:
        """What each name that is allowed, or that a finding asks for, lets the bundle do, in words."""
        asked = {finding.name for finding in (*self.findings, *self.aside) if finding.name}
        return {name: granted(name) for name in sorted({*asked, *self.allowed})}

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return REFUSED if self.refused else OK

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        if self.refused:
            where = "Nothing of it was executed."
            if self.replay is not None and self.replay.isolation is not None:
                where = f"It ran in a process of its own alone, {self.replay.isolated}."
            less = "" if self.of_predict else " What `segpipe predict` runs of it passed: --for predict."
            return f"REFUSED: do not run it. {where}{less}"
        hashes = (
            "its files are those of SHA256SUMS" if self.intact else "it has no SHA256SUMS, so nothing shows a change"
        )
        who = f"It is signed with the key {self.signed_by}: trusted, as far as you trust whoever holds that key."
        if not self.trusted:
            who = "No signature was checked: who made it is not known, so it is not trusted."
        which = "its configs name" if self.purpose == "all" else "what `segpipe predict` runs of it names"
        names = f"{which} only what is listed or allowed"
        golden = self.replay and self.replay.golden
        replayed = f"Replay passed: {golden}." if golden else "Not replayed."
        return f"Static checks passed: {hashes}, and {names}. {replayed} {who}"

    @property
    def outcome(self) -> str:
        """The verdict in a word."""
        replayed = self.replay is not None and self.replay.golden is not None and not self.refused
        return "static checks and replay passed" if replayed else super().outcome

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as in the JSON document."""
        return {
            "bundle": {"name": self.name, "version": self.version, "sha256": self.sha256},
            "verdict": self.outcome,
            "purpose": self.purpose,
            "passes_for_predict": not self.of_predict,
            "intact": self.intact,
            "trusted": self.trusted,
            "signed_by": self.signed_by,
            "checks": [check.as_dict() for check in self.checks],
            "findings": [finding.as_dict() for finding in self.findings],
            "not_run_by_predict": [finding.as_dict() for finding in self.aside],
            "grants": self.grants,
            "allowed": self.allowed,
            "isolation": self.replay and self.replay.isolation,
            "isolation_reason": self.replay and self.replay.reason,
            "replay": self.replay and self.replay.numbers,
        }


def verify_bundle(
    path: str | Path,
    allow: Collection[str] = (),
    key: Path | None = None,
    replay: bool = False,
    purpose: Purpose = "all",
) -> Verification:
    """Check a bundle folder or zip file; nothing of it is executed or imported in this process.

    Args:
        path: the bundle.
        allow: names admitted beside the list: classes, functions, modules of imports, files of code, each exactly.
        key: file of the public key that must have signed it; None checks no signature.
        replay: where all static checks passed, run it in an isolated process.
        purpose: ``predict`` sets aside what stands in configs that `segpipe predict` does not run.

    Raises:
        UsageError: not a bundle, not a key, or the packages that check signatures are not installed.
    """
    with unpacked(path) as (root, findings):
        static = vet_unpacked(root, findings, allow, purpose)
        signature, signed_by = _check_signature(root, key)
        checks = (*static.checks[:2], signature, *static.checks[2:])
        if root is not None and not any(check.findings for check in checks):
            checks = (*checks, check_figures(root, static.metadata))
        else:
            checks = (*checks, Check("figures", "not run", "the static checks refused it"))
        replayed = None
        if root is None or not replay or any(check.findings for check in checks):
            why = "not asked for" if not any(check.findings for check in checks) else "the static checks refused it"
            dynamic = [Check(name, "not run", why) for name in DYNAMIC]
        else:
            replayed, dynamic = _replay(root, static)
    known = {**vars(static), "checks": (*checks, *dynamic)}
    return Verification(**known, signed_by=signed_by, replay=replayed, purpose=purpose)


def _check_signature(root: Path | None, key: Path | None) -> tuple[Check, str | None]:
    """Return the check of the signature, and the fingerprint of the key where the bundle is as its owner signed it."""
    if root is None:
        return Check("signature", "not run", "the archive is not safe to go on with"), None
    signed = (root / SIGNATURE).is_file()
    if key is None:
        if signed:
            return Check("signature", "not run", "it is signed, and no key was given to check it with (--key)"), None
        return Check("signature", "absent", "no signature: hashes prove intact, never authentic"), None
    try:
        signer = check_signature(root, key)
    except RefusedError as error:
        finding = Finding(SIGNATURE, "", shown(error.found or ""), error.message)
        return Check("signature", "refused" if signed else "absent", error.message, (finding,)), None
    return Check("signature", "passed", f"by the key {signer}"), signer


def _replay(root: Path, static: Verdict) -> tuple[Replay, list[Check]]:
    """Run a bundle that passed the static checks, isolated, and return what came of it with the dynamic checks."""
    from segpipe.bundle.replay import replay_bundle

    replay = replay_bundle(root, static.metadata)
    absent = "the metadata does not say its input", "no golden case in the bundle"
    checks = []
    for name, words, why in zip(DYNAMIC, (replay.network, replay.golden), absent, strict=True):
        findings = replay.findings[name]
        if words is None and not findings and (replay.not_run or any(replay.findings.values())):
            checks.append(Check(name, "not run", replay.not_run or "the bundle is refused already"))
        else:
            checks.append(Check.of(name, f"{words}; {replay.isolated}", findings, None if words else why))
    return replay, checks
