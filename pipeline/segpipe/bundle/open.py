"""The one door to a bundle: its folder or zip file is read as data; nothing is evaluated, no torch imported."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from segpipe.bundle.opened import Bundle
from segpipe.bundle.supported_subset import MODEL, read_inference, read_meaning, read_members, unsupported_features
from segpipe.bundle.vet import (
    FIRST_STAGE,
    INFERENCE,
    TrustPolicy,
    check_sums,
    fingerprint,
    hash_files,
    plain,
    read_mapping,
    unpacked,
)
from segpipe.common.files import absolute_path
from segpipe.errors import DataError, RefusedError, UsageError
from segpipe.inference import WeightsFile


def open_bundle(
    path: str | PathLike[str],
    *,
    allow: str | Iterable[str] = (),
    run_unvetted_code: bool = False,
    key: str | PathLike[str] | None = None,
    allow_unisolated: bool = False,
) -> Bundle:
    """Read a bundle, ours or any other of MONAI's format.

    >>> import segpipe
    >>> segpipe.open_bundle("bundles/hippocampus_mri").name
    'hippocampus_mri'

    Args:
        path: the folder, or one zip file, which is unpacked for as long as the bundle is in use.
        allow: names that the bundle may use beside the list of admitted ones, as `segpipe bundle verify` gives them;
            one text is one name.
        run_unvetted_code: take a bundle that was changed, or whose code is not vetted: it may then read, change and
            send whatever you may on this machine.
        key: file of the public key that must have signed it; it is checked before anything else is read.
        allow_unisolated: run a bundle that brings code of its own, or was let through by the two options above, also
            where nothing can isolate it: in `Bundle.segment`, which runs it in this very process, and in
            `segpipe.predict` on a machine without Landlock and seccomp.

    Raises:
        UsageError: no bundle, it has no inference config, ``key`` is no public key, or an argument of a wrong type.
        DataError: a file of it cannot be parsed, or the weights are absent.
        RefusedError: it has SHA256SUMS, and a file was changed, is missing or was added; it is not signed by ``key``;
            or its archive is not safe to be unpacked.
    """
    absolute_path(path, "the folder or the zip file of a bundle")
    path, policy = Path(path), TrustPolicy(_names(allow), run_unvetted_code, allow_unisolated)
    stack = ExitStack()
    root = stack.enter_context(bundle_folder(path))
    holder = _Unpacked()
    weakref.finalize(holder, stack.close)
    if not (root / "configs" / "metadata.json").is_file():
        raise UsageError(
            "not a MONAI bundle folder",
            path=root,
            expected="a folder with configs/metadata.json",
            hint="make one with `segpipe export`",
        )
    config_file, weights = _find_files(root)
    signed_by = None if key is None else _signer(root, absolute_path(key, "the file of a public key"))
    try:
        hashes, intact = check_sums(root)
    except RefusedError:
        if not run_unvetted_code:
            raise
        hashes, intact = hash_files(root), False
    if config_file is None:
        raise UsageError("the bundle has no inference config", path=root, expected=" or ".join(INFERENCE))
    metadata = read_mapping(root / "configs/metadata.json", "bundle metadata")
    inference = read_mapping(config_file, "inference config")
    files = [root / file for file in read_members(inference)]
    if gone := [file for file in files if not file.is_file()]:
        raise DataError("a member of the ensemble has no weights", path=gone[0], hint="get the bundle again")
    weights = files[0] if files else weights
    if weights is None:
        raise DataError("the bundle has no weights", path=root / MODEL, hint=f"it needs a state dict {MODEL}")
    labels, channels, regions = read_meaning(metadata, inference)
    odd = list(unsupported_features(inference))
    supported, unsupported = read_inference(inference)
    unsupported += odd if files or weights.name == "model.pt" else [*odd, "weights: not models/model.pt"]
    deciding = {name: hashes[name] for name in _below(root, config_file, *(files or [weights]))}
    first_stage = _read_first_stage(root, policy, channels, unsupported)
    if first_stage is not None:
        deciding |= {f"{FIRST_STAGE}/{file}": sha256 for file, sha256 in first_stage.model["files"].items()}
    return Bundle(
        root=root.absolute(),
        name=str(metadata.get("name") or root.resolve().name),
        version=str(metadata.get("version", "0")),
        metadata=metadata,
        inference=inference,
        config_file=config_file.absolute(),
        weights=weights.absolute(),
        weights_sha256=hashes[_below(root, weights)[0]],
        members=tuple(
            WeightsFile(path=str(root.absolute() / name), sha256=hashes[name]) for name in _below(root, *files)
        ),
        sha256=fingerprint(hashes),
        intact=intact,
        labels=labels,
        channels=channels,
        unsupported=tuple(unsupported),
        regions=regions,
        signed_by=signed_by,
        policy=policy,
        first_stage=first_stage,
        model={"files": deciding, "postprocessing": list(supported.get("cleanup", ()))},
        _unpacked=holder,
        **supported,
    )


def _read_first_stage(
    root: Path, policy: TrustPolicy, channels: Sequence[str], unsupported: Sequence[str]
) -> Bundle | None:
    """Open the bundle of the first stage on the terms of the whole; None where there is none.

    Raises:
        DataError: its label map does not give the channels that a scan has not, or one of the stages runs through
            transforms of its own.
    """
    if not (root / FIRST_STAGE / "configs" / "metadata.json").is_file():
        return None
    first = open_bundle(
        root / FIRST_STAGE,
        allow=policy.allow,
        run_unvetted_code=policy.run_unvetted_code,
        allow_unisolated=policy.allow_unisolated,
    )
    given = len(first.channels) + sum(value != 0 for value in first.labels)
    odd = [*(f"of the first stage, {each}" for each in first.unsupported), *unsupported]
    if given != len(channels) or first.regions or first.first_stage is not None or odd:
        raise DataError(
            "the two stages of the bundle do not fit",
            path=root / FIRST_STAGE,
            found="; ".join(odd) or f"{given} channels of scans and label map",
            expected=f"{len(channels)}, of one label map, and transforms of the supported subset",
            hint="export both stages again: `segpipe export SECOND OUT --first-stage FIRST`",
        )
    return first


@contextmanager
def bundle_folder(path: str | Path) -> Iterator[Path]:
    """Yield the folder of a bundle, which a zip file becomes for the time of the block.

    Raises:
        UsageError: a file that holds no bundle.
        RefusedError: an archive that is not safe to be unpacked, whatever the terms.
    """
    path = Path(path)
    if not path.is_file():  # a folder; of what is not there, `open_bundle` speaks
        yield path
        return
    with unpacked(path) as (root, findings):
        if root is None:
            raise RefusedError(
                "the bundle's archive is not safe to be unpacked",
                path=path,
                findings=plain(findings),
                hint="get it from whom you trust",
            )
        yield root


def is_bundle(path: str | Path) -> bool:
    """Return whether a path looks like a bundle: a folder with metadata, or a zip file."""
    path = Path(path)
    return (path / "configs" / "metadata.json").is_file() or (path.is_file() and path.suffix.lower() == ".zip")


class _Unpacked:
    """What a bundle and its copies hold on to: when it is gone, so is the folder that a zip file was unpacked to.

    A copy in another process does not hold it: it lasts as long as the bundle here.
    """

    def __deepcopy__(self, memo: object) -> _Unpacked:
        return self


def _names(allow: Any) -> tuple[str, ...]:
    names = [allow] if isinstance(allow, str) else list(allow) if isinstance(allow, Iterable) else [allow]
    if not all(isinstance(name, str) for name in names):
        raise UsageError("not names to allow", found=repr(allow), expected="a name, or a list of names")
    return tuple(names)


def _signer(root: Path, key: Path) -> str:
    from segpipe.bundle.signing import check_signature  # its packages are an extra

    return check_signature(root, key)


def _find_files(root: Path) -> tuple[Path | None, Path | None]:
    """Return the inference config and the weights, None for what is not there."""
    configs = [root / file for file in INFERENCE]
    standard = root / "models" / "model.pt"
    weights = [standard, *sorted(standard.parent.glob("*.pt"))] if standard.parent.is_dir() else []
    return next(filter(Path.is_file, configs), None), next(filter(Path.is_file, weights), None)


def _below(root: Path, *files: Path) -> list[str]:
    """Return the names of files in a bundle, as its hashes have them."""
    return [file.relative_to(root).as_posix() for file in files]
