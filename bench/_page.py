"""docs/results/performance.md from what was measured."""

from __future__ import annotations

import platform
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from segpipe.common.provenance import cpu_kind

Runs = list[dict[str, Any]]


def replace_sections(path: Path, measured: dict[str, Any]) -> None:
    """Put what was measured into the page, each work in place of what its section said; the rest stays.

    Args:
        path: of the page.
        measured: by name of the work: its rows, the date, the load and the machine.
    """
    introduction, *sections = path.read_text().split("\n## ")
    texts = {section.partition("\n")[0]: section for section in sections}
    for name, found in measured.items():
        when = f"Measured on {found['date']}, load of the machine at the end {found['load']}."
        when += f" The machine: {found['machine']}; {_versions()}."
        body = _BODIES.get(name, _compared)(found["rows"])
        texts[TITLES[name]] = "\n".join([f"{TITLES[name]}\n", body, when, ""])
    path.write_text("\n## ".join([introduction, *texts.values()]).rstrip() + "\n")


def _versions() -> str:
    return ", ".join(f"{name} {version(name).partition('+')[0]}" for name in ("monai", "torch", "openvino"))


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
