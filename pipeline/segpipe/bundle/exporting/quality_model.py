"""The quality model of a cross-validation, as it goes into the bundle of its folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.bundle.exporting.markdown import table
from segpipe.common.console import quoted
from segpipe.common.files import read_json
from segpipe.errors import DataError, RefusedError
from segpipe.quality import RUN_QUALITY, WORDS_OF_POPULATION, Population, QualityModel


def read_quality(run: Path, weights: Sequence[str]) -> dict[str, Any] | None:
    """Return the quality model that lies in the folder of a cross-validation; None where there is none.

    Args:
        run: its folder.
        weights: SHA-256 of the weights of its members.

    Raises:
        DataError: it cannot be read.
        RefusedError: it is of other weights.
    """
    path = run / RUN_QUALITY
    if len(weights) < 2 or not path.is_file():
        return None
    document = read_json(path, "quality model")
    QualityModel.from_dict(document, path)
    try:
        made_by = [str(each) for each in document["made_by"]["models"]]
    except (KeyError, TypeError) as error:
        raise DataError("a quality model that does not say whose it is", path=path, found=str(error)) from error
    if sorted(made_by) != sorted(weights):
        raise RefusedError(
            "the quality model is of other weights than the bundle's",
            path=path,
            found=", ".join(sha256[:12] for sha256 in made_by),
            expected=", ".join(sha256[:12] for sha256 in weights),
            hint=f"make it anew: `segpipe quality fit {quoted(run)}`",
        )
    return dict(document)


def quality_in_short(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a bundle's metadata say of its quality model."""
    short = {name: document[name] for name in ("patients", "cases", "level", "tested", "rules")}
    short["patients_known"] = document.get("patients_known", True)
    return short | ({"population": document["population"]} if document.get("population") else {})


def quality_section(metadata: Mapping[str, Any]) -> list[str]:
    """Return what a card says of the quality model, as a section; nothing where there is none."""
    quality = metadata.get("quality")
    if not quality:
        return []
    level, cases, known = quality["level"], quality["cases"], quality.get("patients_known", True)
    patients = f"{quality['patients']} patients" if known else "unknown patients"
    head = (
        f"`segpipe predict` holds each case against {cases} cases of {patients} and says whether it is ok, to be "
        "looked at, or held. It is calibrated on the fold models, each on the cases that it did not see, not on "
        "this bundle as a whole. A decision is no clinical verification. Children, implants, resected, transplanted, "
        "absent or doubled organs and other contrast phases are covered only as far as the training data hold them."
    )
    figures = _figures(quality, level)
    return ["\n\n".join(["## Which cases to trust", head, *_population(quality.get("population")), *figures])]


def _population(document: Mapping[str, Any] | None) -> list[str]:
    """Return who is covered, each covariate that any patient is known by; the others are named as unknown."""
    known = Population() if document is None else Population.from_dict(document)
    rows = [(words, known.in_words(name) or "unknown") for name, words in WORDS_OF_POPULATION.items()]
    means = (
        "Who is covered, as far as the data set says it: values that fewer than five patients have are not. "
        "Counts are rounded down to fives. A case that is outside is to be looked at; where a case or the data set "
        "says nothing, nothing is known."
    )
    return [table(["covariate", "calibration patients"], rows), means]


def _figures(quality: Mapping[str, Any], level: float) -> list[str]:
    tested, unit = quality["tested"], "patients" if quality.get("patients_known", True) else "cases"
    if not tested:
        return [f"Bounds of Dice and intervals of volume are not given: {quality['patients']} {unit} are too few."]
    rows = [
        ("rank correlation of predicted and true Dice", tested["rank_correlation"]),
        ("AUROC of predicted Dice, for a true one below 0.7", tested["auroc_dice_below_0.7"]),
        (f"of {tested['good_cases']} good cases (Dice above 0.85), outside of what is usual", tested["good_outside"]),
    ]
    means = (
        f"Measured on {unit} that the quality model was not fitted to: {tested['images']} images, of which "
        f"{tested['spoiled']} were spoiled on purpose. Bounds of Dice and intervals of volume are made to hold for "
        f"{level:.0%} of {unit}, and are given only for cases that are like the calibrated ones."
    )
    return [table(["quality model", "value"], [(name, None if v is None else f"{v:.3g}") for name, v in rows]), means]
