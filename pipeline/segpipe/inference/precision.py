"""The type that networks compute windows in: float32, or bfloat16 where it was asked for, or is fast and proven.

bfloat16 keeps 8 bits of a number. That a bundle's label maps stay what they are is shown by its own cases: figures in
its metadata, which `segpipe bundle precision` measures, and which are judged here whenever a bundle is run. Scores are
float32 again before they are weighted, added and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segpipe.common.provenance import cpu_kind

LIMITS = {"mean_dice_lost": 0.001, "case_dice_lost": 0.01, "labels_lost": 0, "volume_changed": 0.01}
UNPROVEN = "asked for; it is not proven that it gives this bundle's label maps"


@dataclass(frozen=True)
class ChosenPrecision:
    """What networks compute in.

    Attributes:
        name: ``float32`` or ``bfloat16``.
        reason: why.
    """

    name: str = "float32"
    reason: str = "asked for"


FLOAT32 = ChosenPrecision()
ForRuntime = Callable[[str], ChosenPrecision]  # of the runtime's name


def precision_for(
    wanted: str, device: str, metadata: Sequence[Mapping[str, Any]], mirror: Sequence[str] = ()
) -> ForRuntime:
    """Return what says in which type a runtime computes.

    Args:
        wanted: ``float32``, ``bfloat16``, or ``auto``, which takes bfloat16 only where the processor multiplies
            matrices of it and the bundle proves it for this runtime.
        device: where the networks are: ``cpu`` or ``cuda``.
        metadata: of each bundle whose scores are averaged.
        mirror: axes along which windows are mirrored as well.
    """

    def choose(runtime: str) -> ChosenPrecision:
        lack = why_unproven(metadata, runtime, mirror)
        if wanted == "float32":
            return ChosenPrecision()
        if wanted == "bfloat16":
            return ChosenPrecision("bfloat16", UNPROVEN if lack else "asked for, and proven for this bundle")
        if lack or (lack := _why_slow(device)):
            return ChosenPrecision("float32", lack)
        return ChosenPrecision("bfloat16", "proven for this bundle, and this processor computes with it")

    return choose


def _why_slow(device: str) -> str:
    """Return why bfloat16 is no gain on a device, empty where it is one."""
    if device == "cuda":
        import torch

        return "" if torch.cuda.is_bf16_supported(including_emulation=False) else "this GPU has no bfloat16"
    return "" if cpu_kind() == "amx" else "this processor has no AMX, which bfloat16 is fast with"


def why_unproven(metadata: Sequence[Mapping[str, Any]], runtime: str, mirror: Sequence[str] = ()) -> str:
    """Return why it is not proven that bfloat16 gives the label maps of float32, empty where it is.

    Args:
        metadata: of each bundle whose scores are averaged.
        runtime: that computes them.
        mirror: axes along which windows are mirrored as well.
    """
    if len(metadata) > 1:
        return "bfloat16 is proven for one bundle at a time, not for scores of several"
    proof = metadata[0].get("precision")
    if not isinstance(proof, Mapping):
        return "the bundle has no proof that bfloat16 gives its label maps"
    if faults := bfloat16_faults(proof):
        return f"the bundle's label maps change with bfloat16: {'; '.join(faults)}"
    if runtime not in (proof.get("runtime") or ()):
        return f"the bundle's proof of bfloat16 is not of the runtime {runtime}"
    if list(mirror) != list(proof.get("mirror") or ()):
        return "the bundle's proof of bfloat16 is of other mirrored axes"
    return ""


def bfloat16_note(wanted: str, metadata: Sequence[Mapping[str, Any]], runtime: str, mirror: Sequence[str]) -> list[str]:
    """Return what results say where bfloat16 was asked for without a proof; else nothing."""
    lack = why_unproven(metadata, runtime, mirror) if wanted == "bfloat16" else ""
    return [f"computed in bfloat16, which is unproven here: {lack}"] if lack else []


def bfloat16_faults(proof: Mapping[str, Any]) -> list[str]:
    """Return in words which limits the figures of a proof are over; one that lacks a figure proves nothing."""
    words = {
        "mean_dice_lost": "the mean Dice is {found:.4f} lower, {limit:g} is allowed",
        "case_dice_lost": "the Dice of a case and label is {found:.4f} lower, {limit:g} is allowed",
        "labels_lost": "{found:g} labels of cases are lost",
        "volume_changed": "the volume of a case and label is {found:.1%} another, {limit:.0%} is allowed",
    }
    if not isinstance(cases := proof.get("cases"), int) or cases < 1:
        return ["it was measured on no case"]
    found = {name: proof.get(name) for name in LIMITS}
    odd = [name for name, value in found.items() if isinstance(value, bool) or not isinstance(value, (int, float))]
    if odd:
        return [f"it has no {name}" for name in odd]
    return [
        words[name].format(found=value, limit=LIMITS[name])
        for name, value in found.items()
        if not float(value or 0) <= LIMITS[name]
    ]
