"""docs/results/performance.md from what was measured."""

from __future__ import annotations

import platform
import statistics
from pathlib import Path
from typing import Any

import psutil

from segpipe.common.provenance import cpu_kind

Runs = list[dict[str, Any]]

INTRODUCTION = """# Performance

How long a whole-volume prediction takes, and how much memory, against stock MONAI with the same weights, windows
(96 x 96 x 96, or the bundle's), overlap and weighting. Made by

```sh
python bench/whole_volume.py --full
```

which trains its networks first: small U-Nets (8-16-32-64) on generated CT-like scans of organs. Each run is a process
of its own, from file to file; imports, loading the model and converting it for OpenVINO (once a bundle, kept in
`SEGPIPE_CACHE`) are not counted, except where whole commands are timed. Ratios are stock / ours, the median over runs
that followed each other with the spread in brackets: above 1 we are faster or smaller. Where the machine was busy with
other work (its load is stated), CPU seconds say more than wall seconds; threads of both sides wait without spinning
(`OMP_WAIT_POLICY=PASSIVE`).
"""

BFLOAT16 = """## bfloat16

`segpipe predict --precision auto` takes bfloat16 where a CPU has AMX, or a GPU bfloat16, and [the bundle
proves](../reference/commands/bundle.md#is-bfloat16-good-enough-precision) that its label maps stay what they are. Of
the shipped bundle, on the 31 cases of its validation, by `segpipe bundle precision` with the manifest of the data and
`--fold 0`:

| runtime | mean Dice, float32 | bfloat16 | most lost by a case and label | labels lost | largest change of a volume |
|---|---|---|---|---|---|
| torch | 0.89206 | 0.89210 | 0.0011 | 0 | 0.43 % |
| openvino | 0.89206 | 0.89221 | 0.0008 | 0 | 0.28 % |

Measured on 2026-11-30 on an AMD EPYC with AVX512-BF16 and without AMX, where `auto` stays with float32.

With AMX (the first table) bfloat16 takes no less time for the small network of the bench: OpenVINO computes transposed
convolutions, half of that network, in float32 in any case, and most of the rest is memory.
"""


def write_page(path: Path, kept: dict[str, Any]) -> None:
    """Write the page; works that were not measured yet are left out."""
    import monai
    import openvino
    import torch

    parts = [INTRODUCTION]
    parts.append(
        f"MONAI {monai.__version__}, PyTorch {torch.__version__}, OpenVINO {openvino.__version__.split('-')[0]}.\n"
    )
    for name, title in TITLES.items():
        if name in kept:
            when = f"Measured on {kept[name]['date']}, load of the machine at the end {kept[name]['load']}."
            when += f" The machine: {kept[name]['machine']}.\n"
            parts += [f"## {title}\n", _BODIES.get(name, _compared)(kept[name]["rows"]), when]
    parts.append(BFLOAT16)
    path.write_text("\n".join(parts).rstrip() + "\n")


def machine(threads: int) -> str:
    """Return the processor and its kind, cores, memory and system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    memory = psutil.virtual_memory().total / 2**30
    cores = f"{threads} threads of {psutil.cpu_count()} cores"
    return f"{model} ({cpu_kind()}), {cores}, {memory:.0f} GiB, {platform.system()}"


def _compared(rows: dict[str, Any]) -> str:
    shape = " x ".join(map(str, rows["shape"]))
    lines = [
        f"{shape} voxels of 0.78 x 0.78 x 1.5 mm, resampled to 1.5 x 1.5 x 2 mm, {rows['classes']} classes.\n",
        "| | wall s | CPU s | peak GiB | wall ratio | CPU ratio | memory ratio | labels that differ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    whats, stock = ("wall", "cpu", "peak_gib"), rows["stock"]
    for side in ("stock", "torch", "openvino", "torch bfloat16", "openvino bfloat16"):
        if side in rows:
            cells = [_spread(rows[side], what) for what in whats]
            if side == "stock":
                cells += [""] * 4
            else:
                cells += [ratio(stock, rows[side], what) for what in whats]
                cells.append(_differing(rows[f"{side}_differ"]))
            lines.append(f"| {side} | {' | '.join(cells)} |")
    agreement = {side: rows[f"{side}_dice"] for side in rows if f"{side}_dice" in rows}
    for side, dice in agreement.items():
        worst = min(dice, key=lambda label: float(dice[label]))
        lines.append(f"\n{side}: Dice with float32 by label {dice[worst]:.5f} (label {worst}) or more.")
    rest = [min(run["cpu"] - run["windows_cpu"] for run in runs) for runs in (stock, [rows["serial"]])]
    interpolated = 100 * rows["torch"][0]["interpolated"]
    lines.append(
        f"\nEverything but the windows (read, resample, restore, write): {rest[0]:.1f} CPU s with stock, {rest[1]:.1f} "
        f"with us, a ratio of {rest[0] / rest[1]:.1f}. Interpolated were {interpolated:.1f} % of the voxels, those at "
        "boundaries.\n"
    )
    return "\n".join(lines)


def _large(rows: dict[str, Any]) -> str:
    lines = [
        f"{' x '.join(map(str, rows['shape']))} voxels, {rows['classes']} classes, OpenVINO. Stock MONAI would hold "
        f"{_stock_gib(rows):.0f} GiB of class scores on the source's grid.\n",
        "| | wall s | CPU s | peak GiB |",
        "|---|---|---|---|",
    ]
    for name, words in (("free", "no limit"), ("limited", f"--max-memory {rows['limit_gib']:g}G")):
        run = rows[name]
        lines.append(f"| {words} | {run['wall']:.0f} | {run['cpu']:.0f} | {run['peak_gib']:.2f} |")
    return "\n".join([*lines, f"\nLabels that differ between the two: {_differing(rows['differ'])}.\n"])


def _stock_gib(rows: dict[str, Any]) -> float:
    x, y, z = rows["shape"]
    return float(x * y * z * rows["classes"] * 4 / 2**30)


def _memory(rows: dict[str, Any]) -> str:
    (few, many), (least, most), plane = rows["slices"], rows["peaks_gib"], rows["plane"]
    return (
        f"{plane} x {plane} voxels a slice, 14 classes: {few} slices take {least:.2f} GiB, {many} slices {most:.2f} "
        f"GiB: {rows['bytes_a_voxel']:.1f} bytes more for each voxel of the source (int16).\n"
    )


def _hippocampus(rows: dict[str, Any]) -> str:
    few, many = rows["few"], rows["many"]
    lines = [
        "`python -m monai.bundle run` and `segpipe predict` as whole commands on cases of the Medical Segmentation "
        "Decathlon with `bundles/hippocampus_mri`; "
        f"a case is the difference between {many} and {few} cases, by {many - few}.\n",
        f"| | {many} cases, wall s | CPU s | a case, wall s | CPU s "
        f"| wall ratio, {many} cases | CPU | wall ratio, a case | CPU | labels that differ |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    stock = _flat(rows["stock"])
    for side in ("stock", "torch", "openvino"):
        runs = _flat(rows[side])
        names = ("cold_wall", "cold_cpu", "case_wall", "case_cpu")
        cells = [_spread(runs, name) for name in names]
        if side == "stock":
            cells += ["", "", "", "", ""]
        else:
            cells += [ratio(stock, runs, name) for name in names]
            cells.append(_differing(rows[f"{side}_differ"]))
        lines.append(f"| {side} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


TITLES = {
    "ct": "CT, 14 classes, trained network",
    "random": "Random weights, the worst case",
    "classes": "105 classes",
    "large": "105 classes on a large scan",
    "memory": "Memory and the number of slices",
    "hippocampus": "Hippocampus",
}
_BODIES = {"large": _large, "memory": _memory, "hippocampus": _hippocampus}


def _flat(runs: Runs) -> Runs:
    return [
        {f"{part}_{what}": run[part][what] for part in ("cold", "case") for what in ("wall", "cpu")} for run in runs
    ]


def ratio(stock: Runs, ours: Runs, what: str) -> str:
    """How many times as much stock takes: the median over runs that followed each other, and their spread."""
    pairs = zip(stock, ours, strict=True)
    values = sorted(float(one[what]) / max(1e-9, float(other[what])) for one, other in pairs)
    middle = f"{statistics.median(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({values[0]:.1f} to {values[-1]:.1f})"


def _spread(runs: Runs, what: str) -> str:
    values = sorted(float(run[what]) for run in runs)
    digits = 2 if values[0] < 10 else 1
    low, high = f"{values[0]:.{digits}f}", f"{values[-1]:.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _differing(pair: list[int]) -> str:
    differ, total = pair
    return f"{differ} of {total} ({100 * (1 - differ / total):.4f} % agree)"
