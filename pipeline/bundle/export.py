"""From a run folder to a MONAI bundle that stock MONAI runs without this package."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from pipeline.bundle.card import model_card
from pipeline.bundle.configs import (
    check_rules,
    evaluate_config,
    fast_config,
    inference_config,
    network_definition,
    train_config,
)
from pipeline.bundle.metadata import Labelling, Run, bundle_metadata
from pipeline.bundle.open import Bundle, open_bundle
from pipeline.bundle.results import read_results
from pipeline.bundle.sums import write_sums
from pipeline.errors import DataError, RefusedError, UsageError
from pipeline.files import cannot_write, read_json, sha256_of, write_json, write_text, write_whole
from pipeline.fingerprint import FINGERPRINT, read_fingerprint
from pipeline.inference.cleanup import read_rules
from pipeline.manifest import Manifest, load_manifest
from pipeline.quality import seen_in_training

NEEDED = ("deterministic_transforms", "network_def", "patch_size", "out_channels", "activation")
LOGGING = """[loggers]
keys=root

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=INFO
handlers=console

[handler_console]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stdout,)

[formatter_plain]
format=%(asctime)s %(levelname)s %(message)s
"""


def export_bundle(
    run: str | Path,
    out: str | Path,
    labelling: Labelling | None = None,
    evaluation: str | Path | None = None,
    postprocessing: str | Path | None = None,
    overwrite: bool = False,
    unfinished: bool = False,
) -> Bundle:
    """Write a bundle folder, whole or not at all, and open it.

    Args:
        run: run folder with ``config.json``, ``run.json``, ``manifest.json`` and ``best.pt``.
        out: the bundle's folder.
        labelling: name (default: that of ``out``), version, licence and authors.
        evaluation: folder of `segpipe evaluate` with ``metrics.json``, for the results in metadata and card.
        postprocessing: rules that `segpipe evaluate --try-postprocessing` chose.
        overwrite: replace a bundle that is already there.
        unfinished: export a run whose training did not finish; metadata and card say so.

    Raises:
        UsageError: not a run folder, ``out`` is taken, or the run has no place in a stock config.
        DataError: the weights cannot be read or do not fit the network.
        RefusedError: the run did not finish, or its config or manifest is not the one that it was trained with.
    """
    run, out = Path(run), Path(out)
    labelling = labelling or Labelling(name=out.resolve().name)
    contents = _read_run(run, unfinished)
    rules = {} if postprocessing is None else read_rules(postprocessing)
    check_rules(rules, contents.config)
    results = None if evaluation is None else read_results(Path(evaluation))
    network = network_definition(contents.config)
    state = _read_weights(run / "best.pt", network)
    licence = licence_text(labelling.licence)
    if Path(labelling.licence).is_file():
        labelling = replace(labelling, licence="see LICENSE")
    section = _section(contents.manifest)
    metadata = bundle_metadata(contents, labelling, network, rules, results, section)
    files = max((len(case.images) for case in contents.manifest.cases()), default=1)
    with _whole_folder(out, overwrite) as folder:
        configs = folder / "configs"
        write_json(configs / "inference.json", inference_config(contents.config, rules, files))
        fast = fast_config(contents.config, rules)
        if fast is not None:
            write_json(configs / "inference_fast.json", fast)
            needed = metadata["config_requirements"]
            needed["inference_fast.json"] = needed["train.json"]
        write_json(configs / "evaluate.json", evaluate_config(contents.config, rules, section))
        write_json(configs / "train.json", train_config(contents.config))
        write_json(configs / "manifest.json", _anonymous(contents.manifest).dump())
        write_json(configs / "metadata.json", metadata)
        write_text(configs / "logging.conf", LOGGING)
        with write_whole(folder / "models" / "model.pt") as stream:
            stream.write(state)
        write_text(folder / "docs" / "README.md", model_card(metadata))
        if contents.manifest.licence:
            write_text(folder / "docs" / "data_license.txt", _data_licence(contents.manifest))
        write_text(folder / "LICENSE", licence)
        write_sums(folder)
    return open_bundle(out)


def licence_text(licence: str) -> str:
    """Text of a licence: a file's content, our own Apache-2.0 text, or the SPDX name alone."""
    if Path(licence).is_file():
        return Path(licence).read_text(encoding="utf-8")
    if licence != "Apache-2.0":
        return f"SPDX-License-Identifier: {licence}\n"
    beside = Path(__file__).resolve().parents[2] / "LICENSE"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    with contextlib.suppress(packages.PackageNotFoundError):
        text = packages.distribution("segpipe").read_text("licenses/LICENSE")
        if text:
            return text
    return f"SPDX-License-Identifier: {licence}\n"


def _read_run(folder: Path, unfinished: bool) -> Run:
    for name in ("config.json", "run.json", "manifest.json", "best.pt"):
        if not (folder / name).is_file():
            raise UsageError(
                "not a finished run folder", path=folder, found=f"no {name}",
                expected="what `segpipe train` writes", hint="export a run that has validated at least once",
            )  # fmt: skip
    config, record = (
        read_json(folder / "config.json", "run config"),
        read_json(folder / "run.json", "run record"),
    )
    if not isinstance(config, dict) or not isinstance(record, dict):
        raise DataError("the run's config or record is not a mapping", path=folder)
    missing = next((key for key in NEEDED if key not in config), None)
    if missing:
        raise UsageError("the run's config lacks an id", path=folder / "config.json", expected=missing)
    _require_as_trained(folder, record, unfinished)
    return Run(config, record, load_manifest(folder / "manifest.json"), _seen(folder, record))


def _seen(folder: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """Spacing and intensity of the cases that were trained on, where the run has a fingerprint."""
    fingerprint = read_fingerprint(folder / FINGERPRINT)
    trained = set((record.get("cases") or {}).get("training", []))
    cases = [case for case in fingerprint.cases if case.id in trained] if fingerprint else []
    if not cases:
        return None
    return seen_in_training(
        [case.spacing_ras_mm for case in cases],
        [[channel.overall.percentiles for channel in case.channels] for case in cases],
    )


def _require_as_trained(folder: Path, record: dict[str, Any], unfinished: bool) -> None:
    for name, key in (("config.json", "config_sha256"), ("manifest.json", "manifest_sha256")):
        if key in record and sha256_of(folder / name) != record[key]:
            raise RefusedError(
                f"the run's {name} is not the one that it was trained with", path=folder / name,
                found=sha256_of(folder / name), expected=record[key],
                hint="put the original back; a changed run is another run: train it",
            )  # fmt: skip
    if record.get("status") != "finished" and not unfinished:
        raise RefusedError(
            "the run's training did not finish", path=folder, found=record.get("status", "not recorded"),
            expected="finished",
            hint="go on with `segpipe train --resume`, or export what there is with --unfinished",
        )  # fmt: skip


def _read_weights(path: Path, network: dict[str, Any]) -> bytes:
    """The state dict as plain contiguous CPU tensors, checked against the network, as bytes that repeat."""
    import torch
    from monai.bundle import ConfigParser

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise many kinds
        raise DataError("the weights cannot be read", path=path, found=type(error).__name__) from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some networks print their features
            model = ConfigParser({"network_def": network}).get_parsed_content("network_def")
        model.load_state_dict(state)
    except Exception as error:  # MONAI wraps what a constructor raises
        raise DataError(
            "the weights do not fit the network", path=path, found=str(error).strip().splitlines()[-1][:200],
            expected=f"a state dict of {network['_target_']}",
        ) from error  # fmt: skip
    once: dict[tuple[Any, ...], torch.Tensor] = {}  # DynUNet names each weight twice
    plain = {
        name: once.setdefault(
            (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype),
            tensor.detach().cpu().contiguous().clone(),
        )
        for name, tensor in state.items()
    }
    buffer = io.BytesIO()  # a file's name would get into its bytes
    torch.save(plain, buffer)
    return buffer.getvalue()


def _section(manifest: Manifest) -> str:
    """The section that evaluate.json measures: the test cases where all are labelled, else the training cases."""
    return "test" if manifest.test and all(case.label for case in manifest.test) else "training"


def _anonymous(manifest: Manifest) -> Manifest:
    """The manifest with patient ids replaced by numbers: a bundle is passed on, the grouping alone is needed."""
    groups: dict[str, str] = {}
    for case in manifest.cases():
        if case.patient_id is not None:
            groups.setdefault(case.patient_id, f"p{len(groups) + 1:05}")
    sections = {
        name: [
            case.model_copy(update={"patient_id": groups.get(case.patient_id or "")})
            for case in getattr(manifest, name)
        ]
        for name in ("training", "test")
    }
    return manifest.model_copy(update=sections)


def _data_licence(manifest: Manifest) -> str:
    lines = [f"Trained on: {manifest.name}", f"Licence of the data: {manifest.licence}"]
    lines += [f"Source: {manifest.source}"] if manifest.source else []
    lines += [f"Reference: {manifest.reference}"] if manifest.reference else []
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _whole_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary neighbour of ``out`` that takes its place when the block ends well; else what was there stays."""
    out = out.resolve()  # so that "." has a name and neighbours
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    is_bundle = (out / "configs" / "metadata.json").is_file()
    if taken and not (overwrite and is_bundle):
        raise UsageError(
            "the place for the bundle is taken", path=out, found="a bundle" if is_bundle else "something else",
            hint="replace it with --overwrite" if is_bundle else "choose another place",
        )  # fmt: skip
    folder, aside = (out.parent / f".{out.name}.{word}.{os.getpid()}" for word in ("partial", "replaced"))
    try:
        folder.mkdir(parents=True)
        yield folder
        if out.exists():
            out.rename(aside)
        folder.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        if aside.exists() and not out.exists():
            aside.rename(out)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
