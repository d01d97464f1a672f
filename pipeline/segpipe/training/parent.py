"""A bundle that a training begins with, as data: weights, what they mean, how images were prepared, what it saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe.bundle import (
    PROVENANCE,
    TRAIN,
    Bundle,
    Seen,
    State,
    TrustPolicy,
    open_bundle,
    read_state,
    require_vetted,
    resolve,
    seen_by_bundle,
    tensors_sha256,
    units_of,
)
from segpipe.common.console import quiet_libraries
from segpipe.common.files import read_json
from segpipe.data import Manifest
from segpipe.errors import UsageError
from segpipe.inference import Preprocessing, UnsupportedTransform
from segpipe.training.adaptation import Names
from segpipe.training.fragments import DEFAULTS, OWNED, Fragment

GRID = ("LoadImaged", "EnsureChannelFirstd", "EnsureTyped", "CropForegroundd", "SpatialPadd", "DivisiblePadd")


@dataclass(frozen=True, eq=False)
class ParentWeights:
    """The weights of one network of a bundle.

    Attributes:
        file: where they lie in it.
        state: the tensors.
        sha256: hash of the tensors.
        seen: the cases that they were made with.
    """

    file: str
    state: State = field(repr=False)
    sha256: str
    seen: Seen = field(repr=False)


@dataclass(frozen=True, eq=False)
class Parent:
    """A bundle that a training begins with.

    Attributes:
        facts: its name, version and sha256.
        names: what its channels mean.
        weights: of each of its networks; several of an ensemble.
        network: network fragment that its weights fit.
        transforms: its deterministic transforms; None where they are not of the supported subset.
        config: its training config; None where it does not say how it was trained.
        units: of the values of its images, by name of the channel, where it says them.
        ancestry: which bundle it was fine-tuned from itself, and so on; None where it was not.
    """

    facts: Mapping[str, str]
    names: Names
    weights: tuple[ParentWeights, ...]
    network: Fragment
    transforms: Sequence[Mapping[str, Any]] | None = None
    config: Mapping[str, Any] | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    ancestry: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        """Return its name and version."""
        return f"{self.facts['name']} {self.facts['version']}"

    def task(self, dataset: Manifest) -> Fragment:
        """Return the task fragment of a data set that is prepared as the parent's images were.

        Raises:
            UsageError: the parent does not say how label maps were prepared, its images have other channels, or label
                maps say more than one label a voxel.
        """
        hint = "make a task fragment of this data set with `segpipe plan`, and name it with --task"
        if self.config is None:
            raise UsageError(
                "the parent does not say how its training prepared label maps", found=f"no {TRAIN}", hint=hint
            )
        if dataset.channels != self.config["channels"]:
            raise UsageError(
                "the parent's images have other channels, so its preprocessing is not one of these",
                found=dataset.channels,
                expected=self.config["channels"],
                hint=hint,
            )
        partly = dataset.regions or dataset.ignore_label is not None or self.config.get("regions")
        if partly or any(case.annotated_labels for case in dataset.training):
            raise UsageError(
                "what the label maps of the data set or of the parent mean needs a task fragment of its own",
                found="regions, an ignored value, or cases that were looked at for some labels",
                hint=hint,
            )
        labels = list(dataset.labels.values())
        content = {name: self.config[name] for name in OWNED["task"] if name not in DEFAULTS}
        content |= {"labels": labels, "out_channels": len(labels) - (self.config["activation"] == "sigmoid")}
        return Fragment(content, self.title)

    def differing_preprocessing(self, config: Mapping[str, Any], units: Mapping[str, str] | None) -> list[str]:
        """Return in what the images of a training are prepared in another way than the parent's, in words.

        Args:
            config: of the training.
            units: of its images, by index of the channel, where they are known.
        """
        if self.transforms is None:
            return ["how the parent prepares images cannot be compared: it does so by transforms of its own"]
        transforms = resolve(config["deterministic_transforms"], config)
        with suppress(UnsupportedTransform):
            transforms = Preprocessing.parse(transforms).to_config()  # spelled as the parent's are
        ours, theirs = _prepared(transforms), _prepared(self.transforms)
        for index, name in enumerate(config["channels"]):
            here, there = (units or {}).get(str(index)), self.units.get(name)
            if here and there:
                ours[f"unit of {name}"], theirs[f"unit of {name}"] = here, there
        return [
            f"{what}: here {ours[what] or 'none'}, {self.facts['name']} {theirs[what] or 'none'}"
            for what in ours
            if ours[what] != theirs[what]
        ]


def read_parent(path: Path, policy: TrustPolicy) -> Parent:
    """Vet a bundle, and read what a training needs of it; its weights without running code of a pickle.

    Args:
        path: its folder or zip file.
        policy: on which terms it may be used.

    Raises:
        UsageError: not a bundle, or one whose network is not plain data.
        DataError: a file of it cannot be read.
        RefusedError: it did not pass.
    """
    quiet_libraries()
    bundle = open_bundle(path, allow=policy.allow, run_unvetted_code=policy.run_unvetted_code)
    config = _training_config(bundle)
    documents = {bundle.config_file.relative_to(bundle.root).as_posix(): bundle.inference}
    documents |= {} if config is None else {TRAIN: config}
    require_vetted(bundle.root, policy, documents, bundle.sha256, "predict")
    if bundle.network_def is None or bundle.activation is None:
        raise UsageError(
            "the network of the bundle cannot be trained on",
            path=path,
            found=", ".join(bundle.unsupported),
            expected="network_def, activation and labels as plain data",
        )
    files = [Path(member.path) for member in bundle.members] or [bundle.weights]
    weights = []
    for number, file in enumerate(files):
        state = read_state(file)
        seen = seen_by_bundle(bundle.root, number if bundle.members else None)
        weights.append(ParentWeights(file.relative_to(bundle.root).as_posix(), state, tensors_sha256(state), seen))
    labels = tuple(bundle.labels.values())
    outputs = labels[1:] if bundle.activation == "sigmoid" else labels
    return Parent(
        {name: str(bundle.facts[name]) for name in ("name", "version", "sha256")},
        Names(tuple(bundle.channels), outputs, bundle.activation),
        tuple(weights),
        _network(bundle, config),
        bundle.preprocessing.to_config() if bundle.preprocessing else None,
        config,
        {bundle.channels[int(index)]: unit for index, unit in units_of(bundle.metadata).items()},
        _ancestry(bundle.root),
    )


def _training_config(bundle: Bundle) -> dict[str, Any] | None:
    """Return the bundle's training config where it is one of ours."""
    config = read_json(bundle.root / TRAIN, "training config") if (bundle.root / TRAIN).is_file() else None
    needed = [name for name in (*OWNED["network"], *OWNED["task"]) if name not in DEFAULTS]
    return config if isinstance(config, dict) and all(name in config for name in needed) else None


def _network(bundle: Bundle, config: Mapping[str, Any] | None) -> Fragment:
    """Return the parent's network, which follows the channels of whatever it is trained on."""
    origin = f"{bundle.name} {bundle.version}"
    if config is not None:
        return Fragment({name: config[name] for name in OWNED["network"]}, origin)
    follows = {name: f"@{name}" for name in ("in_channels", "out_channels")}
    definition = {**(bundle.network_def or {}), **follows}
    name = str(definition["_target_"]).rpartition(".")[2].lower()
    return Fragment({"network_name": name, "patch_divisor": 1, "network_def": definition}, origin)


def _ancestry(root: Path) -> dict[str, Any] | None:
    """Return from which bundle one was fine-tuned, and that one from which, by name, version and hash."""
    record = read_json(root / PROVENANCE, "provenance") if (root / PROVENANCE).is_file() else {}
    return ancestry_of(record.get("parent") if isinstance(record, dict) else None)


def ancestry_of(parent: Any) -> dict[str, Any] | None:
    """Return of the ``parent`` of a record what names it, and its own parents."""
    if not isinstance(parent, dict):
        return None
    return {**{name: str(parent[name]) for name in ("name", "version", "sha256")}, "parent": parent.get("parent")}


def _prepared(transforms: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what deterministic transforms do to an image, in words that can be compared."""
    found = {"orientation": "", "spacing in mm": "", "intensities": ""}
    for step in transforms:
        name = str(step["_target_"]).rpartition(".")[2]
        if name == "Orientationd":
            found["orientation"] = str(step.get("axcodes") or "the closest canonical")
        elif name == "Spacingd":
            found["spacing in mm"] = " x ".join(f"{float(edge):g}" for edge in step["pixdim"])
        elif name not in GRID:
            keys = [step["keys"]] if isinstance(step["keys"], str) else [*step["keys"]]
            items = [key for key in keys if key not in ("image", "label")]  # channels that were taken apart
            given = {key: value for key, value in step.items() if key not in ("_target_", "keys", "allow_missing_keys")}
            given |= {"keys": items} if items else {}
            words = ", ".join(f"{key} {_word(given[key])}" for key in sorted(given) if given[key] not in (None, False))
            found["intensities"] += f"{'; ' if found['intensities'] else ''}{name}({words})"
    return found


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
