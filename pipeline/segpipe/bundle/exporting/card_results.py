"""What a model card says of measured figures: with intervals, on which cases, and what ties them to the bundle."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from segpipe.bundle.exporting.card_estimate import estimate_paragraphs
from segpipe.bundle.exporting.card_figures import BARS, OVERALL
from segpipe.bundle.exporting.fine_tuned import seen_paragraphs
from segpipe.bundle.exporting.markdown import figure, number, picture, table

Document = Mapping[str, Any]
METRICS = {  # name, digits
    "dice": ("Dice", 3),
    "nsd": ("surface Dice", 3),
    "hd95_mm": ("HD95 (mm)", 2),
    "assd_mm": ("surface distance (mm)", 2),
}
SPLITS = {
    "test": "held out of the training",
    "validation": "validation: they chose the weights, so the figures are a little too good",
    "training": "the training cases themselves: no measure of quality on new ones",
}


def results_section(metadata: Document, provenance: Document, pictures: Collection[str]) -> str:
    """Write the figures with intervals, on which data, and each case as a bar."""
    results, best = metadata.get("results"), metadata["eval_metrics"].get("val_mean_dice")
    estimated = estimate_paragraphs(metadata)
    chosen = _choice_of_weights(metadata, best)
    if not results:
        unmeasured = estimated or [f"Not measured on held-out cases. {chosen}".rstrip()]
        return "\n\n".join(["## Results", *seen_paragraphs(metadata), *unmeasured])
    rows = [
        (name, label, figure(entry, digits), number(entry["median"], digits), entry["n"])
        for metric, labels in results["metrics"].items()
        for name, digits in [METRICS[metric]]
        for label, entry in labels.items()
    ]
    lost = results["missing"] + results["failed"]
    failed = f"{lost} failed and count as Dice 0" if lost else "None of them failed"
    parts = [
        "## Results",
        *seen_paragraphs(metadata),
        f"Measured on {results['cases']} cases of {_patients(results)} ({_split(metadata)}). "
        f"{failed}. Means over cases; in brackets {results['interval']}.",
        table(["measure", "label", "mean", "median", "cases"], rows),
        "Dice is the overlap of prediction and truth, 1 at best. Surface Dice is the share of both surfaces that lie "
        f"within {results['tolerance_mm']} mm of each other, 1 at best. HD95 is the 95th percentile of the distances "
        "between the surfaces, surface distance their mean: 0 at best.",
    ]
    if BARS in pictures:
        words = "Dice of every measured case as a bar, with the mean in red and the median in green"
        caption = "Each bar is a case, from the worst to the best; mean over its labels. Red: mean, green: median."
        parts.append(picture(BARS, words, caption))
    return "\n\n".join([*parts, *_read_so_far(results), *_tie(provenance), chosen, *estimated]).rstrip()


def _patients(results: Document) -> str:
    """Write of how many patients the cases are; the interval over cases says that nobody knows."""
    return "unknown patients" if results["interval"].endswith("cases") else f"{results['patients']} patients"


def _choice_of_weights(metadata: Document, best: float | None) -> str:
    """Write by what the epoch was chosen; nothing where no epoch was validated."""
    if best is None:
        return ""
    if metadata["run"].get("keep_weights") == "last":
        return (
            "The weights are those of the last epoch, of a length that was fixed before: their mean Dice over the "
            f"validation cases is {best:.3f}, by which nothing was chosen."
        )
    return (
        "The weights are those of the epoch with the best mean Dice over the validation cases, "
        f"{best:.3f}; as a choice it is a little too good, and no result on new cases."
    )


def _read_so_far(results: Document) -> list[str]:
    """Write how many models were measured on the test set; nothing where no ledger counts them."""
    count = results.get("test_readings")
    if count is None:
        return []
    if count == 1:
        return ["This is the first model that was measured on this test set, by the ledger beside its manifest."]
    return [
        f"{count} models have been measured on this test set, this one among them, by the ledger beside its manifest: "
        "the more there are, the more the best of them owes to chance."
    ]


def _tie(provenance: Document) -> list[str]:
    """Write what ties the figures to this folder; nothing where nothing does."""
    tie = provenance.get("evaluation")
    if not tie:
        return []
    return [
        "The label maps that were measured are those that these weights and configs made (runtime "
        f"{', '.join(tie['made_by']['runtime'])}): `provenance.json` has the hashes, and `segpipe bundle verify` "
        "compares them."
    ]


def best_figure(metadata: Document) -> str | None:
    """Return the mean Dice with its interval and cases, in a few words; None where nothing was measured."""
    results = metadata.get("results")
    if not results:
        return None
    entry = results["metrics"].get("dice", {}).get(OVERALL, {})
    return f"Dice (overlap, 1 at best) {figure(entry)} on {results['cases']} cases ({_split(metadata, short=True)})"


def _split(metadata: Document, short: bool = False) -> str:
    results = metadata["results"]
    trained = metadata["run"].get("manifest_sha256")
    if trained and results["manifest_sha256"] != trained:
        name = results.get("dataset") or "unnamed"
        return f"{results['split']} cases of another data set, none of which the training saw: {name}"
    words = SPLITS.get(str(results["split"]), str(results["split"]))
    if results["split"] == "validation" and metadata["run"].get("keep_weights") == "last":
        words = "validation: left out of the training, and nothing was chosen by them"
    return words.partition(":")[0] if short else words
