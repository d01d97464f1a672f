"""Does a bundle's quality model find poor results on test cases: as they are, and spoiled in 6 kinds and 4 grades.

    python bench/quality_check.py BUNDLE MANIFEST --data DIR [--out points.csv] [--figure points.png]

Each test case is segmented as it is, and with its image spoiled; the predicted Dice is held against the true one, and
the decision counted. In brackets 95 %, bootstrap by patient. Odd images are asked for too: noise, smoothed noise, a
negated, an upside-down and a near-constant image, a part beside the organ, and a whole head (generated): all of them
have to be held; an MR image that is scaled by 0.001, which normalisation undoes, has to be as it was.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from quality_coverage import Points, finds_poor, interval, ranks
from scipy.ndimage import gaussian_filter

from segpipe.bundle import LoadedBundle, Segmentation, open_bundle
from segpipe.common.nifti import Header, read_header, read_volume
from segpipe.data import Case, load_manifest
from segpipe.evaluation import dice
from segpipe.inference import ModelOptions, Source
from segpipe.quality import Decision, Labelled, Rules, decide, read_quality_model, spoiled

KINDS = ("noise", "blur", "motion", "contrast", "crop", "orientation")
GRADES = (1, 2, 3, 4)
GOOD, BAD = 0.85, 0.7


class Model:
    """A bundle in this process, and its decision on any image."""

    def __init__(self, root: Path, threads: int) -> None:
        bundle = open_bundle(root)
        self.labels = {value: name for value, name in bundle.labels.items() if value}
        self.loaded = LoadedBundle(bundle.recipe(ModelOptions(threads=threads)), bundle.policy, bundle.is_foreign)
        model = read_quality_model(root)
        if model is None:
            raise SystemExit(f"{root} has no quality model")
        self.rules = Rules.parse(model.rules)

    def judge(self, image: np.ndarray, header: Header, affine: np.ndarray) -> tuple[Segmentation, Decision]:
        """Segment an image (C, X, Y, Z) and decide on it."""
        edges = tuple(float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0))
        grid = replace(header, shape=image.shape[1:], affine=affine, spacing_mm=edges, qform=None, qform_code=0)
        result = self.loaded.segment(Source(grid, np.asarray(image, np.float32)))
        return result, decide(result.quality, result.flags, self.rules)


def odd_images(case: Labelled) -> dict[str, Labelled]:
    """Return what has to be held, by name; each on the grid of a case."""
    random, image = np.random.default_rng(0), case.image[0]
    white = random.normal(size=image.shape)
    beside = np.flatnonzero(~case.truth.any(axis=(0, 2)))  # planes without a label
    part = image[:, beside[-12:] if len(beside) else slice(0, 8)]
    head = np.zeros((160, 190, 170))
    grids = np.meshgrid(*(np.linspace(-1, 1, size) for size in head.shape), indexing="ij", sparse=True)
    radius = np.sqrt(sum(grid**2 for grid in grids))
    head[radius < 0.95], head[radius < 0.85], head[radius < 0.8] = 900, 100, 500
    head += gaussian_filter(random.normal(size=head.shape), 3) * 800 * (radius < 0.8)
    made = {
        "white noise": white,
        "smoothed noise": gaussian_filter(white, 1.5),
        "negated": -image,
        "upside down": image[:, :, ::-1],
        "near constant": 100 + 1e-3 * white,
        "beside the organ": part,
        "whole head": head,
    }
    return {name: replace(case, image=values[None].astype(np.float32)) for name, values in made.items()}


def read(case: Case, data: Path) -> tuple[Labelled, Header]:
    """Read a case with its truth."""
    header = read_header(data / case.images[0])
    truth = read_volume(read_header(data / str(case.label))).astype(np.uint8)
    return Labelled(read_volume(header).astype(np.float32)[None], truth, header.affine), header


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("manifest", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV of all points")
    parser.add_argument("--figure", type=Path, help="picture of all points")
    options = parser.parse_args()
    if None in (options.bundle, options.manifest, options.data):
        print("skipped: needs a bundle with a quality model, a manifest with test cases and --data")
        return
    model, rows = Model(options.bundle, options.threads), []
    cases = load_manifest(options.manifest).test
    for case in cases:
        whole, header = read(case, options.data)
        for kind, grade in (("none", 0), *((kind, grade) for kind in KINDS for grade in GRADES)):
            image = whole if kind == "none" else spoiled(whole, kind, grade, f"check {case.id}")
            result, decision = model.judge(image.image, header, image.affine)
            for value, name in model.labels.items():
                true = dice(image.truth == value, result.array == value)
                quality = result.quality
                predicted = None if quality is None else quality.dice.get(name, 0.0)
                low = None if quality is None else quality.dice_low.get(name)
                rows.append((case.id, case.group, kind, grade, name, true, predicted, low, decision.decision))
        print(f"\r{case.id}", end="", flush=True)
    print()
    report(rows)
    whole, header = read(cases[0], options.data)
    for name, odd in odd_images(whole).items():
        result, decision = model.judge(odd.image, header, odd.affine)
        print(f"{name:<18} {decision.decision}  {result.quality and result.quality.distance}  {decision.reasons[:1]}")
    result, decision = model.judge(0.001 * whole.image, header, whole.affine)
    print(f"{'scaled by 0.001':<18} {decision.decision}")
    if options.out:
        with options.out.open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(
                [("case", "patient", "kind", "grade", "label", "dice", "predicted", "bound", "decision"), *rows]
            )
    if options.figure:
        draw(rows, options.figure)


def report(rows: list[tuple]) -> None:
    """Print how predicted and true Dice go together, and what was decided."""

    def show(name: str, part: list[tuple]) -> None:
        found: Points = [(row[1], row[6], row[5]) for row in part if row[5] is not None and row[6] is not None]
        poor = [row for row in part if row[5] is not None and row[5] < BAD]
        missed = sum(row[8] == "ok" for row in poor) / max(1, len(poor))
        words = f"{interval(found, ranks):<24} {interval(found, finds_poor):<24} {missed:.1%} of {len(poor)}"
        print(f"  {name:<14} {len(found):>6}   {words}")

    print(f"  {'':<14} {'labels':>6}   {'rank correlation':<24} {'AUROC, Dice < 0.7':<24} of Dice < 0.7 are ok")
    show("all", rows)
    for grade in GRADES:
        show(f"grade {grade}", [row for row in rows if row[3] == grade])
    for kind in KINDS:
        show(kind, [row for row in rows if row[2] in (kind, "none")])
    clean = [row for row in rows if row[2] == "none"]
    decided = {row[0]: row[8] for row in clean}
    print(f"as they are: {dict(Counter(decided.values()))}")
    lowest: dict[str, float] = {}
    for row in clean:
        lowest[row[0]] = min(lowest.get(row[0], 1.0), row[5] or 0.0)
    not_ok = [case for case, decision in decided.items() if decision != "ok" and lowest[case] > GOOD]
    print(f"not ok though each Dice is above {GOOD}: {len(not_ok)} of {len(decided)}: {', '.join(not_ok)}")
    for label in sorted({row[4] for row in clean}):
        held: dict[str, bool] = {}
        for row in clean:
            if row[4] == label and row[7] is not None:
                held[row[1]] = held.get(row[1], True) and (row[5] or 0.0) >= row[7]
        print(f"{label}: bound of Dice holds for {sum(held.values())} of {len(held)} patients that have one")


def draw(rows: list[tuple], path: Path) -> None:
    """Draw predicted against true Dice, a colour a kind."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 6.0), layout="constrained")
    colours = plt.get_cmap("tab10")
    for index, kind in enumerate((*KINDS, "none")):
        part = [row for row in rows if row[2] == kind and row[5] is not None and row[6] is not None]
        words = "as they are" if kind == "none" else kind
        axes.scatter(
            [row[6] for row in part], [row[5] for row in part], s=7, alpha=0.6, color=colours(index), label=words
        )
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    axes.set(
        xlabel="predicted Dice", ylabel="Dice", xlim=(0, 1), ylim=(0, 1), title="Test cases, as they are and spoiled"
    )
    axes.legend(loc="upper left", frameon=False, markerscale=2)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
