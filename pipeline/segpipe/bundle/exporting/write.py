"""From a run folder to a MONAI bundle that stock MONAI runs without this package."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from segpipe.bundle.exporting.bundle_configs import (
    Rules,
    check_rules,
    evaluate_config,
    fast_config,
    inference_config,
    network_definition,
    train_config,
)
from segpipe.bundle.exporting.bundle_metadata import Labelling, bundle_metadata
from segpipe.bundle.exporting.card import model_card
from segpipe.bundle.exporting.card_results import draw_pictures, read_evaluation
from segpipe.bundle.exporting.run_record import MANIFEST, PROVENANCE, TRAIN, WEIGHTS, Run, provenance, read_run
from segpipe.bundle.golden import write_golden
from segpipe.bundle.open import Bundle, open_bundle
from segpipe.bundle.tensors import read_state, require_fits, torch_bytes
from segpipe.bundle.vet import METADATA, write_sums
from segpipe.common.files import cannot_write, write_json, write_text, write_whole
from segpipe.data import Manifest
from segpipe.errors import UsageError
from segpipe.inference import read_rules

LOGGING = """[loggers]
keys=root,dicom

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=INFO
handlers=console

# else MONAI says on every start that a DICOM decoder for GPUs is not there
[logger_dicom]
level=ERROR
qualname=monai.data.nvimgcodec_pydicom_plugin
handlers=

[handler_console]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stdout,)

[formatter_plain]
format=%(asctime)s %(levelname)s %(message)s
"""


def export(
    run: str | Path,
    out: str | Path,
    labelling: Labelling | None = None,
    evaluation: str | Path | None = None,
    postprocessing: str | Path | None = None,
    overwrite: bool = False,
    unfinished: bool = False,
    golden: Sequence[Path] = (),
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
    contents = read_run(run, unfinished)
    rules = {} if postprocessing is None else read_rules(postprocessing)
    check_rules(rules, contents.config)
    measured = None if evaluation is None else read_evaluation(Path(evaluation))
    network = network_definition(contents.config)
    state = read_state(run / "best.pt")
    require_fits(state, network, run / "best.pt")
    licence = licence_text(labelling.licence)
    if Path(labelling.licence).is_file():
        labelling = replace(labelling, licence="see LICENSE")
    results = None if measured is None else measured.results
    metadata = bundle_metadata(contents, labelling, network, rules, results, _section(contents.manifest))
    with _whole_folder(out, overwrite) as folder:
        files = _write_configs(folder, contents, rules, metadata)
        with write_whole(folder / WEIGHTS) as stream:
            stream.write(torch_bytes(state))
        labels = {int(value): name for value, name in contents.manifest.labels.items()}
        metadata["golden"] = write_golden(folder, metadata, labels, files, golden)
        record = provenance(contents, state, folder)
        write_json(folder / PROVENANCE, record)
        dice = {} if measured is None else measured.dice
        pictures = draw_pictures(folder, contents.manifest.foreground, dice, {contents.manifest.name: contents.history})
        write_text(folder / "docs" / "README.md", model_card(metadata, record, pictures))
        if contents.manifest.licence:
            write_text(folder / "docs" / "data_license.txt", _data_licence(contents.manifest))
        write_text(folder / "LICENSE", licence)
        write_json(folder / METADATA, metadata)
        write_sums(folder)
    return open_bundle(out)


def _write_configs(folder: Path, run: Run, rules: Rules, metadata: dict[str, Any]) -> int:
    """All configs but the metadata, in which it notes what the fast one needs; the number of image files of a case."""
    files = max((len(case.images) for case in run.manifest.cases()), default=1)
    configs = folder / "configs"
    write_json(configs / "inference.json", inference_config(run.config, rules, files))
    fast = fast_config(run.config, rules)
    if fast is not None:
        write_json(configs / "inference_fast.json", fast)
        needed = metadata["config_requirements"]
        needed["inference_fast.json"] = needed["train.json"]
    write_json(configs / "evaluate.json", evaluate_config(run.config, rules, metadata["evaluate_section"]))
    write_json(folder / TRAIN, train_config(run.config))
    write_json(folder / MANIFEST, _anonymous(run.manifest).dump())
    write_text(configs / "logging.conf", LOGGING)
    return files


def licence_text(licence: str) -> str:
    """Text of a licence: a file's content, our own Apache-2.0 text, or the SPDX name alone."""
    if Path(licence).is_file():
        return Path(licence).read_text(encoding="utf-8")
    if licence != "Apache-2.0":
        return f"SPDX-License-Identifier: {licence}\n"
    beside = Path(__file__).resolve().parents[4] / "LICENSE"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    with contextlib.suppress(packages.PackageNotFoundError):
        text = packages.distribution("segpipe").read_text("licenses/LICENSE")
        if text:
            return text
    return f"SPDX-License-Identifier: {licence}\n"


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
            "the place for the bundle is taken",
            path=out,
            found="a bundle" if is_bundle else "something else",
            hint="replace it with --overwrite" if is_bundle else "choose another place",
        )
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
