"""Rules that clean a label map up, or the mask of each region, and the stock MONAI transforms that carry them out.

`evaluate` chooses rules on validation cases with these transforms, and `export` writes the same transforms into
the bundle, behind the step that makes a label map of the scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segpipe.common.files import read_json
from segpipe.errors import DataError

CONNECTIVITY = 3  # voxels that share a corner belong together: thin parts of a label are not cut off
MM3_PER_ML = 1000
KEY = "pred"  # the item of a case that holds the label map


@dataclass(frozen=True)
class LabelRule:
    """What is removed from one label.

    Attributes:
        keep_largest: everything but the largest connected component.
        min_volume_ml: after that, every component smaller than this, give or take one voxel (a component of
            just that many voxels goes or stays by the version of scikit-image); None removes none.
    """

    keep_largest: bool = False
    min_volume_ml: float | None = None

    def __bool__(self) -> bool:
        return self.keep_largest or self.min_volume_ml is not None

    def words(self) -> str:
        """Return the rule in words."""
        largest = ["only the largest connected component is kept"] if self.keep_largest else []
        small = [f"components below {self.min_volume_ml:g} mL are removed"] if self.min_volume_ml else []
        return ", and ".join(largest + small)


def cleanup_transforms(rules: Mapping[int, LabelRule], n_labels: int, regions: int = 0) -> list[dict[str, Any]]:
    """Return the rules as MONAI config, for a label map (1, X, Y, Z) with its affine in ``pred``.

    Regions that may overlap are masks (regions, X, Y, Z) instead, and each is cleaned by itself: what one loses another
    that contains it may keep.

    Args:
        rules: by label value, or by the number of a region from 1.
        n_labels: number of labels, background included.
        regions: number of regions; 0 where each voxel has one label.

    Returns:
        Transforms that give a label map, or masks, again; empty where no rule does anything.
    """
    if regions:
        return _of_masks({value: rule for value, rule in sorted(rules.items()) if rule}, regions)
    steps: list[dict[str, Any]] = []
    largest = sorted(value for value, rule in rules.items() if rule.keep_largest)
    if largest:
        steps.append(
            {
                "_target_": "KeepLargestConnectedComponentd",
                "keys": KEY,
                "applied_labels": largest,
                "is_onehot": False,
                "connectivity": CONNECTIVITY,
            }
        )
    volumes = {value: rule.min_volume_ml for value, rule in sorted(rules.items()) if rule.min_volume_ml}
    if volumes:
        steps += _remove_small(volumes, n_labels)
    return steps


def read_rules(path: str | Path) -> dict[int, LabelRule]:
    """Return the rules of a ``postprocessing.json``, as `evaluate --try-postprocessing` writes it.

    Raises:
        UsageError: no such file.
        DataError: it is something else.
    """
    document = read_json(path, "post-processing rules")
    try:
        if document["schema_version"] != 1:
            raise ValueError(f"schema_version {document['schema_version']}")
        rules = {int(value): LabelRule(**rule) for value, rule in document["rules"].items()}
        for rule in rules.values():
            if not isinstance(rule.keep_largest, bool) or (rule.min_volume_ml or 0) < 0:
                raise ValueError(str(asdict(rule)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            "not a file of post-processing rules",
            path=path,
            found=f"{type(error).__name__}: {error}",
            expected='{"schema_version": 1, "rules": {"1": {"keep_largest": true, "min_volume_ml": null}}}',
            hint="make it with `segpipe evaluate ... --try-postprocessing`",
        ) from error
    return rules


def _of_masks(rules: Mapping[int, LabelRule], regions: int) -> list[dict[str, Any]]:
    if not rules:
        return []
    masks = [f"{KEY}_{index}" for index in range(regions)]
    largest = [masks[value - 1] for value, rule in rules.items() if rule.keep_largest]
    keep = {
        "_target_": "KeepLargestConnectedComponentd",
        "keys": largest,
        "applied_labels": [1],
        "is_onehot": False,
        "connectivity": CONNECTIVITY,
    }
    small = [_small(masks[value - 1], rule.min_volume_ml) for value, rule in rules.items() if rule.min_volume_ml]
    return [
        {"_target_": "SplitDimd", "keys": KEY, "dim": 0, "output_postfixes": [str(index) for index in range(regions)]},
        *([keep] if largest else []),
        *small,
        {"_target_": "ConcatItemsd", "keys": masks, "name": KEY},
    ]


def _small(key: str, volume_ml: float) -> dict[str, Any]:
    return {
        "_target_": "RemoveSmallObjectsd",
        "keys": key,
        "min_size": volume_ml * MM3_PER_ML,
        "connectivity": CONNECTIVITY,
        "by_measure": True,
    }


def _remove_small(volumes_ml: Mapping[int, float], n_labels: int) -> list[dict[str, Any]]:
    """Use one mask a label, since on a label map the transform would take a whole label for one object."""
    masks = [f"{KEY}_{value}" for value in range(n_labels)]
    small = [_small(f"{KEY}_{value}", volume) for value, volume in volumes_ml.items()]
    return [
        {"_target_": "AsDiscreted", "keys": KEY, "to_onehot": n_labels},
        {"_target_": "SplitDimd", "keys": KEY, "dim": 0, "output_postfixes": [str(v) for v in range(n_labels)]},
        *small,
        {"_target_": "ConcatItemsd", "keys": masks, "name": KEY},
        {"_target_": "AsDiscreted", "keys": KEY, "argmax": True},  # a voxel of no mask is background
    ]
